#include "x86_avx2.h"

/* Written out, since compilers reorder sums of 16 bits, and then need more registers than there are. */
static inline __attribute__((always_inline)) __m256i accumulate(__m256i sum, __m256i codes, __m256i x) {
  __m256i products;
  __asm__ volatile(
      "vpmaddubsw %[x], %[codes], %[products]\n\t"
      "vpaddw %[products], %[sum], %[sum]"
      : [sum] "+x"(sum), [products] "=&x"(products)
      : [codes] "x"(codes), [x] "x"(x));
  return sum;
}

#define MOST_WORDS TCLIP_INT16_WORDS
#define ACCUMULATE(sum, codes, x) accumulate(sum, codes, x)
#define WIDEN(sum) _mm256_madd_epi16(sum, _mm256_set1_epi16(1))
#include "x86_tile.h"

const struct tclip_kernel tclip_kernel_avx2 = {
    "avx2", COLUMNS, TILE_ROWS, unpack, tile, row, &tclip_floats_avx2};
