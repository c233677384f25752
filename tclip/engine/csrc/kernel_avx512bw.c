#include "x86_avx512.h"

#define MOST_WORDS TCLIP_INT16_WORDS
#define ACCUMULATE(sum, codes, x) _mm512_add_epi16(sum, _mm512_maddubs_epi16(codes, x))
#define WIDEN(sum) _mm512_madd_epi16(sum, _mm512_set1_epi16(1))
#include "x86_tile.h"

const struct tclip_kernel tclip_kernel_avx512bw = {
    "avx512bw", COLUMNS, TILE_ROWS, unpack, tile, row, &tclip_floats_avx512};
