/* Apart from floats.c because a product fused with the sum that rounds it would round differently
 * from tclip.kernels.int8: this file is compiled without such contractions. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <math.h>

#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)

float PASTE(tclip_quantize_, TCLIP_SUFFIX)(const float *x, size_t n, int8_t *q);
void PASTE(tclip_transpose_, TCLIP_SUFFIX)(int8_t *q, size_t n);
int32_t PASTE(tclip_sum_, TCLIP_SUFFIX)(const int8_t *q, size_t n);

float PASTE(tclip_quantize_, TCLIP_SUFFIX)(const float *x, size_t n, int8_t *q) {
  const float smallest = 7.888609e-31f; /* 2^-100 */
  float largest = smallest;
  int is_nan = 0;
#pragma omp simd reduction(max : largest) reduction(| : is_nan)
  for (size_t i = 0; i < n; i++) {
    float size = fabsf(x[i]);
    largest = size > largest ? size : largest;
    is_nan |= size != size;
  }
  float scale = largest * (1.0f / 127), inverse = 1.0f / scale;
#pragma omp simd
  for (size_t i = 0; i < n; i++) {
    /* Adding 1.5 * 2^23 rounds, half to even, to the integer that the low bits then hold. */
    float product = x[i] * inverse, shifted = product + 12582912.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    q[i] = (int8_t)(uint8_t)bits;
  }
  return is_nan ? NAN : scale;
}

void PASTE(tclip_transpose_, TCLIP_SUFFIX)(int8_t *q, size_t n) {
  typedef int8_t bytes __attribute__((vector_size(16)));
  for (; n; n -= 16, q += 16) {
    bytes in;
    memcpy(&in, q, sizeof in);
    in = __builtin_shufflevector(in, in, 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    memcpy(q, &in, sizeof in);
  }
}

int32_t PASTE(tclip_sum_, TCLIP_SUFFIX)(const int8_t *q, size_t n) {
  int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
  for (size_t i = 0; i < n; i++) sum += q[i];
  return sum;
}
