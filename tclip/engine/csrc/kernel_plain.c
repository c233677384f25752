/* C that any compiler takes, for processors that no other kernel is for. */
#include <string.h>

#include "kernels.h"

enum { COLUMNS = 16, TILE_ROWS = 4 };

static void unpack(const uint32_t *words, size_t stride, size_t count, uint8_t *panel) {
  for (size_t r = 0; r < count; r++, words += stride)
    for (int f = 0; f < 4; f++)
      for (int b = 0; b < 4; b++, panel += COLUMNS)
        for (int n = 0; n < COLUMNS; n++)
          panel[n] = tclip_unsigned_codes(words[n]) >> (8 * b + 2 * f) & 3;
}

static void tile(const uint8_t *panel, size_t count, const int8_t *q, size_t q_stride, size_t rows,
                 int32_t *sums) {
  memset(sums, 0, rows * COLUMNS * sizeof *sums);
  for (size_t i = 0; i < rows; i++)
    for (size_t done = 0; done < 16 * count; done += 64) {
      /* A code has at most 2 and so 64 products fit 16 bits: vectors of twice as many. */
      int16_t part[COLUMNS] = {0};
      size_t end = done + 64 < 16 * count ? done + 64 : 16 * count;
      for (size_t k = done; k < end; k++) {
        int16_t x = q[i * q_stride + k];
        for (int n = 0; n < COLUMNS; n++) part[n] += (int16_t)(x * panel[k * COLUMNS + n]);
      }
      for (int n = 0; n < COLUMNS; n++) sums[i * COLUMNS + n] += part[n];
    }
}

static void row(const uint32_t *words, size_t stride, size_t count, const int8_t *q,
                int32_t *sums) {
  memset(sums, 0, COLUMNS * sizeof *sums);
  for (size_t r = 0; r < count; r++, words += stride, q += 16)
    for (int f = 0; f < 4; f++)
      for (int b = 0; b < 4; b++) {
        int32_t x = q[4 * f + b];
        for (int n = 0; n < COLUMNS; n++)
          sums[n] += x * (int32_t)(tclip_unsigned_codes(words[n]) >> (8 * b + 2 * f) & 3);
      }
}

const struct tclip_kernel tclip_kernel_plain = {
    "plain", COLUMNS, TILE_ROWS, unpack, tile, row, &tclip_floats_plain};
