/* `x86_tile.h` for vectors of 256 bits, but for the products. */
#include <immintrin.h>

#include "kernels.h"

#define VECTOR __m256i
#define WORDS 8
#define TILE_ROWS 6
#define LOAD(p) _mm256_loadu_si256((const __m256i *)(p))
#define STORE(p, v) _mm256_storeu_si256((__m256i *)(p), v)
#define ZERO() _mm256_setzero_si256()
#define BROADCAST(i) _mm256_set1_epi32(i)
#define ADD32(a, b) _mm256_add_epi32(a, b)
#define FIELD(w, f) _mm256_and_si256(_mm256_srli_epi32(w, 2 * (f)), _mm256_set1_epi8(3))
#define UNSIGNED_CODES(w) unsigned_codes(w)

static inline __m256i unsigned_codes(__m256i words) {
  __m256i high = _mm256_and_si256(_mm256_add_epi32(words, words), _mm256_set1_epi8((char)0xAA));
  return _mm256_xor_si256(words, _mm256_xor_si256(high, _mm256_set1_epi8(0x55)));
}
