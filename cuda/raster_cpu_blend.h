// Tile blending, written once over a SIMD vector type V; included by one source file per instruction set.
//
// A tile is blended in groups of kRows rows by V::kWidth columns whose accumulators (transmittance, r, g, b, depth)
// stay in registers. Gaussians are taken in chunks of 64: first the per-column and per-row exponentials of the chunk
// are tabulated, then every group walks the Gaussians whose support box touches it, found as a 64-bit mask.
//
// Everything here has internal linkage: code compiled for one instruction set must never be merged by the linker with
// the same function compiled for another.
//
// V provides: kWidth, kRows, type F (floats) and M (mask), set1, load, store, mul, add, fma(a,b,c) = a*b+c,
// fnma(a,b,c) = c-a*b, min, max, ge, keep_min(M,F,F) and keep_mul(M,F,F) (0 where the mask is off), select(M,F,F),
// negative(F) = -|F|, all_negative(F), shift_exponent(F value, F biased) = value * 2^(low bits of biased).
#ifndef STREAMSPLAT_RASTER_CPU_BLEND_H_
#define STREAMSPLAT_RASTER_CPU_BLEND_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "raster_cpu_kernel.h"

namespace streamsplat {
namespace {

constexpr int kChunk = 64;  // Gaussians per pass: one bit each in a 64-bit mask, tables of 8 KB
static_assert(kTile == 16, "tables and masks below are laid out for tiles of 16x16 pixels");

// exp(x) for x in [-87, 87], relative error below 2e-7. x = n ln 2 + r with |r| <= ln(2)/2; e^r = 1 + r + r^2 q(r) with
// q fitted to the smallest maximal relative error (3.1e-9 before rounding).
template <class V>
inline typename V::F exponential(typename V::F x) {
  using F = typename V::F;
  const F magic = V::set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer kept in the low mantissa bits
  const F biased = V::fma(x, V::set1(1.44269504f), magic);
  const F n = V::add(biased, V::set1(-12582912.0f));
  F r = V::fnma(n, V::set1(0.693359375f), x);  // ln 2 in two parts, the first exact in 10 bits
  r = V::fnma(n, V::set1(-2.12194440e-4f), r);
  F q = V::fma(V::set1(0.00138148292f), r, V::set1(0.00836886186f));
  q = V::fma(q, r, V::set1(0.0416683964f));
  q = V::fma(q, r, V::set1(0.166665196f));
  q = V::fma(q, r, V::set1(0.49999994f));
  const F e = V::add(V::fma(V::mul(r, r), q, r), V::set1(1.0f));
  return V::shift_exponent(e, biased);
}

// Weights of blending never need exp below e^-40; the clamp keeps products out of the slow denormal range.
template <class V>
inline typename V::F weight_exponential(typename V::F x) {
  return exponential<V>(V::max(x, V::set1(-40.0f)));
}

alignas(64) constexpr float kMinusIota[kTile] = {0, -1, -2, -3, -4, -5, -6, -7, -8, -9, -10, -11, -12, -13, -14, -15};

// Accumulators of a tile. Transmittance is stored negated once a pixel is finished, or lies outside the image.
struct TileState {
  alignas(64) float transmittance[kTile][kTile];
  alignas(64) float channel[4][kTile][kTile];  // r, g, b, depth
};

// General: what is left of a Gaussian to be worked out per pixel; see `Splat`.
struct alignas(32) Conic {
  float minus_half_inv_x, minus_half_inv_y, shear, opacity;
  float dy;  // of row 0
};

struct ChunkTables {
  alignas(64) float column[kChunk][kTile];   // canonical: opacity * exp(-dx^2 ..); general: dx
  alignas(64) float row[kChunk][kTile];      // canonical: exp(-dy^2 ..); general: unused
  alignas(64) float colour[kChunk][4];       // r, g, b, depth
  Conic conic[kChunk];                       // general
  alignas(64) std::uint8_t rows[kChunk];     // bit i: row group i is touched
  alignas(64) std::uint8_t columns[kChunk];  // bit i: column block i is touched
};

// Transposes 64 bytes of 8 bits into 8 words of 64 bits: word i holds bit i of every byte.
inline void transpose_bits(const std::uint8_t bytes[kChunk], std::uint64_t words[8]) {
  std::memset(words, 0, 8 * sizeof(std::uint64_t));
  for (int k = 0; k < kChunk / 8; ++k) {
    std::uint64_t x = 0;
    for (int i = 0; i < 8; ++i) x |= static_cast<std::uint64_t>(bytes[8 * k + i]) << (8 * i);
    std::uint64_t t = (x ^ (x >> 7)) & 0x00AA00AA00AA00AAull;
    x ^= t ^ (t << 7);
    t = (x ^ (x >> 14)) & 0x0000CCCC0000CCCCull;
    x ^= t ^ (t << 14);
    t = (x ^ (x >> 28)) & 0x00000000F0F0F0F0ull;
    x ^= t ^ (t << 28);
    for (int i = 0; i < 8; ++i) words[i] |= ((x >> (8 * i)) & 0xFF) << (8 * k);
  }
}

// Bits [begin / step, ceil(end / step)) for a pixel range clipped to the tile.
inline std::uint8_t range_bits(int begin, int end, int step) {
  begin = begin < 0 ? 0 : begin;
  end = end > kTile ? kTile : end;
  if (begin >= end) return 0;
  const unsigned upto = (1u << ((end + step - 1) / step)) - 1u;
  const unsigned below = (1u << (begin / step)) - 1u;
  return static_cast<std::uint8_t>(upto & ~below);
}

// Of 16 bits, one per row or column: bit i of the result is set where any bit of the i-th run of kStep is.
template <int kStep>
inline std::uint8_t any_of_runs(unsigned bits) {
  static_assert(kStep == 2 || kStep == 4 || kStep == 8 || kStep == 16, "a power of two that divides the tile");
  if (kStep == 16) return bits != 0;
  if (kStep == 8) return static_cast<std::uint8_t>(((bits & 0xFF) != 0) | ((bits >> 8) != 0) << 1);
  bits |= bits >> 1;
  if (kStep == 4) {
    bits = (bits | bits >> 2) & 0x1111;
    bits = (bits | bits >> 3) & 0x0303;
    return static_cast<std::uint8_t>((bits | bits >> 6) & 0x0F);
  }
  bits &= 0x5555;
  bits = (bits | bits >> 1) & 0x3333;
  bits = (bits | bits >> 2) & 0x0F0F;
  return static_cast<std::uint8_t>((bits | bits >> 4) & 0xFF);
}

// Lanes of kTile values that can reach alpha 1/255 when multiplied by `scale`; the margin covers rounding.
template <class V>
inline unsigned reaching(const float* values, float scale) {
  unsigned bits = 0;
  for (int i = 0; i < kTile; i += V::kWidth)
    bits |= V::bits(V::ge(V::mul(V::load(values + i), V::set1(scale)), V::set1(0.9999f * kAlphaMin))) << i;
  return bits;
}

// The pixel of the tile nearest to coordinate v.
inline int nearest(float v) {
  v = v + 0.5f > 0.0f ? v + 0.5f : 0.0f;
  return static_cast<int>(v < 15.0f ? v : 15.0f);
}

// Separable: alpha(row, column) = row[] * column[]. Rows and columns that cannot reach 1/255 even where the other
// factor is largest are left out, so a tile at the corner of a Gaussian's support box costs little.
template <class V>
inline void tabulate_canonical(const Splat& s, float x, float y, int e, ChunkTables& tables) {
  for (int i = 0; i < kTile; i += V::kWidth) {
    const auto dx = V::add(V::load(kMinusIota + i), V::set1(x));
    const auto dy = V::add(V::load(kMinusIota + i), V::set1(y));
    const auto ex = V::mul(V::mul(dx, dx), V::set1(-s.half_inv_x));
    const auto ey = V::mul(V::mul(dy, dy), V::set1(-s.half_inv_y));
    V::store(tables.column[e] + i, V::mul(weight_exponential<V>(ex), V::set1(s.opacity)));
    V::store(tables.row[e] + i, weight_exponential<V>(ey));
  }
  tables.rows[e] = any_of_runs<V::kRows>(reaching<V>(tables.row[e], tables.column[e][nearest(x)]));
  if (V::kWidth < kTile)
    tables.columns[e] = any_of_runs<V::kWidth>(reaching<V>(tables.column[e], tables.row[e][nearest(y)]));
}

// General: the exponent along a row is -(dx + shear dy)^2 half_inv_x - dy^2 half_inv_y. A row is left out if it cannot
// reach 1/255 at the point of the tile's width that is nearest to its maximum.
template <class V>
inline void tabulate_general(const TileJob& job, const Splat& s, float x, float y, int e, ChunkTables& tables) {
  alignas(64) float largest[kTile];
  for (int i = 0; i < kTile; i += V::kWidth) {
    V::store(tables.column[e] + i, V::add(V::load(kMinusIota + i), V::set1(x)));
    const auto dy = V::add(V::load(kMinusIota + i), V::set1(y));
    const auto left = V::fma(dy, V::set1(s.shear), V::set1(x));  // at column 0; column 15 is 15 less
    const auto right = V::add(left, V::set1(-15.0f));
    const auto u = V::max(V::max(right, V::mul(left, V::set1(-1.0f))), V::set1(0.0f));
    const auto ey = V::mul(V::mul(dy, dy), V::set1(-s.half_inv_y));
    V::store(largest + i, weight_exponential<V>(V::fma(V::mul(u, u), V::set1(-s.half_inv_x), ey)));
  }
  tables.conic[e] = {-s.half_inv_x, -s.half_inv_y, s.shear, s.opacity, y};
  tables.rows[e] = any_of_runs<V::kRows>(reaching<V>(largest, s.opacity));
  if (V::kWidth < kTile) tables.columns[e] = range_bits(s.box_x0 - job.x0, s.box_x1 - job.x0, V::kWidth);
}

template <class V, bool kCanonical>
inline void tabulate(const TileJob& job, std::uint32_t first, int count, ChunkTables& tables) {
  constexpr std::uint32_t kAhead = 16;  // Gaussians of a tile are scattered in memory: fetch some ahead
  for (int e = 0; e < count; ++e) {
    if (first + e + kAhead < job.count) __builtin_prefetch(&job.splats[job.list[first + e + kAhead]]);
    const Splat& s = job.splats[job.list[first + e]];
    const float x = s.x - static_cast<float>(job.x0);
    const float y = s.y - static_cast<float>(job.y0);
    if (kCanonical)
      tabulate_canonical<V>(s, x, y, e, tables);
    else
      tabulate_general<V>(job, s, x, y, e, tables);
    std::memcpy(tables.colour[e], &s.r, 4 * sizeof(float));
  }
}

// Blends the Gaussians of `mask` into one group; true when all its pixels are finished.
template <class V, bool kCanonical>
inline bool blend_group(const ChunkTables& tables, std::uint64_t mask, int row, int column, TileState& state) {
  using F = typename V::F;
  F transmittance[V::kRows], channel[4][V::kRows];
  for (int i = 0; i < V::kRows; ++i) {
    transmittance[i] = V::load(&state.transmittance[row + i][column]);
    for (int c = 0; c < 4; ++c) channel[c][i] = V::load(&state.channel[c][row + i][column]);
  }
  const F alpha_max = V::set1(kAlphaMax), alpha_min = V::set1(kAlphaMin), stop = V::set1(kTransmittanceMin);
  for (; mask != 0; mask &= mask - 1) {
    const int e = __builtin_ctzll(mask);
    const F gx = V::load(tables.column[e] + column);
    const F colour[4] = {V::set1(tables.colour[e][0]), V::set1(tables.colour[e][1]), V::set1(tables.colour[e][2]),
                         V::set1(tables.colour[e][3])};
    for (int i = 0; i < V::kRows; ++i) {
      F alpha;
      if (kCanonical) {
        alpha = V::mul(gx, V::set1(tables.row[e][row + i]));
      } else {
        const Conic& conic = tables.conic[e];
        const float dy = conic.dy - static_cast<float>(row + i);
        const F u = V::add(gx, V::set1(conic.shear * dy));
        const F power =
            V::fma(V::mul(u, u), V::set1(conic.minus_half_inv_x), V::set1(conic.minus_half_inv_y * dy * dy));
        alpha = V::mul(weight_exponential<V>(power), V::set1(conic.opacity));
      }
      // An alpha below 1/255 becomes 0, which leaves an open pixel as it is: its transmittance is at least the limit.
      alpha = V::keep_min(V::ge(alpha, alpha_min), alpha, alpha_max);
      const F t = transmittance[i];
      const F next = V::fnma(t, alpha, t);
      const auto open = V::ge(next, stop);  // never true for a finished pixel, whose transmittance is negative
      const F weight = V::keep_mul(open, t, alpha);
      for (int c = 0; c < 4; ++c) channel[c][i] = V::fma(weight, colour[c], channel[c][i]);
      transmittance[i] = V::select(open, next, V::negative(t));
    }
  }
  bool finished = true;
  for (int i = 0; i < V::kRows; ++i) {
    V::store(&state.transmittance[row + i][column], transmittance[i]);
    for (int c = 0; c < 4; ++c) V::store(&state.channel[c][row + i][column], channel[c][i]);
    finished = finished && V::all_negative(transmittance[i]);
  }
  return finished;
}

inline void clear_state(TileState& state, int columns, int rows) {
  std::memset(&state, 0, sizeof state);
  for (int y = 0; y < kTile; ++y)
    for (int x = 0; x < kTile; ++x) state.transmittance[y][x] = (y < rows && x < columns) ? 1.0f : -1.0f;
}

// alpha = sum of weights = 1 - transmittance (the sum telescopes).
inline void write_tile(const TileJob& job, const TileState& state, int columns, int rows) {
  for (int y = 0; y < rows; ++y) {
    alignas(64) float alpha[kTile], expected[kTile], left[kTile], colour[3][kTile];
    for (int x = 0; x < kTile; ++x) {
      left[x] = __builtin_fabsf(state.transmittance[y][x]);
      alpha[x] = 1.0f - left[x];
      const float divisor = alpha[x] > 0.0f ? alpha[x] : 1.0f;  // depth is 0 where alpha is
      expected[x] = state.channel[3][y][x] / divisor;
    }
    for (int c = 0; c < 3; ++c)
      for (int x = 0; x < kTile; ++x) colour[c][x] = state.channel[c][y][x] + left[x] * job.background[c];
    const std::int64_t at = static_cast<std::int64_t>(job.y0 + y) * job.width + job.x0;
    float* rgb = job.rgb + 3 * at;
    for (int x = 0; x < columns; ++x)
      for (int c = 0; c < 3; ++c) rgb[3 * x + c] = colour[c][x];
    const std::size_t bytes = static_cast<std::size_t>(columns) * sizeof(float);
    std::memcpy(job.alpha + at, alpha, bytes);
    std::memcpy(job.depth + at, state.channel[3][y], bytes);
    std::memcpy(job.expected_depth + at, expected, bytes);
  }
}

template <class V, bool kCanonical>
void blend_tile(const TileJob& job) {
  constexpr int kGroupRows = kTile / V::kRows, kGroupColumns = kTile / V::kWidth;
  static_assert(kGroupRows <= 8 && kGroupColumns <= 8, "one byte of group bits per Gaussian");
  const int columns = job.width - job.x0 < kTile ? job.width - job.x0 : kTile;
  const int rows = job.height - job.y0 < kTile ? job.height - job.y0 : kTile;
  TileState state;
  ChunkTables tables;
  clear_state(state, columns, rows);
  bool finished[kGroupRows][kGroupColumns] = {};
  int unfinished = 0;
  for (int i = 0; i < kGroupRows; ++i)
    for (int j = 0; j < kGroupColumns; ++j) {
      finished[i][j] = i * V::kRows >= rows || j * V::kWidth >= columns;
      unfinished += finished[i][j] ? 0 : 1;
    }
  for (std::uint32_t first = 0; first < job.count && unfinished > 0; first += kChunk) {
    const int count = job.count - first < kChunk ? static_cast<int>(job.count - first) : kChunk;
    tabulate<V, kCanonical>(job, first, count, tables);
    std::memset(tables.rows + count, 0, static_cast<std::size_t>(kChunk - count));
    std::memset(tables.columns + count, 0, static_cast<std::size_t>(kChunk - count));
    std::uint64_t row_masks[8], column_masks[8] = {};
    transpose_bits(tables.rows, row_masks);
    if (kGroupColumns > 1) transpose_bits(tables.columns, column_masks);
    for (int i = 0; i < kGroupRows; ++i)
      for (int j = 0; j < kGroupColumns; ++j) {
        const std::uint64_t mask = kGroupColumns == 1 ? row_masks[i] : row_masks[i] & column_masks[j];
        if (finished[i][j] || mask == 0) continue;
        if (blend_group<V, kCanonical>(tables, mask, i * V::kRows, j * V::kWidth, state)) {
          finished[i][j] = true;
          --unfinished;
        }
      }
  }
  write_tile(job, state, columns, rows);
}

template <class V>
void exponential_array(const float* in, float* out, int count) {
  for (int i = 0; i < count; i += V::kWidth)
    V::store(out + i,
             exponential<V>(V::min(V::max(V::load(in + i), V::set1(-kFadeExponentMax)), V::set1(kFadeExponentMax))));
}

template <class V>
constexpr SimdKernels make_kernels() {
  return {&blend_tile<V, true>, &blend_tile<V, false>, &exponential_array<V>};
}

}  // namespace
}  // namespace streamsplat

#endif  // STREAMSPLAT_RASTER_CPU_BLEND_H_
