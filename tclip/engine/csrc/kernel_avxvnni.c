#include "x86_avx2.h"

#define MOST_WORDS SIZE_MAX
#define ACCUMULATE(sum, codes, x) _mm256_dpbusd_avx_epi32(sum, codes, x)
#define WIDEN(sum) (sum)
#include "x86_tile.h"

const struct tclip_kernel tclip_kernel_avxvnni = {
    "avxvnni", COLUMNS, TILE_ROWS, unpack, tile, row, &tclip_floats_avx2};
