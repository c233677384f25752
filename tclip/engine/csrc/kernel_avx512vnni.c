#include "x86_avx512.h"

#define MOST_WORDS SIZE_MAX
#define ACCUMULATE(sum, codes, x) _mm512_dpbusd_epi32(sum, codes, x)
#define WIDEN(sum) (sum)
#include "x86_tile.h"

const struct tclip_kernel tclip_kernel_avx512vnni = {
    "avx512vnni", COLUMNS, TILE_ROWS, unpack, tile, row, &tclip_floats_avx512};
