#include "x86_avx2.h"

#define MOST_WORDS TCLIP_INT16_WORDS
#define ACCUMULATE(sum, codes, x) _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, x))
#define WIDEN(sum) _mm256_madd_epi16(sum, _mm256_set1_epi16(1))
#include "x86_tile.h"

const struct tclip_kernel tclip_kernel_avx2 = {
    "avx2", COLUMNS, TILE_ROWS, unpack, tile, row, &tclip_floats_avx2};
