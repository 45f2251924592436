// Block kernels of the differentiable rasterizer, written over SIMD vector types; included by one source file per
// instruction set.
//
// exp(-(dx^2/A + dy^2/C)/2) is separable: per Gaussian and block one exponential per column and one per row. The
// columns of a pixel row are taken in vectors that start where the support box starts (not at multiples of the width):
// the box of a Gaussian of one pixel is 5 to 8 pixels wide and fits one vector of 8.
//
// Everything here has internal linkage: code compiled for one instruction set must never be merged by the linker with
// the same function compiled for another.
//
// V provides: kWidth, types F (floats) and M (mask), set1, load, store, fma(a,b,c) = a*b+c, fnma(a,b,c) = c-a*b, min,
// max, ge, lt, both(M,M), any(M), keep(M,F) (0 where the mask is off), select(M,F yes,F no),
// keep_min(M,F,F), span(int a, int b) = lanes a <= l < b, later(const int32*, int i) = lanes with a value above i,
// shift_exponent(F value, F biased) = value * 2^(low bits of biased). F is a GCC/Clang vector: + - * work on it.
#ifndef STREAMSPLAT_RASTER_GRAD_TILE_H_
#define STREAMSPLAT_RASTER_GRAD_TILE_H_

#include <cstdint>

#include "raster_grad_kernel.h"

namespace streamsplat {
namespace {

typedef float V4 __attribute__((vector_size(16)));

constexpr int kPrefetch = 8;     // list entries
constexpr int kLookAlive = 32;   // list entries between two looks for pixels that are still open
constexpr int kRowPadding = 16;  // row tables are written in whole vectors

alignas(64) constexpr float kLanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// exp(x) for x <= 0; relative error below 2e-7. The floor keeps products of two out of the denormal range.
template <class V>
inline typename V::F exp_nonpositive(typename V::F x) {
  using F = typename V::F;
  x = V::max(x, V::set1(-43.0f));
  const F magic = V::set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer kept in the low mantissa bits
  const F biased = V::fma(x, V::set1(1.44269504f), magic);
  const F n = biased - magic;
  F r = V::fnma(n, V::set1(0.693359375f), x);  // ln 2 in two parts, the first exact in 10 bits
  r = V::fnma(n, V::set1(-2.12194440e-4f), r);
  // e^r = 1 + r + r^2 q(r), q fitted to the smallest maximal relative error on |r| <= ln(2)/2.
  F q = V::fma(V::set1(0.00138148292f), r, V::set1(0.00836886186f));
  q = V::fma(q, r, V::set1(0.0416683964f));
  q = V::fma(q, r, V::set1(0.166665196f));
  q = V::fma(q, r, V::set1(0.49999994f));
  const F e = V::fma(r * r, q, r) + V::set1(1.0f);
  return V::shift_exponent(e, biased);
}

// One Gaussian in one block: the box in block coordinates and the factor of every row.
template <class V>
struct Entry {
  int x0, x1, y0, y1;
  float u, v;  // centre in block coordinates
  alignas(64) float row[kBlockHeight + kRowPadding];

  inline Entry(const Splat& s, int x, int y) {
    x0 = s.box_x0 > x ? s.box_x0 - x : 0;
    x1 = s.box_x1 < x + kBlockWidth ? s.box_x1 - x : kBlockWidth;
    y0 = s.box_y0 > y ? s.box_y0 - y : 0;
    y1 = s.box_y1 < y + kBlockHeight ? s.box_y1 - y : kBlockHeight;
    u = s.x - static_cast<float>(x);
    v = s.y - static_cast<float>(y);
  }
  inline void tabulate_rows(const Splat& s) {
    for (int r = y0; r < y1; r += V::kWidth) {
      const auto dy = V::set1(v - static_cast<float>(r)) - V::load(kLanes);
      V::store(row + r, V::set1(s.opacity) * exp_nonpositive<V>(V::set1(-s.half_inv_y) * (dy * dy)));
    }
  }
};

// Columns x0 <= x < x1 of a box as one vector: the first column of the vector, its distances and factors. Lanes
// outside the box get factor 0: the box may end before alpha falls to 1/255, at the published tile rectangle.
template <class V>
struct Columns {
  int first;
  typename V::F dx, factor;

