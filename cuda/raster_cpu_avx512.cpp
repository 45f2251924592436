// AVX-512 kernels. The target is set by pragma, not by compiler flags: only the code below the pragma is affected, so
// no standard-library function compiled for AVX-512 can end up in a program that runs on a lesser CPU.
#if defined(__x86_64__)
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "raster_cpu_kernel.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl"))), \
                             apply_to = function)
#else
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // false alarm on every unmasked intrinsic of GCC 12
#pragma GCC target("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl,prefer-vector-width=512")
#endif

#include "raster_cpu_blend.h"

namespace streamsplat {
namespace {

struct Avx512 {
  static constexpr int kWidth = 16;
  static constexpr int kRows = 2;
  using F = __m512;
  using M = __mmask16;
  static inline F set1(float v) { return _mm512_set1_ps(v); }
  static inline F load(const float* p) { return _mm512_load_ps(p); }
  static inline void store(float* p, F v) { _mm512_store_ps(p, v); }
  static inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static inline F add(F a, F b) { return _mm512_add_ps(a, b); }
  static inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static inline F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }
  static inline F min(F a, F b) { return _mm512_min_ps(a, b); }
  static inline F max(F a, F b) { return _mm512_max_ps(a, b); }
  static inline M ge(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
  static inline unsigned bits(M m) { return m; }
  static inline F keep_min(M m, F a, F b) { return _mm512_maskz_min_ps(m, a, b); }
  static inline F keep_mul(M m, F a, F b) { return _mm512_maskz_mul_ps(m, a, b); }
  static inline F select(M m, F yes, F no) { return _mm512_mask_mov_ps(no, m, yes); }
  static inline F negative(F v) { return _mm512_or_ps(v, _mm512_set1_ps(-0.0f)); }
  static inline bool all_negative(F v) { return _mm512_movepi32_mask(_mm512_castps_si512(v)) == 0xFFFF; }
  static inline F shift_exponent(F value, F biased) {
    const __m512i power = _mm512_slli_epi32(_mm512_castps_si512(biased), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(value), power));
  }
};

constexpr SimdKernels kKernels = make_kernels<Avx512>();

}  // namespace

const SimdKernels& avx512_kernels() { return kKernels; }

}  // namespace streamsplat

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // __x86_64__
