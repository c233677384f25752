#include <stdlib.h>
#include <string.h>

#include "kernels.h"

/* __builtin_cpu_supports asks whether the system saves the registers, too. */
#ifdef TCLIP_X86
extern const struct tclip_kernel tclip_kernel_avx512vnni, tclip_kernel_avxvnni,
    tclip_kernel_avx512bw, tclip_kernel_avx2;

#include <cpuid.h>

static int has_avx512(void) {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

static int has_avx2(void) {
  unsigned a, b, c = 0, d;
  int has_f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
  return has_f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static int has_avxvnni(void) {
  unsigned a = 0, b, c, d;
  return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4);
}

static int has_avx512vnni(void) { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
#endif

#ifdef TCLIP_ARM
extern const struct tclip_kernel tclip_kernel_i8mm, tclip_kernel_dotprod;
#if defined(__linux__)
#include <sys/auxv.h>
static int has_dotprod(void) { return (getauxval(AT_HWCAP) >> 20) & 1; }
static int has_i8mm(void) { return has_dotprod() && ((getauxval(AT_HWCAP2) >> 13) & 1); }
#elif defined(__APPLE__)
#include <sys/sysctl.h>
static int has(const char *name) {
  int value = 0;
  size_t size = sizeof value;
  return !sysctlbyname(name, &value, &size, NULL, 0) && value;
}
static int has_dotprod(void) { return has("hw.optional.arm.FEAT_DotProd"); }
static int has_i8mm(void) { return has_dotprod() && has("hw.optional.arm.FEAT_I8MM"); }
#else
static int has_dotprod(void) { return 0; }
static int has_i8mm(void) { return 0; }
#endif
#endif

extern const struct tclip_kernel tclip_kernel_plain;

static int always(void) { return 1; }

static const struct {
  const struct tclip_kernel *kernel;
  int (*available)(void);
} KERNELS[] = { /* the best first */
#ifdef TCLIP_X86
    {&tclip_kernel_avx512vnni, has_avx512vnni},
    {&tclip_kernel_avxvnni, has_avxvnni},
    {&tclip_kernel_avx512bw, has_avx512},
    {&tclip_kernel_avx2, has_avx2},
#endif
#ifdef TCLIP_ARM
    {&tclip_kernel_i8mm, has_i8mm},
    {&tclip_kernel_dotprod, has_dotprod},
#endif
    {&tclip_kernel_plain, always},
};

const struct tclip_kernel *tclip_find_kernel(const char *name) {
  for (size_t i = 0; i < sizeof KERNELS / sizeof *KERNELS; i++)
    if ((!name || !strcmp(KERNELS[i].kernel->name, name)) && KERNELS[i].available())
      return KERNELS[i].kernel;
  return NULL;
}

const struct tclip_kernel *tclip_chosen_kernel(void) {
  const char *name = getenv("TCLIP_KERNEL");
  return tclip_find_kernel(name && *name ? name : NULL);
}
