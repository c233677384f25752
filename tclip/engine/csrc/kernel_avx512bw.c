#include "x86_avx512.h"

/* Written out, since compilers reorder sums of 16 bits, and then need more registers than there are. */
static inline __attribute__((always_inline)) __m512i accumulate(__m512i sum, __m512i codes, __m512i x) {
  __m512i products;
  __asm__ volatile(
      "vpmaddubsw %[x], %[codes], %[products]\n\t"
      "vpaddw %[products], %[sum], %[sum]"
      : [sum] "+v"(sum), [products] "=&v"(products)
      : [codes] "v"(codes), [x] "v"(x));
  return sum;
}

#define MOST_WORDS TCLIP_INT16_WORDS
#define ACCUMULATE(sum, codes, x) accumulate(sum, codes, x)
#define WIDEN(sum) _mm512_madd_epi16(sum, _mm512_set1_epi16(1))
#include "x86_tile.h"

const struct tclip_kernel tclip_kernel_avx512bw = {
    "avx512bw", COLUMNS, TILE_ROWS, unpack, tile, row, &tclip_floats_avx512};
