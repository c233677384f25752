/* ARM processors with the dot products of ARMv8.2: four products a lane. */
#include <arm_neon.h>
#include <string.h>

#include "kernels.h"

enum { COLUMNS = 8, TILE_ROWS = 8 };

static inline uint32x4_t unsigned_codes(uint32x4_t words) {
  uint32x4_t high = vandq_u32(vshlq_n_u32(words, 1), vdupq_n_u32(0xAAAAAAAAu));
  return veorq_u32(words, veorq_u32(high, vdupq_n_u32(0x55555555u)));
}

static inline int8x16_t field(uint32x4_t words, int f) {
  uint32x4_t shifted = vshlq_u32(words, vdupq_n_s32(-2 * f));
  return vreinterpretq_s8_u32(vandq_u32(shifted, vdupq_n_u32(0x03030303u)));
}

static void unpack(const uint32_t *words, size_t stride, size_t count, uint8_t *panel) {
  for (size_t r = 0; r < count; r++, words += stride) {
    uint32x4_t low = unsigned_codes(vld1q_u32(words)), high = unsigned_codes(vld1q_u32(words + 4));
    for (int f = 0; f < 4; f++, panel += 32) {
      vst1q_s8((int8_t *)panel, field(low, f));
      vst1q_s8((int8_t *)panel + 16, field(high, f));
    }
  }
}

static inline __attribute__((always_inline)) void tile_of(const uint8_t *panel, size_t count,
                                                          const int8_t *q, size_t q_stride,
                                                          const size_t rows, int32_t *sums) {
  int32x4_t sum[TILE_ROWS][2];
#pragma GCC unroll 8
  for (size_t i = 0; i < rows; i++) sum[i][0] = sum[i][1] = vdupq_n_s32(0);
  for (size_t r = 0; r < count; r++, panel += 128, q += 16) {
    int8x16_t codes[8];
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) codes[j] = vld1q_s8((const int8_t *)panel + 16 * j);
#pragma GCC unroll 8
    for (size_t i = 0; i < rows; i++) {
      int8x16_t x = vld1q_s8(q + i * q_stride);
#pragma GCC unroll 2
      for (int j = 0; j < 2; j++) {
        sum[i][j] = vdotq_laneq_s32(sum[i][j], codes[j], x, 0);
        sum[i][j] = vdotq_laneq_s32(sum[i][j], codes[2 + j], x, 1);
        sum[i][j] = vdotq_laneq_s32(sum[i][j], codes[4 + j], x, 2);
        sum[i][j] = vdotq_laneq_s32(sum[i][j], codes[6 + j], x, 3);
      }
    }
  }
#pragma GCC unroll 8
  for (size_t i = 0; i < rows; i++) {
    vst1q_s32(sums + i * COLUMNS, sum[i][0]);
    vst1q_s32(sums + i * COLUMNS + 4, sum[i][1]);
  }
}

static void tile(const uint8_t *panel, size_t count, const int8_t *q, size_t q_stride, size_t rows,
                 int32_t *sums) {
#define CASE(n) \
  case n:       \
    tile_of(panel, count, q, q_stride, n, sums); \
    break;
  switch (rows) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) }
#undef CASE
}

static void row(const uint32_t *words, size_t stride, size_t count, const int8_t *q,
                int32_t *sums) {
  int32x4_t sum[2] = {vdupq_n_s32(0), vdupq_n_s32(0)};
  for (size_t r = 0; r < count; r++, words += stride, q += 16) {
    int8x16_t x = vld1q_s8(q);
    for (int j = 0; j < 2; j++) {
      uint32x4_t codes = unsigned_codes(vld1q_u32(words + 4 * j));
      sum[j] = vdotq_laneq_s32(sum[j], field(codes, 0), x, 0);
      sum[j] = vdotq_laneq_s32(sum[j], field(codes, 1), x, 1);
      sum[j] = vdotq_laneq_s32(sum[j], field(codes, 2), x, 2);
      sum[j] = vdotq_laneq_s32(sum[j], field(codes, 3), x, 3);
    }
  }
  vst1q_s32(sums, sum[0]);
  vst1q_s32(sums + 4, sum[1]);
}

#ifdef TCLIP_I8MM
/* Products of matrices 2 x 8 and 8 x 2 for two rows and more: a vector holds two columns of eight
 * rows of the weight, which are two neighbouring steps. */
static void unpack_i8mm(const uint32_t *words, size_t stride, size_t count, uint8_t *panel) {
  for (size_t r = 0; r < count; r++, words += stride)
    for (int half = 0; half < 2; half++)
      for (int j = 0; j < 2; j++, panel += 32) {
        uint32x4_t codes = unsigned_codes(vld1q_u32(words + 4 * j));
        uint32x4_t even = vreinterpretq_u32_s8(field(codes, 2 * half));
        uint32x4_t odd = vreinterpretq_u32_s8(field(codes, 2 * half + 1));
        vst1q_u32((uint32_t *)panel, vzip1q_u32(even, odd));
        vst1q_u32((uint32_t *)panel + 4, vzip2q_u32(even, odd));
      }
}

static inline __attribute__((always_inline)) void pairs_of(const uint8_t *panel, size_t count,
                                                           const int8_t *q, size_t q_stride,
                                                           const size_t rows, int32_t *sums) {
  const size_t pairs = (rows + 1) / 2;
  int32x4_t sum[TILE_ROWS / 2][4];
#pragma GCC unroll 4
  for (size_t i = 0; i < pairs; i++)
    sum[i][0] = sum[i][1] = sum[i][2] = sum[i][3] = vdupq_n_s32(0);
  for (size_t r = 0; r < count; r++, q += 16)
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++, panel += 64) {
      int8x16_t codes[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) codes[j] = vld1q_s8((const int8_t *)panel + 16 * j);
#pragma GCC unroll 4
      for (size_t i = 0; i < pairs; i++) {
        const int8_t *even = q + 2 * i * q_stride + 8 * half;
        int8x8_t odd = 2 * i + 1 < rows ? vld1_s8(even + q_stride) : vdup_n_s8(0);
        int8x16_t x = vcombine_s8(vld1_s8(even), odd);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) sum[i][j] = vmmlaq_s32(sum[i][j], x, codes[j]);
      }
    }
#pragma GCC unroll 4
  for (size_t i = 0; i < pairs; i++)
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      vst1_s32(sums + 2 * i * COLUMNS + 2 * j, vget_low_s32(sum[i][j]));
      if (2 * i + 1 < rows)
        vst1_s32(sums + (2 * i + 1) * COLUMNS + 2 * j, vget_high_s32(sum[i][j]));
    }
}

static void tile_i8mm(const uint8_t *panel, size_t count, const int8_t *q, size_t q_stride,
                      size_t rows, int32_t *sums) {
#define CASE(n) \
  case n:       \
    pairs_of(panel, count, q, q_stride, n, sums); \
    break;
  switch (rows) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) }
#undef CASE
}

const struct tclip_kernel tclip_kernel_i8mm = {
    "i8mm", COLUMNS, TILE_ROWS, unpack_i8mm, tile_i8mm, row, &tclip_floats_plain};
#else
const struct tclip_kernel tclip_kernel_dotprod = {
    "dotprod", COLUMNS, TILE_ROWS, unpack, tile, row, &tclip_floats_plain};
#endif
