/* What is computed in float32, as a table of functions: one for each instruction set. */
#ifndef TCLIP_FLOATS_H
#define TCLIP_FLOATS_H

#include <stddef.h>
#include <stdint.h>

enum tclip_activation { TCLIP_LINEAR, TCLIP_QUICK_GELU, TCLIP_GELU, TCLIP_GELU_TANH };

/* What becomes of a tile of products, [rows, columns] and `stride` apart:
 * y = activation(row_scale * product + bias), or what it adds to y. */
struct tclip_finish {
  const float *row_scale; /* [rows], NULL for ones */
  const float *bias;      /* [columns], NULL for zeros */
  enum tclip_activation activation;
  int add;
  float *y;
  size_t y_stride;
};

struct tclip_floats {
  size_t columns; /* of a panel */
  size_t rows;    /* at most, of a tile */

  /* Panels [rows, this->columns] of a weight's columns, of which there are `columns` and the rest
   * is zero. Scales are [ceil(rows / rows_per_scale), this->columns]. */
  void (*unpack_ternary)(const uint32_t *words, size_t stride, size_t rows, size_t columns,
                         const float *scale, size_t rows_per_scale, float *panel);
  void (*unpack_half)(const uint16_t *w, size_t stride, size_t rows, size_t columns, float *panel);
  void (*unpack_float)(const float *w, size_t stride, size_t rows, size_t columns, float *panel);
  /* The panel of columns that are rows of w [columns, rows]. */
  void (*unpack_transposed)(const float *w, size_t stride, size_t rows, size_t columns,
                            float *panel);

  /* y[i] = x[i] @ panel, for a panel [k, this->columns] and rows of x and y so far apart. */
  void (*tile)(const float *panel, size_t k, const float *x, size_t x_stride, size_t rows, float *y,
               size_t y_stride);

  /* product[i][n] += scale[n] * (sums[i][n] - row_sums[i * row_sums_stride]); = if `first`. */
  void (*scale_sums)(const int32_t *sums, const int32_t *row_sums, size_t row_sums_stride,
                     const float *scale, size_t rows, size_t columns, int first, float *product);
  void (*finish)(const float *product, size_t stride, size_t rows, size_t columns,
                 const struct tclip_finish *finish);

  /* Two passes, as a variance from sums of squares loses digits. */
  void (*layer_norm)(const float *x, size_t n, const float *scale, const float *bias, float eps,
                     float *y);
  /* x = exp(factor * (x - max x)); returns 1 / sum x. */
  float (*softmax)(float *x, size_t n, float factor);

  /* tclip.kernels.int8.quantize_rows for a row: q = round(x / s), half to even; returns s. */
  float (*quantize)(const float *x, size_t n, int8_t *q);
  /* Transposes every 16 bytes as a matrix of 4 x 4; n is a multiple of 16. */
  void (*transpose)(int8_t *q, size_t n);
  int32_t (*sum)(const int8_t *q, size_t n);
  void (*from_half)(const uint16_t *x, size_t n, float *y);
};

extern const struct tclip_floats tclip_floats_plain, tclip_floats_avx2, tclip_floats_avx512;

#endif
