#ifndef TCLIP_HALF_H
#define TCLIP_HALF_H

#include <stdint.h>
#include <string.h>

/* IEEE 754 binary16 to binary32, exactly; written so that compilers vectorise it. */
static inline float tclip_half(uint16_t half) {
  uint32_t sign = (uint32_t)(half & 0x8000u) << 16, rest = half & 0x7FFFu;
  /* The exponent's bias goes from 15 to 127 by a product, which normalises subnormals as well. */
  uint32_t bits = rest << 13, factor_bits = 0x77800000u; /* 2^112 */
  float value, factor;
  memcpy(&value, &bits, sizeof value);
  memcpy(&factor, &factor_bits, sizeof factor);
  value *= factor;
  memcpy(&bits, &value, sizeof bits);
  bits |= sign | (rest >= 0x7C00u ? 0x7F800000u : 0u);
  memcpy(&value, &bits, sizeof value);
  return value;
}

#endif
