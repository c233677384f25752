/* `x86_tile.h` for vectors of 512 bits, but for the products. */
#include <immintrin.h>

#include "kernels.h"

#define VECTOR __m512i
#define WORDS 16
#define TILE_ROWS 12
#define LOAD(p) _mm512_loadu_si512(p)
#define STORE(p, v) _mm512_storeu_si512(p, v)
#define ZERO() _mm512_setzero_si512()
#define BROADCAST(i) _mm512_set1_epi32(i)
#define ADD32(a, b) _mm512_add_epi32(a, b)
#define FIELD(w, f) _mm512_and_si512(_mm512_srli_epi32(w, 2 * (f)), _mm512_set1_epi32(0x03030303))
/* Where the third operand has a one the exclusive or of the others, else the first one's inverse. */
#define UNSIGNED_CODES(w)                                                                   \
  _mm512_ternarylogic_epi32(w, _mm512_add_epi32(w, w), _mm512_set1_epi32((int)0xAAAAAAAAu), \
                            0x2D)
