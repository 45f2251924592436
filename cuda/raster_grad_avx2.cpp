// AVX2 + FMA block kernels; see raster_cpu_avx512.cpp for why the target is set by pragma.
#if defined(__x86_64__)
#include <immintrin.h>

#include <cstdint>

#include "raster_grad_kernel.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#include "raster_grad_tile.h"

namespace streamsplat {
namespace {

alignas(32) constexpr std::int32_t kLaneNumbers[8] = {0, 1, 2, 3, 4, 5, 6, 7};

struct Avx2 {
  static constexpr int kWidth = 8;
  using F = __m256;
  using M = __m256;
  static inline F set1(float v) { return _mm256_set1_ps(v); }
  static inline F load(const float* p) { return _mm256_loadu_ps(p); }
  static inline void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static inline F fnma(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }
  static inline F max(F a, F b) { return _mm256_max_ps(a, b); }
  static inline M ge(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_GE_OQ); }
  static inline M lt(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
  static inline M both(M a, M b) { return _mm256_and_ps(a, b); }
  static inline bool any(M m) { return _mm256_movemask_ps(m) != 0; }
  static inline bool lane(M m, int l) { return (_mm256_movemask_ps(m) >> l & 1) != 0; }
  static inline F keep(M m, F v) { return _mm256_and_ps(m, v); }
  static inline F drop(M m, F v) { return _mm256_andnot_ps(m, v); }
  static inline F keep_min(M m, F a, F b) { return _mm256_and_ps(m, _mm256_min_ps(a, b)); }
  static inline F select(M m, F yes, F no) { return _mm256_blendv_ps(no, yes, m); }
  static inline M span(int a, int b) {
    const __m256i lanes = _mm256_load_si256(reinterpret_cast<const __m256i*>(kLaneNumbers));
    const __m256i from = _mm256_cmpgt_epi32(lanes, _mm256_set1_epi32(a - 1));
    const __m256i upto = _mm256_cmpgt_epi32(_mm256_set1_epi32(b), lanes);
    return _mm256_castsi256_ps(_mm256_and_si256(from, upto));
  }
  static inline M later(const std::int32_t* p, int i) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm256_castsi256_ps(_mm256_cmpgt_epi32(v, _mm256_set1_epi32(i)));
  }
  static inline V4 fold(F v) { return _mm256_castps256_ps128(v) + _mm256_extractf128_ps(v, 1); }
  static inline F shift_exponent(F value, F biased) {
    const __m256i power = _mm256_slli_epi32(_mm256_castps_si256(biased), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(value), power));
  }
};

constexpr GradKernels kKernels = make_grad_kernels<Avx2, Avx2>();

}  // namespace

const GradKernels& grad_kernels_avx2() { return kKernels; }

}  // namespace streamsplat

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // __x86_64__
