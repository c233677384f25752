/* Products of rows of activations and a weight. */
#ifndef TCLIP_PRODUCT_H
#define TCLIP_PRODUCT_H

#include "kernels.h"

enum tclip_kind { TCLIP_TERNARY, TCLIP_HALF, TCLIP_FLOAT };

/* [rows, columns]. `data` are words [ceil(rows / 16), columns], or floats of the kind; a scale
 * [scale_rows, scale_columns] divides the weight along both axes. */
struct tclip_weight {
  enum tclip_kind kind;
  const void *data;
  size_t rows, columns;
  const void *scale;
  int scale_is_half;
  size_t scale_rows, scale_columns;
};

/* Activations [count, columns], rows `stride` apart, and the same in 8 bits, which
 * `tclip_quantize` makes. */
struct tclip_rows {
  const float *x;
  size_t stride, count, columns;
  int8_t *q; /* transposed as kernels want them, NULL before */
  size_t q_stride;
  float *scale;
};

/* Bytes apart of 8-bit rows of so many values. */
size_t tclip_q_stride(size_t columns);

/* Fills q [count, tclip_q_stride] and scale [count], both the caller's. */
void tclip_quantize(const struct tclip_kernel *kernel, struct tclip_rows *x, int8_t *q,
                    float *scale);

/* Bytes that a product needs for itself, on so many threads, with at most so many rows. */
size_t tclip_product_bytes(const struct tclip_kernel *kernel, const struct tclip_weight *w,
                           size_t count, size_t threads);

/* finish(x @ w), by 8-bit activations where x has them and w is ternary. `memory` has
 * `tclip_product_bytes`; finish->row_scale is not looked at. */
void tclip_product(const struct tclip_kernel *kernel, const struct tclip_rows *x,
                   const struct tclip_weight *w, const struct tclip_finish *finish, void *memory);

/* An entry of a weight's scale as float32. */
float tclip_scale_at(const struct tclip_weight *w, size_t row, size_t column);

#endif
