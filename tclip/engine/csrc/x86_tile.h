/* The tile and row of x86 processors, for a vector type and instructions that the file which
 * includes this defines:
 *
 *   VECTOR, WORDS             a vector of integers, and how many 32-bit words it has
 *   LOAD(p), STORE(p, v)      unaligned
 *   ZERO(), BROADCAST(i)      of 32 bits
 *   ADD32(a, b)
 *   FIELD(w, f)               (w >> 2f) & 0x03030303
 *   UNSIGNED_CODES(w)         `tclip_unsigned_codes` of every word
 *   ACCUMULATE(sum, codes, x) adds the products of unsigned codes and signed x
 *   WIDEN(sum)                such a sum in 32 bits
 *   MOST_WORDS                rows of words after which a sum has to be widened
 *   TILE_ROWS
 */
#include <string.h>

#define COLUMNS (2 * WORDS)
#define INLINE static inline __attribute__((always_inline))

static void unpack(const uint32_t *words, size_t stride, size_t count, uint8_t *panel) {
  for (size_t r = 0; r < count; r++, words += stride) {
    VECTOR low = UNSIGNED_CODES(LOAD(words)), high = UNSIGNED_CODES(LOAD(words + WORDS));
#pragma GCC unroll 4
    for (int f = 0; f < 4; f++, panel += 8 * WORDS) {
      STORE(panel, FIELD(low, f));
      STORE(panel + 4 * WORDS, FIELD(high, f));
    }
  }
}

INLINE VECTOR step_of(const int8_t *q) {
  int32_t bytes;
  memcpy(&bytes, q, sizeof bytes);
  return BROADCAST(bytes);
}

INLINE void tile_of(const uint8_t *panel, size_t count, const int8_t *q, size_t q_stride,
                    const size_t rows, int32_t *sums) {
  for (size_t done = 0; done < count;) {
    size_t part = count - done < MOST_WORDS ? count - done : MOST_WORDS;
    VECTOR sum[TILE_ROWS][2];
#pragma GCC unroll 16
    for (size_t i = 0; i < rows; i++) sum[i][0] = sum[i][1] = ZERO();
    for (size_t r = 0; r < part; r++, q += 16) {
#pragma GCC unroll 4
      for (size_t f = 0; f < 4; f++, panel += 8 * WORDS) {
        VECTOR low = LOAD(panel), high = LOAD(panel + 4 * WORDS);
#pragma GCC unroll 16
        for (size_t i = 0; i < rows; i++) {
          VECTOR x = step_of(q + i * q_stride + 4 * f);
          sum[i][0] = ACCUMULATE(sum[i][0], low, x);
          sum[i][1] = ACCUMULATE(sum[i][1], high, x);
        }
      }
    }
#pragma GCC unroll 16
    for (size_t i = 0; i < rows; i++) {
#pragma GCC unroll 2
      for (size_t j = 0; j < 2; j++) {
        int32_t *out = sums + i * COLUMNS + j * WORDS;
        VECTOR wide = WIDEN(sum[i][j]);
        STORE(out, done ? ADD32(wide, LOAD(out)) : wide);
      }
    }
    done += part;
  }
  if (!count) memset(sums, 0, rows * COLUMNS * sizeof *sums);
}

static void tile(const uint8_t *panel, size_t count, const int8_t *q, size_t q_stride, size_t rows,
                 int32_t *sums) {
#define CASE(n) \
  case n:       \
    tile_of(panel, count, q, q_stride, n, sums); \
    break;
  switch (rows) {
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if TILE_ROWS > 6
    CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
  }
#undef CASE
}

static void row(const uint32_t *words, size_t stride, size_t count, const int8_t *q,
                int32_t *sums) {
  VECTOR total[2] = {ZERO(), ZERO()};
  for (size_t done = 0; done < count;) {
    size_t part = count - done < MOST_WORDS ? count - done : MOST_WORDS;
    /* Two sums a vector, so that one addition need not wait for the other. */
    VECTOR sum[2][2] = {{ZERO(), ZERO()}, {ZERO(), ZERO()}};
    for (size_t r = 0; r < part; r++, words += stride, q += 16) {
      VECTOR low = UNSIGNED_CODES(LOAD(words)), high = UNSIGNED_CODES(LOAD(words + WORDS));
#pragma GCC unroll 4
      for (int f = 0; f < 4; f++) {
        VECTOR x = step_of(q + 4 * f);
        sum[0][f & 1] = ACCUMULATE(sum[0][f & 1], FIELD(low, f), x);
        sum[1][f & 1] = ACCUMULATE(sum[1][f & 1], FIELD(high, f), x);
      }
    }
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++)
      total[j] = ADD32(total[j], ADD32(WIDEN(sum[j][0]), WIDEN(sum[j][1])));
    done += part;
  }
  STORE(sums, total[0]);
  STORE(sums + WORDS, total[1]);
}
