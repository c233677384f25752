/* Compiled once for each instruction set; TCLIP_SUFFIX names the table. */
#include "floats.h"

#include <math.h>
#include <string.h>

#include "half.h"

#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)

#if defined(__AVX512F__)
enum { LANES = 16, TILE_ROWS = 12 };
#elif defined(__AVX2__)
enum { LANES = 8, TILE_ROWS = 6 };
#elif defined(__aarch64__)
enum { LANES = 4, TILE_ROWS = 12 };
#else
enum { LANES = 4, TILE_ROWS = 6 };
#endif
enum { COLUMNS = 2 * LANES };

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

float PASTE(tclip_quantize_, TCLIP_SUFFIX)(const float *x, size_t n, int8_t *q);
void PASTE(tclip_transpose_, TCLIP_SUFFIX)(int8_t *q, size_t n);
int32_t PASTE(tclip_sum_, TCLIP_SUFFIX)(const int8_t *q, size_t n);

/* exp(x) within 2 units in the last place: 2^i * exp(r) with |r| <= log(2)/2, and Taylor's series
 * to the seventh power. Beyond the range of normal numbers it stays at the last of them. */
static inline float exp_of(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float round = 12582912.0f; /* 1.5 * 2^23: adding it leaves an integer in the low bits */
  float shifted = x * 1.44269504f + round;
  float i = shifted - round;
  /* log(2) in two parts, the first with so few digits that its product with i is exact. */
  float r = x - i * 0.693359375f;
  r = r + i * 2.12194440e-4f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  uint32_t bits, exponent;
  memcpy(&exponent, &shifted, sizeof exponent);
  memcpy(&bits, &p, sizeof bits);
  bits += exponent << 23;
  memcpy(&p, &bits, sizeof p);
  return x == x ? p : x;
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + exp_of(-x)); }

/* erf(|x|) by formula 7.1.26 of Abramowitz and Stegun, Handbook of Mathematical Functions; its
 * error is below 1.5e-7. */
static inline float erf_of(float x) {
  float size = fabsf(x), t = 1.0f / (1.0f + 0.3275911f * size);
  float p = 1.061405429f;
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  return copysignf(1.0f - p * t * exp_of(-x * x), x);
}

static inline float quick_gelu(float x) { return x * sigmoid(1.702f * x); }
static inline float gelu(float x) { return 0.5f * x * (1.0f + erf_of(x * 0.707106781f)); }
/* 0.5 (1 + tanh(z)) is sigmoid(2 z). */
static inline float gelu_tanh(float x) {
  return x * sigmoid(1.59576912f * (x + 0.044715f * x * x * x));
}

static void unpack_ternary(const uint32_t *words, size_t stride, size_t rows, size_t columns,
                           const float *scale, size_t rows_per_scale, float *panel) {
  size_t left = rows_per_scale;
  for (size_t k = 0; k < rows; k++, panel += COLUMNS) {
    const uint32_t *word = words + k / 16 * stride;
    int shift = 30 - 2 * (int)(k % 16);
    if (columns == COLUMNS) {
#pragma omp simd
      for (size_t n = 0; n < COLUMNS; n++)
        panel[n] = (float)((int32_t)(word[n] << shift) >> 30) * scale[n];
    } else {
      for (size_t n = 0; n < columns; n++)
        panel[n] = (float)((int32_t)(word[n] << shift) >> 30) * scale[n];
      for (size_t n = columns; n < COLUMNS; n++) panel[n] = 0;
    }
    if (!--left) left = rows_per_scale, scale += COLUMNS;
  }
}

static void from_half(const uint16_t *x, size_t n, float *y) {
#pragma omp simd
  for (size_t i = 0; i < n; i++) y[i] = tclip_half(x[i]);
}

static void unpack_half(const uint16_t *w, size_t stride, size_t rows, size_t columns,
                        float *panel) {
  for (size_t k = 0; k < rows; k++, panel += COLUMNS, w += stride) {
    from_half(w, columns, panel);
    for (size_t n = columns; n < COLUMNS; n++) panel[n] = 0;
  }
}

static void unpack_float(const float *w, size_t stride, size_t rows, size_t columns,
                         float *panel) {
  for (size_t k = 0; k < rows; k++, panel += COLUMNS, w += stride) {
    memcpy(panel, w, columns * sizeof *w);
    for (size_t n = columns; n < COLUMNS; n++) panel[n] = 0;
  }
}

static void unpack_transposed(const float *w, size_t stride, size_t rows, size_t columns,
                              float *panel) {
  for (size_t n = 0; n < COLUMNS; n++)
    for (size_t k = 0; k < rows; k++) panel[k * COLUMNS + n] = n < columns ? w[n * stride + k] : 0;
}

