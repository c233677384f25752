/* Compares every kernel that this processor has with sums written out; prints the names of those
 * that were compared. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tclip.h"

static const char *const NAMES[] = {"plain",      "avx2",    "avxvnni", "avx512bw",
                                    "avx512vnni", "dotprod", "i8mm"};
static const size_t M[] = {1, 2, 3, 7, 8, 9, 17}, K[] = {1, 15, 16, 17, 64, 65, 200},
                    N[] = {1, 7, 8, 9, 33, 64};

#define COUNT(array) (sizeof(array) / sizeof *(array))

static uint32_t state = 1;

static uint32_t next_random(void) {
  state = state * 1664525u + 1013904223u;
  return state >> 8;
}

static void fail(const char *name, size_t m, size_t k, size_t n, const char *reason) {
  fprintf(stderr, "%s, m=%zu k=%zu n=%zu: %s\n", name, m, k, n, reason);
  exit(1);
}

static void compare(const char *name, size_t m, size_t k, size_t n) {
  size_t rows = (k + 15) / 16;
  int8_t *q = malloc(m * k), *codes = malloc(k * n);
  uint32_t *words = calloc(rows * n, sizeof *words);
  int32_t *sums = malloc(m * n * sizeof *sums);
  char error[256] = "";
  for (size_t i = 0; i < m * k; i++) q[i] = (int8_t)(next_random() % 255) - 127;
  for (size_t i = 0; i < k; i++)
    for (size_t j = 0; j < n; j++) {
      int8_t code = codes[i * n + j] = (int8_t)(next_random() % 3) - 1;
      words[i / 16 * n + j] |= (uint32_t)(code & 3) << (2 * (i % 16));
    }
  if (tclip_integer_matmul(name, q, m, k, words, n, sums, error, sizeof error))
    fail(name, m, k, n, error);
  for (size_t a = 0; a < m; a++)
    for (size_t j = 0; j < n; j++) {
      int32_t sum = 0;
      for (size_t i = 0; i < k; i++) sum += q[a * k + i] * codes[i * n + j];
      if (sums[a * n + j] != sum) fail(name, m, k, n, "wrong sum");
    }
  free(q), free(codes), free(words), free(sums);
}

int main(void) {
  for (size_t i = 0; i < COUNT(NAMES); i++) {
    int8_t q = 1;
    uint32_t word = 1;
    int32_t sum;
    if (tclip_integer_matmul(NAMES[i], &q, 1, 1, &word, 1, &sum, NULL, 0)) continue;
    for (size_t a = 0; a < COUNT(M); a++)
      for (size_t b = 0; b < COUNT(K); b++)
        for (size_t c = 0; c < COUNT(N); c++) compare(NAMES[i], M[a], K[b], N[c]);
    puts(NAMES[i]);
  }
  return 0;
}
