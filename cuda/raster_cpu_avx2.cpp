// AVX2 + FMA kernels; see raster_cpu_avx512.cpp for why the target is set by pragma.
#if defined(__x86_64__)
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "raster_cpu_kernel.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#include "raster_cpu_blend.h"

namespace streamsplat {
namespace {

struct Avx2 {
  static constexpr int kWidth = 8;
  static constexpr int kRows = 2;  // 16 registers: 10 accumulators, the rest for one Gaussian
  using F = __m256;
  using M = __m256;
  static inline F set1(float v) { return _mm256_set1_ps(v); }
  static inline F load(const float* p) { return _mm256_load_ps(p); }
  static inline void store(float* p, F v) { _mm256_store_ps(p, v); }
  static inline F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static inline F add(F a, F b) { return _mm256_add_ps(a, b); }
  static inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static inline F fnma(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }
  static inline F min(F a, F b) { return _mm256_min_ps(a, b); }
  static inline F max(F a, F b) { return _mm256_max_ps(a, b); }
  static inline M ge(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_GE_OQ); }
  static inline unsigned bits(M m) { return static_cast<unsigned>(_mm256_movemask_ps(m)); }
  static inline F keep_min(M m, F a, F b) { return _mm256_and_ps(m, _mm256_min_ps(a, b)); }
  static inline F keep_mul(M m, F a, F b) { return _mm256_and_ps(m, _mm256_mul_ps(a, b)); }
  static inline F select(M m, F yes, F no) { return _mm256_blendv_ps(no, yes, m); }
  static inline F negative(F v) { return _mm256_or_ps(v, _mm256_set1_ps(-0.0f)); }
  static inline bool all_negative(F v) { return _mm256_movemask_ps(v) == 0xFF; }
  static inline F shift_exponent(F value, F biased) {
    const __m256i power = _mm256_slli_epi32(_mm256_castps_si256(biased), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(value), power));
  }
};

constexpr SimdKernels kKernels = make_kernels<Avx2>();

}  // namespace

const SimdKernels& avx2_kernels() { return kKernels; }

}  // namespace streamsplat

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // __x86_64__
