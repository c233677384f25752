/* The layers that both towers share, on memory of a call's own. */
#ifndef TCLIP_TRANSFORMER_H
#define TCLIP_TRANSFORMER_H

#include "model.h"

/* Memory of a call, for at most `rows` rows of activations in sequences of at most `tokens`. */
struct tclip_memory {
  const struct tclip_kernel *kernel;
  const struct tclip_config *config;
  int is_int8;
  float *x;          /* [rows, width] the residual stream */
  float *y, *q, *k, *v; /* [rows, width] */
  float *hidden;     /* [rows, mlp_dim, or a patch's pixels] */
  int8_t *rounded;
  float *row_scale;
  void *product;
  char *attention; /* `attention_bytes` a thread */
  size_t attention_bytes;
  void *allocation;
};

/* Rows of activations, one sequence after the other: sequence i has rows starts[i] ..
 * starts[i + 1] - 1. */
struct tclip_batch {
  size_t count;
  const size_t *starts; /* [count + 1] */
};

/* 0, or -1 if there is no such memory. */
int tclip_memory_init(struct tclip_memory *memory, const tclip_model *model,
                      const struct tclip_sizes *sizes, size_t inputs, size_t rows, size_t tokens,
                      int is_int8);
void tclip_memory_free(struct tclip_memory *memory);

/* y [count, w.columns] = activation(x @ w + bias), or, with `add`, adds that to y. `x` keeps its
 * rounding to 8 bits for the next product, until other rows are multiplied. */
void tclip_multiply(struct tclip_memory *memory, struct tclip_rows *x,
                    const struct tclip_linear *linear, enum tclip_activation activation, int add,
                    float *y);

/* y [count, width] = norm of x; y may be x. */
void tclip_normalize(struct tclip_memory *memory, const struct tclip_norm *norm, const float *x,
                     size_t count, size_t width, float *y);

/* memory->y [queries, width] = attention of memory->q to memory->k and memory->v: with
 * `is_pooled` one query a sequence that sees all of it, else as many as there are keys. */
void tclip_attend(struct tclip_memory *memory, const struct tclip_sizes *sizes,
                  const struct tclip_batch *batch, int is_pooled, int is_causal);

/* x += mlp(norm(x)), for `count` rows of memory->x. */
void tclip_feed_forward(struct tclip_memory *memory, const struct tclip_norm *norm,
                        const struct tclip_mlp *mlp, const struct tclip_sizes *sizes,
                        size_t count);

/* Applies all blocks to memory->x. Of the last one only the rows `pooled` [count], ascending, are
 * computed, if it is given, and then are the only ones, in the first rows of memory->x. */
void tclip_run_blocks(struct tclip_memory *memory, const struct tclip_block *blocks,
                      const struct tclip_sizes *sizes, const struct tclip_batch *batch,
                      int is_causal, const size_t *pooled);

/* Divides rows by their lengths; a row of zeros stays. */
void tclip_to_unit_length(float *rows, size_t count, size_t width);

#endif
