// Kernels without instruction-set extensions, and the choice between all of them. The vectors of four are the
// compiler's own (GCC and Clang): SSE2 on x86-64, NEON on aarch64, scalar code elsewhere.
#if defined(__aarch64__)
#include <arm_neon.h>
#endif

#include <cstdint>
#include <cstring>
#include <initializer_list>

#include "raster_cpu_blend.h"
#include "raster_cpu_kernel.h"

namespace streamsplat {
namespace {

struct Plain {
  static constexpr int kWidth = 4;
#if defined(__aarch64__)
  static constexpr int kRows = 4;  // 32 registers: 20 accumulators
#else
  static constexpr int kRows = 2;  // 16 registers: 10 accumulators
#endif
  typedef float F __attribute__((vector_size(16)));
  typedef std::int32_t M __attribute__((vector_size(16)));
  static inline F set1(float v) { return F{v, v, v, v}; }
  static inline F load(const float* p) {
    F v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static inline void store(float* p, F v) { std::memcpy(p, &v, sizeof v); }
  static inline F mul(F a, F b) { return a * b; }
  static inline F add(F a, F b) { return a + b; }
#if defined(__aarch64__)  // fused multiply-add is part of the base instruction set there
  static inline F fma(F a, F b, F c) {
    return reinterpret_cast<F>(vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b));
  }
  static inline F fnma(F a, F b, F c) {
    return reinterpret_cast<F>(vfmsq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b));
  }
#else
  static inline F fma(F a, F b, F c) { return a * b + c; }
  static inline F fnma(F a, F b, F c) { return c - a * b; }
#endif
  static inline F min(F a, F b) { return select(a < b, a, b); }
  static inline F max(F a, F b) { return select(a > b, a, b); }
  static inline M ge(F a, F b) { return a >= b; }
  static inline F keep(M m, F v) { return reinterpret_cast<F>(m & reinterpret_cast<M>(v)); }
  static inline unsigned bits(M m) { return (m[0] & 1u) | (m[1] & 2u) | (m[2] & 4u) | (m[3] & 8u); }
  static inline F keep_min(M m, F a, F b) { return keep(m, min(a, b)); }
  static inline F keep_mul(M m, F a, F b) { return keep(m, a * b); }
  static inline F select(M m, F yes, F no) {
    return reinterpret_cast<F>((m & reinterpret_cast<M>(yes)) | (~m & reinterpret_cast<M>(no)));
  }
  static inline F negative(F v) {
    const std::int32_t sign = INT32_MIN;
    return reinterpret_cast<F>(reinterpret_cast<M>(v) | M{sign, sign, sign, sign});
  }
  static inline bool all_negative(F v) {
    const M bits = reinterpret_cast<M>(v);
    return (bits[0] & bits[1] & bits[2] & bits[3]) < 0;
  }
  static inline F shift_exponent(F value, F biased) {
    typedef std::uint32_t U __attribute__((vector_size(16)));
    return reinterpret_cast<F>(reinterpret_cast<U>(value) + (reinterpret_cast<U>(biased) << 23));
  }
};

constexpr SimdKernels kKernels = make_kernels<Plain>();

}  // namespace

const SimdKernels& plain_kernels() { return kKernels; }

bool simd_supported(SimdLevel level) {
  switch (level) {
    case SimdLevel::kAuto:
    case SimdLevel::kPlain:
      return true;
#if defined(__x86_64__)
    case SimdLevel::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case SimdLevel::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#endif
    default:
      return false;
  }
}

SimdLevel simd_best() {
  for (const SimdLevel level : {SimdLevel::kAvx512, SimdLevel::kAvx2})
    if (simd_supported(level)) return level;
  return SimdLevel::kPlain;
}

const SimdKernels& simd_kernels(SimdLevel level) {
  if (level == SimdLevel::kAuto) level = simd_best();
#if defined(__x86_64__)
  if (level == SimdLevel::kAvx512) return avx512_kernels();
  if (level == SimdLevel::kAvx2) return avx2_kernels();
#endif
  return plain_kernels();
}

const char* simd_name(SimdLevel level) {
  switch (level) {
    case SimdLevel::kAvx512:
      return "avx512";
    case SimdLevel::kAvx2:
      return "avx2";
    case SimdLevel::kPlain:
#if defined(__aarch64__)
      return "neon";
#else
      return "scalar";
#endif
    default:
      return "auto";
  }
}

}  // namespace streamsplat