static inline __attribute__((always_inline)) void tile_of(const float *panel, size_t k,
                                                          const float *x, size_t x_stride,
                                                          const size_t rows, float *y,
                                                          size_t y_stride) {
  vector sum[TILE_ROWS][2];
#pragma GCC unroll 16
  for (size_t i = 0; i < rows; i++) sum[i][0] = sum[i][1] = (vector){0};
  for (; k; k--, panel += COLUMNS, x++) {
    vector low = *(const vector *)panel, high = *(const vector *)(panel + LANES);
#pragma GCC unroll 16
    for (size_t i = 0; i < rows; i++) {
      sum[i][0] += low * x[i * x_stride];
      sum[i][1] += high * x[i * x_stride];
    }
  }
#pragma GCC unroll 16
  for (size_t i = 0; i < rows; i++) {
    *(vector *)(y + i * y_stride) = sum[i][0];
    *(vector *)(y + i * y_stride + LANES) = sum[i][1];
  }
}

static void tile(const float *panel, size_t k, const float *x, size_t x_stride, size_t rows,
                 float *y, size_t y_stride) {
#define CASE(n) \
  case n:       \
    tile_of(panel, k, x, x_stride, n, y, y_stride); \
    break;
  switch (rows) {
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if defined(__AVX512F__) || defined(__aarch64__)
    CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
  }
#undef CASE
}

static void scale_sums(const int32_t *sums, const int32_t *row_sums, size_t row_sums_stride,
                       const float *scale, size_t rows, size_t columns, int first,
                       float *product) {
  for (size_t i = 0; i < rows; i++, sums += columns, product += columns) {
    int32_t row_sum = row_sums[i * row_sums_stride];
    if (first) {
#pragma omp simd
      for (size_t n = 0; n < columns; n++) product[n] = (float)(sums[n] - row_sum) * scale[n];
    } else {
#pragma omp simd
      for (size_t n = 0; n < columns; n++) product[n] += (float)(sums[n] - row_sum) * scale[n];
    }
  }
}

#define FOR_EACH(value)                     \
  _Pragma("omp simd") for (size_t n = 0; n < columns; n++) row[n] = (value)

static void finish(const float *product, size_t stride, size_t rows, size_t columns,
                   const struct tclip_finish *f) {
  float row[64];
  for (size_t i = 0; i < rows; i++, product += stride) {
    float scale = f->row_scale ? f->row_scale[i] : 1.0f, *y = f->y + i * f->y_stride;
    if (f->bias)
      FOR_EACH(product[n] * scale + f->bias[n]);
    else
      FOR_EACH(product[n] * scale);
    if (f->activation == TCLIP_QUICK_GELU) FOR_EACH(quick_gelu(row[n]));
    if (f->activation == TCLIP_GELU) FOR_EACH(gelu(row[n]));
    if (f->activation == TCLIP_GELU_TANH) FOR_EACH(gelu_tanh(row[n]));
    if (f->add) FOR_EACH(row[n] + y[n]);
    memcpy(y, row, columns * sizeof *y);
  }
}

static void layer_norm(const float *x, size_t n, const float *scale, const float *bias, float eps,
                       float *y) {
  float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
  for (size_t i = 0; i < n; i++) sum += x[i];
  float mean = sum / (float)n;
#pragma omp simd reduction(+ : squares)
  for (size_t i = 0; i < n; i++) squares += (x[i] - mean) * (x[i] - mean);
  float factor = 1.0f / sqrtf(squares / (float)n + eps);
#pragma omp simd
  for (size_t i = 0; i < n; i++) y[i] = (x[i] - mean) * (factor * scale[i]) + bias[i];
}

static float softmax(float *x, size_t n, float factor) {
  float largest = x[0], sum = 0;
#pragma omp simd reduction(max : largest)
  for (size_t i = 0; i < n; i++) largest = x[i] > largest ? x[i] : largest;
#pragma omp simd reduction(+ : sum)
  for (size_t i = 0; i < n; i++) {
    x[i] = exp_of(factor * (x[i] - largest));
    sum += x[i];
  }
  return 1.0f / sum;
}

const struct tclip_floats PASTE(tclip_floats_, TCLIP_SUFFIX) = {
    COLUMNS,
    TILE_ROWS,
    unpack_ternary,
    unpack_half,
    unpack_float,
    unpack_transposed,
    tile,
    scale_sums,
    finish,
    layer_norm,
    softmax,
    PASTE(tclip_quantize_, TCLIP_SUFFIX),
    PASTE(tclip_transpose_, TCLIP_SUFFIX),
    PASTE(tclip_sum_, TCLIP_SUFFIX),
    from_half,
};
