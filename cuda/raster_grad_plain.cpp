// Block kernels without instruction-set extensions. The vectors of four are the compiler's own (GCC and Clang): SSE2
// on x86-64, NEON on aarch64, scalar code elsewhere.
#if defined(__aarch64__)
#include <arm_neon.h>
#endif

#include <cstdint>
#include <cstring>

#include "raster_grad_kernel.h"
#include "raster_grad_tile.h"

namespace streamsplat {
namespace {

struct Plain {
  static constexpr int kWidth = 4;
  typedef float F __attribute__((vector_size(16)));
  typedef std::int32_t M __attribute__((vector_size(16)));
  static inline F set1(float v) { return F{v, v, v, v}; }
  static inline F load(const float* p) {
    F v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static inline void store(float* p, F v) { std::memcpy(p, &v, sizeof v); }
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
  static inline M lt(F a, F b) { return a < b; }
  static inline M both(M a, M b) { return a & b; }
  static inline bool any(M m) { return (m[0] | m[1] | m[2] | m[3]) != 0; }
  static inline bool lane(M m, int l) { return m[l] != 0; }
  static inline F keep(M m, F v) { return reinterpret_cast<F>(m & reinterpret_cast<M>(v)); }
  static inline F drop(M m, F v) { return reinterpret_cast<F>(~m & reinterpret_cast<M>(v)); }
  static inline F keep_min(M m, F a, F b) { return keep(m, min(a, b)); }
  static inline F select(M m, F yes, F no) {
    return reinterpret_cast<F>((m & reinterpret_cast<M>(yes)) | (~m & reinterpret_cast<M>(no)));
  }
  static inline M span(int a, int b) {
    const M lanes = {0, 1, 2, 3};
    return (lanes >= M{a, a, a, a}) & (lanes < M{b, b, b, b});
  }
  static inline M later(const std::int32_t* p, int i) {
    M v;
    std::memcpy(&v, p, sizeof v);
    return v > M{i, i, i, i};
  }
  static inline V4 fold(F v) { return v; }
  static inline F shift_exponent(F value, F biased) {
    typedef std::uint32_t U __attribute__((vector_size(16)));
    return reinterpret_cast<F>(reinterpret_cast<U>(value) + (reinterpret_cast<U>(biased) << 23));
  }
};

constexpr GradKernels kKernels = make_grad_kernels<Plain, Plain>();

}  // namespace

const GradKernels& grad_kernels_plain() { return kKernels; }

}  // namespace streamsplat
