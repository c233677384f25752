/* Single products, for callers with weights of their own, and what is asked of the library. */
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "product.h"
#include "tclip.h"
#include "threads.h"

int tclip_matmul(const float *x, size_t m, size_t k, const uint32_t *words, size_t n,
                 const float *scale, size_t scale_rows, size_t scale_columns, const float *bias,
                 int activations, float *y, char *error, size_t error_size) {
  struct tclip_error e = {error, error_size};
  const struct tclip_kernel *kernel = tclip_chosen_kernel();
  if (!kernel)
    return tclip_fail(&e, "TCLIP_KERNEL: no such kernel, or this processor cannot run it");
  if (!k || !n || !scale_rows || !scale_columns || k % scale_rows || n % scale_columns)
    return tclip_fail(&e, "a scale [%zu, %zu] does not divide a weight [%zu, %zu]", scale_rows,
                      scale_columns, k, n);
  if (!m) return 0;
  struct tclip_weight w = {TCLIP_TERNARY, words, k, n, scale, 0, scale_rows, scale_columns};
  struct tclip_rows rows = {x, k, m, k, NULL, 0, NULL};
  void *memory = malloc(tclip_product_bytes(kernel, &w, m, tclip_thread_count()));
  int8_t *q = malloc(m * tclip_q_stride(k));
  float *row_scale = malloc(m * sizeof *row_scale);
  int status = memory && q && row_scale ? 0 : tclip_fail(&e, "out of memory");
  if (!status) {
    if (activations == TCLIP_INT8) tclip_quantize(kernel, &rows, q, row_scale);
    struct tclip_finish finish = {.bias = bias, .y = y, .y_stride = n};
    tclip_product(kernel, &rows, &w, &finish, memory);
  }
  free(row_scale);
  free(q);
  free(memory);
  return status;
}

int tclip_integer_matmul(const char *kernel_name, const int8_t *q, size_t m, size_t k,
                         const uint32_t *words, size_t n, int32_t *sums, char *error,
                         size_t error_size) {
  struct tclip_error e = {error, error_size};
  const struct tclip_kernel *kernel =
      kernel_name ? tclip_find_kernel(kernel_name) : tclip_chosen_kernel();
  if (!kernel) return tclip_fail(&e, "no such kernel, or this processor cannot run it");
  size_t count = (k + 15) / 16, columns = kernel->columns, stride = tclip_q_stride(16 * count);
  int8_t *rows = calloc(m + 1, stride);
  uint8_t *panel = malloc((count + 1) * 16 * columns);
  uint32_t *copy = calloc(count + 1, columns * sizeof *copy);
  int32_t *tile = malloc(kernel->rows * columns * sizeof *tile);
  int status = rows && panel && copy && tile ? 0 : tclip_fail(&e, "out of memory");
  for (size_t i = 0; i < m && !status; i++) {
    memcpy(rows + i * stride, q + i * k, k);
    kernel->floats->transpose(rows + i * stride, 16 * count);
  }
  for (size_t first = 0; first < n && !status; first += columns) {
    size_t width = n - first < columns ? n - first : columns;
    for (size_t r = 0; r < count; r++)
      memcpy(copy + r * columns, words + r * n + first, width * sizeof *copy);
    kernel->unpack(copy, columns, count, panel);
    for (size_t i = 0; i < m; i += kernel->rows) {
      size_t height = m - i < kernel->rows ? m - i : kernel->rows;
      if (m == 1)
        kernel->row(copy, columns, count, rows, tile);
      else
        kernel->tile(panel, count, rows + i * stride, stride, height, tile);
      for (size_t a = 0; a < height; a++) {
        int32_t sum = kernel->floats->sum(rows + (i + a) * stride, 16 * count);
        for (size_t b = 0; b < width; b++)
          sums[(i + a) * n + first + b] = tile[a * columns + b] - sum;
      }
    }
  }
  free(tile);
  free(copy);
  free(panel);
  free(rows);
  return status;
}

int tclip_quantize_rows(const float *x, size_t m, size_t k, int8_t *q, float *scale) {
  const struct tclip_kernel *kernel = tclip_chosen_kernel();
  if (!kernel) return -1;
  for (size_t i = 0; i < m; i++) scale[i] = kernel->floats->quantize(x + i * k, k, q + i * k);
  return 0;
}

int tclip_abi(void) { return TCLIP_ABI; }

const char *tclip_kernel_name(void) {
  const struct tclip_kernel *kernel = tclip_chosen_kernel();
  return kernel ? kernel->name : NULL;
}

size_t tclip_num_threads(void) { return tclip_thread_count(); }
