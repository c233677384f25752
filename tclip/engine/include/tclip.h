/* tclip's engine: image and text embeddings of a packed CLIP, without Python and without JAX.
 *
 * A packed folder is what `tclip export` writes. The functions below may be called from several
 * threads at once, on the same model too. Work is shared among TCLIP_NUM_THREADS threads (by
 * default as many as the process has processors). The instructions used are the best that the
 * processor has; the environment variable TCLIP_KERNEL names others (plain, avx2, avx512bw,
 * avxvnni, avx512vnni, dotprod, i8mm).
 *
 * Functions that can fail return 0, or -1 and one line in `error` [error_size], which says what is
 * wrong and with which file or tensor. error_size may be 0.
 */
#ifndef TCLIP_H
#define TCLIP_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define TCLIP_API __attribute__((visibility("default")))
#else
#define TCLIP_API
#endif

/* Of this header; another one changes or removes functions. */
#define TCLIP_ABI 1
TCLIP_API int tclip_abi(void);

/* Which towers to load. What is not loaded takes no memory. */
#define TCLIP_IMAGES 1
#define TCLIP_TEXTS 2

/* What ternary weights multiply: float32 activations, or activations rounded to 8 bits row by row,
 * which is much faster, and right for models that were trained with int8 activations. */
#define TCLIP_NATIVE 0
#define TCLIP_INT8 1

typedef struct tclip_model tclip_model;

typedef struct tclip_info {
  int32_t embed_dim;      /* of an embedding */
  int32_t image_size;     /* height and width of images, in pixels */
  int32_t context_length; /* most tokens of a text */
  int32_t vocab_size;
  int32_t eot_token_id;   /* the end of a text, -1 for models that do not look for it */
  int32_t towers;         /* loaded, TCLIP_IMAGES | TCLIP_TEXTS */
  float logit_scale;      /* cosines times this, plus logit_bias, are logits */
  float logit_bias;       /* 0 for models that have none */
} tclip_info;

/* Opens a packed folder. Weights stay packed and in the file, which is mapped and must not be
 * changed while the model is open. The folder may come from anywhere: every size is checked. */
TCLIP_API int tclip_open(const char *folder, int towers, tclip_model **model, char *error,
                         size_t error_size);
TCLIP_API void tclip_close(tclip_model *model);
TCLIP_API void tclip_get_info(const tclip_model *model, tclip_info *info);

/* Embeddings [count, embed_dim] of unit length, of images [count, image_size, image_size, 3]:
 * rows from the top, RGB, normalised as the folder's preprocessor_config.json says. */
TCLIP_API int tclip_encode_images(const tclip_model *model, const float *pixels, size_t count,
                                  int activations, float *embeddings, char *error,
                                  size_t error_size);

/* Embeddings [count, embed_dim] of unit length, of texts [count, length], with length at most
 * context_length: ids of the folder's tokenizer.json, padded as the model was trained. */
TCLIP_API int tclip_encode_texts(const tclip_model *model, const int32_t *tokens, size_t count,
                                 size_t length, int activations, float *embeddings, char *error,
                                 size_t error_size);

/* y [m, n] = x [m, k] @ w + bias, for w [k, n] packed as in a
 * folder, words [ceil(k / 16), n], times scale [scale_rows, scale_columns], each of which divides
 * the weight's. bias [n] or NULL. */
TCLIP_API int tclip_matmul(const float *x, size_t m, size_t k, const uint32_t *words, size_t n,
                           const float *scale, size_t scale_rows, size_t scale_columns,
                           const float *bias, int activations, float *y, char *error,
                           size_t error_size);

/* sums [m, n] = q [m, k] @ codes, exactly, by the kernel of that name (NULL: the chosen one). */
TCLIP_API int tclip_integer_matmul(const char *kernel, const int8_t *q, size_t m, size_t k,
                                   const uint32_t *words, size_t n, int32_t *sums, char *error,
                                   size_t error_size);

/* Rounds the rows of x [m, k] to 8 bits: q = round(x / scale), half to even, for the scale
 * max|row| / 127 of a row. -1 if TCLIP_KERNEL names a kernel that cannot run here. */
TCLIP_API int tclip_quantize_rows(const float *x, size_t m, size_t k, int8_t *q, float *scale);

/* The name of the kernel that runs, NULL if TCLIP_KERNEL names one that cannot run here. */
TCLIP_API const char *tclip_kernel_name(void);
TCLIP_API size_t tclip_num_threads(void);

#ifdef __cplusplus
}
#endif
#endif
