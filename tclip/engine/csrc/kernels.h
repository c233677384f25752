/* The integer products of a processor, as a table of functions.
 *
 * A weight [K, N] comes as packed words [ceil(K/16), N]: the 2-bit two's complement codes of rows
 * 16r .. 16r+15, least significant first. Activations are 8-bit rows in which every 16 bytes are
 * transposed as a matrix of 4 x 4 (`transpose` of floats.h). Then byte b of step 4r + f, for f = 0..3,
 * holds row 16r + 4b + f, and so does byte b of (word >> 2f) & 0x03030303: unpacking a step of four
 * rows takes a shift and a mask. Codes are made unsigned (code + 1), as the instructions want; who
 * calls takes the sum of the activations off.
 */
#ifndef TCLIP_KERNELS_H
#define TCLIP_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "floats.h"

struct tclip_kernel {
  const char *name;
  size_t columns; /* of a panel */
  size_t rows;    /* at most, of a tile */

  /* Expands `count` rows of words, `stride` words apart, of the panel's columns into
   * 16 * columns bytes a row, in the order in which `tile` reads them. */
  void (*unpack)(const uint32_t *words, size_t stride, size_t count, uint8_t *panel);

  /* sums[i][n] = sum over k of q[i][k] * (code[k][n] + 1), exactly, for 16 * count values of k.
   * Rows of q are q_stride bytes apart, rows of sums `columns` apart. */
  void (*tile)(const uint8_t *panel, size_t count, const int8_t *q, size_t q_stride, size_t rows,
               int32_t *sums);

  /* The same for one row, from the words. */
  void (*row)(const uint32_t *words, size_t stride, size_t count, const int8_t *q, int32_t *sums);

  const struct tclip_floats *floats;
};

/* The kernel that runs: the best that this processor has, or the one that the environment variable
 * TCLIP_KERNEL names. NULL if that one is unknown, was not compiled or cannot run here. */
const struct tclip_kernel *tclip_chosen_kernel(void);

/* A kernel by name, or NULL if it was not compiled or cannot run here. */
const struct tclip_kernel *tclip_find_kernel(const char *name);

/* Most values of K whose products fit 16 bits: pairs of at most 2 * 2 * 127, and 64 * 508 < 2^15. */
enum { TCLIP_INT16_WORDS = 16 };

/* Every field of a word from code (two's complement) to code + 1. */
static inline uint32_t tclip_unsigned_codes(uint32_t word) {
  return (word ^ ((word << 1) & 0xAAAAAAAAu)) ^ 0x55555555u;
}

#endif
