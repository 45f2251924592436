// AVX-512 block kernels; see raster_cpu_avx512.cpp for why the target is set by pragma. Boxes of up to 8 pixels use
// vectors of 8, wider ones vectors of 16.
#if defined(__x86_64__)
#include <immintrin.h>

#include <cstdint>

#include "raster_grad_kernel.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl"))), \
                             apply_to = function)
#else
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // false alarm on every unmasked intrinsic of GCC 12
#pragma GCC target("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl,prefer-vector-width=512")
#endif

#include "raster_grad_tile.h"

namespace streamsplat {
namespace {

constexpr unsigned lanes_between(int a, int b) { return ((1u << b) - 1u) & ~((1u << a) - 1u); }

struct Avx512x8 {
  static constexpr int kWidth = 8;
  using F = __m256;
  using M = __mmask8;
  static inline F set1(float v) { return _mm256_set1_ps(v); }
  static inline F load(const float* p) { return _mm256_loadu_ps(p); }
  static inline void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static inline F fnma(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }
  static inline F max(F a, F b) { return _mm256_max_ps(a, b); }
  static inline M ge(F a, F b) { return _mm256_cmp_ps_mask(a, b, _CMP_GE_OQ); }
  static inline M lt(F a, F b) { return _mm256_cmp_ps_mask(a, b, _CMP_LT_OQ); }
  static inline M both(M a, M b) { return a & b; }
  static inline bool any(M m) { return m != 0; }
  static inline bool lane(M m, int l) { return (m >> l & 1) != 0; }
  static inline F keep(M m, F v) { return _mm256_maskz_mov_ps(m, v); }
  static inline F drop(M m, F v) { return _mm256_maskz_mov_ps(static_cast<M>(~m), v); }
  static inline F keep_min(M m, F a, F b) { return _mm256_maskz_min_ps(m, a, b); }
  static inline F select(M m, F yes, F no) { return _mm256_mask_mov_ps(no, m, yes); }
  static inline M span(int a, int b) { return static_cast<M>(lanes_between(a, b)); }
  static inline M later(const std::int32_t* p, int i) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm256_cmpgt_epi32_mask(v, _mm256_set1_epi32(i));
  }
  static inline V4 fold(F v) { return _mm256_castps256_ps128(v) + _mm256_extractf128_ps(v, 1); }
  static inline F shift_exponent(F value, F biased) {
    const __m256i power = _mm256_slli_epi32(_mm256_castps_si256(biased), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(value), power));
  }
};

struct Avx512 {
  static constexpr int kWidth = 16;
  using F = __m512;
  using M = __mmask16;
  static inline F set1(float v) { return _mm512_set1_ps(v); }
  static inline F load(const float* p) { return _mm512_loadu_ps(p); }
  static inline void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static inline F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }
  static inline F max(F a, F b) { return _mm512_max_ps(a, b); }
  static inline M ge(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
  static inline M lt(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
  static inline M both(M a, M b) { return a & b; }
  static inline bool any(M m) { return m != 0; }
  static inline bool lane(M m, int l) { return (m >> l & 1) != 0; }
  static inline F keep(M m, F v) { return _mm512_maskz_mov_ps(m, v); }
  static inline F drop(M m, F v) { return _mm512_maskz_mov_ps(static_cast<M>(~m), v); }
  static inline F keep_min(M m, F a, F b) { return _mm512_maskz_min_ps(m, a, b); }
  static inline F select(M m, F yes, F no) { return _mm512_mask_mov_ps(no, m, yes); }
  static inline M span(int a, int b) { return static_cast<M>(lanes_between(a, b)); }
  static inline M later(const std::int32_t* p, int i) {
    return _mm512_cmpgt_epi32_mask(_mm512_loadu_si512(p), _mm512_set1_epi32(i));
  }
  static inline V4 fold(F v) { return Avx512x8::fold(_mm512_castps512_ps256(v) + _mm512_extractf32x8_ps(v, 1)); }
  static inline F shift_exponent(F value, F biased) {
    const __m512i power = _mm512_slli_epi32(_mm512_castps_si512(biased), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(value), power));
  }
};

constexpr GradKernels kKernels = make_grad_kernels<Avx512x8, Avx512>();

}  // namespace

const GradKernels& grad_kernels_avx512() { return kKernels; }

}  // namespace streamsplat

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // __x86_64__