  inline Columns(const Splat& s, float u, int x0, int x1) {
    first = x0 < kBlockWidth - V::kWidth ? x0 : kBlockWidth - V::kWidth;
    dx = V::set1(u - static_cast<float>(first)) - V::load(kLanes);
    const int end = x1 - first < V::kWidth ? x1 - first : V::kWidth;
    factor = V::keep(V::span(x0 - first, end), exp_nonpositive<V>(V::set1(-s.half_inv_x) * (dx * dx)));
  }
};

template <class V>
inline void forward_columns(const Splat& s, const float* row, int x0, int x1, int y0, int y1, float u, int i,
                            BlockPlanes* p) {
  using F = typename V::F;
  using M = typename V::M;
  const Columns<V> c(s, u, x0, x1);
  const F lowest = V::set1(kAlphaMin), highest = V::set1(kAlphaMax), end = V::set1(kTransmittanceMin);
  const F sr = V::set1(s.r), sg = V::set1(s.g), sb = V::set1(s.b), sd = V::set1(s.depth);
  int at = y0 * kBlockWidth + c.first;
  for (int y = y0; y < y1; ++y, at += kBlockWidth) {
    const F raw = c.factor * V::set1(row[y]);
    const F alpha = V::keep_min(V::ge(raw, lowest), raw, highest);
    const F t = V::load(p->t + at);
    F weight = t * alpha;
    F next = t - weight;
    const M stops = V::both(V::lt(next, end), V::ge(t, end));
    if (V::any(stops)) {
      V::store(p->rest + at, V::select(stops, t, V::load(p->rest + at)));
      for (int l = 0; l < V::kWidth; ++l) {
        if (V::lane(stops, l)) p->stop[at + l] = i;
      }
      weight = V::drop(stops, weight);
      next = V::drop(stops, next);
    }
    V::store(p->t + at, next);
    V::store(p->r + at, V::fma(weight, sr, V::load(p->r + at)));
    V::store(p->g + at, V::fma(weight, sg, V::load(p->g + at)));
    V::store(p->b + at, V::fma(weight, sb, V::load(p->b + at)));
    V::store(p->d + at, V::fma(weight, sd, V::load(p->d + at)));
  }
}

// Narrow: the vector of boxes that fit it. Wide: the vector of all others.
template <class Narrow, class Wide>
int forward_block(const Splat* splats, const std::int32_t* list, int count, int x, int y, BlockPlanes* p) {
  int open_begin = 0, open_end = kBlockHeight;  // rows with pixels that are still open
  for (int i = 0; i < count; ++i) {
    if (i % kLookAlive == kLookAlive - 1) {
      const auto open = [p](int row) {
        bool any = false;
        for (int c = 0; c < kBlockWidth; c += Wide::kWidth)
          any |= Wide::any(Wide::ge(Wide::load(p->t + row * kBlockWidth + c), Wide::set1(kTransmittanceMin)));
        return any;
      };
      while (open_begin < open_end && !open(open_begin)) ++open_begin;
      while (open_begin < open_end && !open(open_end - 1)) --open_end;
      if (open_begin == open_end) return i;
    }
    __builtin_prefetch(&splats[list[i + kPrefetch < count ? i + kPrefetch : i]]);
    const Splat& s = splats[list[i]];
    Entry<Narrow> e(s, x, y);
    if (e.y0 < open_begin) e.y0 = open_begin;
    if (e.y1 > open_end) e.y1 = open_end;
    if (e.y0 >= e.y1) continue;
    e.tabulate_rows(s);
    if (e.x1 - e.x0 <= Narrow::kWidth) {
      forward_columns<Narrow>(s, e.row, e.x0, e.x1, e.y0, e.y1, e.u, i, p);
    } else {
      for (int c = e.x0; c < e.x1; c += Wide::kWidth) forward_columns<Wide>(s, e.row, c, e.x1, e.y0, e.y1, e.u, i, p);
    }
  }
  return count;
}

template <class V>
struct Sums {
  typename V::F q{}, qx{}, qxx{}, qy{}, qyy{}, r{}, g{}, b{}, d{};

  // To four lanes each: the sums of four vectors.
  static inline V4 four(V4 a, V4 b, V4 c, V4 d) {
    const V4 ab = __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
    const V4 cd = __builtin_shufflevector(c, d, 0, 4, 1, 5) + __builtin_shufflevector(c, d, 2, 6, 3, 7);
    return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
  }
  inline void add_to(float* to) const {
    V4 a, b4;
    __builtin_memcpy(&a, to, sizeof a);
    __builtin_memcpy(&b4, to + 4, sizeof b4);
    a += four(V::fold(q), V::fold(qx), V::fold(qxx), V::fold(qy));
    b4 += four(V::fold(qyy), V::fold(r), V::fold(g), V::fold(b));
    const V4 d4 = V::fold(d);
    __builtin_memcpy(to, &a, sizeof a);
    __builtin_memcpy(to + 4, &b4, sizeof b4);
    to[8] += (d4[0] + d4[1]) + (d4[2] + d4[3]);
  }
};

// Transmittance is recovered by T_i = T_{i+1} / (1 - alpha_i).
template <class V>
inline void backward_columns(const Splat& s, const float* row, int x0, int x1, int y0, int y1, float u, float v, int i,
                             BlockPlanes* p, Sums<V>* sums) {
  using F = typename V::F;
  using M = typename V::M;
  const Columns<V> c(s, u, x0, x1);
  const F lowest = V::set1(kAlphaMin), highest = V::set1(kAlphaMax), one = V::set1(1.0f);
  const F sr = V::set1(s.r), sg = V::set1(s.g), sb = V::set1(s.b), sd = V::set1(s.depth);
  F q_sum = V::set1(0.0f);
  int at = y0 * kBlockWidth + c.first;
  for (int y = y0; y < y1; ++y, at += kBlockWidth) {
    const F raw = c.factor * V::set1(row[y]);
    const M blended = V::both(V::ge(raw, lowest), V::later(p->stop + at, i));
    const F alpha = V::keep_min(blended, raw, highest);
    const F inverse = one / (one - alpha);
    const F t = V::load(p->t + at) * inverse;
    V::store(p->t + at, t);
    const F weight = t * alpha;
    const F ur = V::load(p->r + at), ug = V::load(p->g + at), ub = V::load(p->b + at), ud = V::load(p->d + at);
    const F value = V::fma(ur, sr, V::fma(ug, sg, V::fma(ub, sb, ud * sd)));
    const F rest = V::load(p->rest + at);
    // dL/dalpha = T * value - rest / (1 - alpha); q = dL/dpower = alpha * dL/dalpha.
    const F grad = V::fnma(rest, inverse, t * value);
    V::store(p->rest + at, V::fma(weight, value, rest));
    const F q = V::keep(V::lt(raw, highest), alpha * grad);
    const F dy = V::set1(v - static_cast<float>(y));
    const F qdy = q * dy;
    q_sum += q;
    sums->qy += qdy;
    sums->qyy = V::fma(qdy, dy, sums->qyy);
    sums->r = V::fma(weight, ur, sums->r);
    sums->g = V::fma(weight, ug, sums->g);
    sums->b = V::fma(weight, ub, sums->b);
    sums->d = V::fma(weight, ud, sums->d);
  }
  const F qdx = q_sum * c.dx;
  sums->q += q_sum;
  sums->qx += qdx;
  sums->qxx = V::fma(qdx, c.dx, sums->qxx);
}

template <class Narrow, class Wide>
void backward_block(const Splat* splats, const std::int32_t* list, int count, int x, int y, BlockPlanes* p,
                    bool by_entry, float* sums) {
  for (int i = count - 1; i >= 0; --i) {
    const std::int32_t ahead = list[i >= kPrefetch ? i - kPrefetch : 0];
    __builtin_prefetch(&splats[ahead]);
    const std::int32_t index = list[i];
    const Splat& s = splats[index];
    float* const to = sums + static_cast<std::int64_t>(by_entry ? i : index) * kGradSums;
    __builtin_prefetch(sums + static_cast<std::int64_t>(by_entry ? i : ahead) * kGradSums);
    Entry<Narrow> e(s, x, y);
    e.tabulate_rows(s);
    if (e.x1 - e.x0 <= Narrow::kWidth) {
      Sums<Narrow> total;
      backward_columns<Narrow>(s, e.row, e.x0, e.x1, e.y0, e.y1, e.u, e.v, i, p, &total);
      total.add_to(to);
    } else {
      Sums<Wide> total;
      for (int c = e.x0; c < e.x1; c += Wide::kWidth)
        backward_columns<Wide>(s, e.row, c, e.x1, e.y0, e.y1, e.u, e.v, i, p, &total);
      total.add_to(to);
    }
  }
}

template <class Narrow, class Wide>
constexpr GradKernels make_grad_kernels() {
  return {forward_block<Narrow, Wide>, backward_block<Narrow, Wide>};
}

}  // namespace
}  // namespace streamsplat

#endif  // STREAMSPLAT_RASTER_GRAD_TILE_H_
