#include "raster_grad.h"

#include <algorithm>
#include <atomic>
#include <climits>
#include <cmath>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "splat_math.h"

namespace streamsplat {
namespace {

constexpr int kTilePixels = kTile * kTile;
// Per Gaussian and tile: q, q dx, q dx^2, q dy, q dy^2, r, g, b, depth (q = dL/dpower).
constexpr int kGradSums = 9;

struct alignas(64) TilePlanes {
  float r[kTilePixels], g[kTilePixels], b[kTilePixels], d[kTilePixels], t[kTilePixels], suffix[kTilePixels];
  std::int32_t stop[kTilePixels];
};

namespace kernels {
#include "raster_grad_tile.inc"
}  // namespace kernels

// Runs fn(0..tasks-1) on up to `threads` threads and rethrows the first exception.
template <class Fn>
void parallel_for(int tasks, int threads, Fn&& fn) {
  const int workers = std::max(1, std::min(threads, tasks));
  if (workers == 1) {
    for (int i = 0; i < tasks; ++i) fn(i);
    return;
  }
  std::atomic<int> next{0};
  std::exception_ptr error;
  std::mutex error_lock;
  auto work = [&] {
    try {
      for (int i = next++; i < tasks; i = next++) fn(i);
    } catch (...) {
      std::lock_guard<std::mutex> hold(error_lock);
      if (!error) error = std::current_exception();
      next = tasks;
    }
  };
  std::vector<std::thread> pool;
  try {
    for (int i = 1; i < workers; ++i) pool.emplace_back(work);
  } catch (const std::exception&) {
    // Out of threads: the ones that started, and this one, do all of it.
  }
  work();
  for (std::thread& t : pool) t.join();
  if (error) std::rethrow_exception(error);
}

struct SortEntry {
  std::uint32_t key;  // bits of a positive depth: ordered like the depth
  std::int32_t slot;
};

// Stable least-significant-digit radix sort, three digits of 11 bits.
void sort_by_key(std::vector<SortEntry>* entries, std::vector<SortEntry>* scratch) {
  constexpr int kBits = 11, kBuckets = 1 << kBits;
  std::vector<std::uint32_t> counts(3 * kBuckets, 0);
  for (const SortEntry& e : *entries) {
    for (int pass = 0; pass < 3; ++pass) ++counts[pass * kBuckets + ((e.key >> (pass * kBits)) & (kBuckets - 1))];
  }
  scratch->resize(entries->size());
  for (int pass = 0; pass < 3; ++pass) {
    std::uint32_t* offsets = counts.data() + pass * kBuckets;
    std::uint32_t sum = 0;
    for (int i = 0; i < kBuckets; ++i) sum += std::exchange(offsets[i], sum);
    for (const SortEntry& e : *entries) (*scratch)[offsets[(e.key >> (pass * kBits)) & (kBuckets - 1)]++] = e;
    entries->swap(*scratch);
  }
}

bool all_finite(const float* p, int n) {
  for (int i = 0; i < n; ++i) {
    if (!std::isfinite(p[i])) return false;
  }
  return true;
}

// Clamps in float so that extreme but valid positions do not overflow the integer.
int clamp_pixel(float v, int lo, int hi) {
  return v <= static_cast<float>(lo) ? lo : (v >= static_cast<float>(hi) ? hi : static_cast<int>(v));
}

// Projects one Gaussian. False if it is culled: not finite, behind the camera, or no pixel can reach alpha 1/255.
bool project(const GradInputs& in, std::size_t row, const GradState& state, GradSplat* s) {
  const float *xz = in.xz + 2 * row, *scale = in.scale + 2 * row, *rgb = in.rgb + 3 * row;
  const float depth = in.depth[row], opacity = in.opacity[row];
  if (!(depth > 0.0f) || !(opacity >= kAlphaMin)) return false;
  if (!std::isfinite(depth) || !std::isfinite(opacity)) return false;
  if (!all_finite(xz, 2) || !all_finite(scale, 2) || !all_finite(rgb, 3)) return false;
  const float sx = 0.5f * static_cast<float>(state.width) * scale[0];
  const float sy = 0.5f * static_cast<float>(state.height) * scale[1];
  const float var_x = sx * sx + kLowPass, var_y = sy * sy + kLowPass;
  s->u = ndc_to_pixel(xz[0] * kHomogeneous, state.width);
  s->v = ndc_to_pixel(-xz[1] * kHomogeneous, state.height);
  if (!std::isfinite(var_x) || !std::isfinite(var_y) || !std::isfinite(s->u) || !std::isfinite(s->v)) return false;
  const float radius = splat_radius(var_x, var_y, var_x * var_y);
  // alpha >= 1/255 needs dx^2 / var <= reach; the margin keeps rounding from losing a pixel the kernel would take.
  const float reach = 2.0f * std::log(255.0f * opacity) + 1e-3f;
  const float half_x = std::sqrt(reach * var_x) + 1e-2f, half_y = std::sqrt(reach * var_y) + 1e-2f;
  const int left = kTile * tile_begin(s->u, radius, state.tiles_x);
  const int right = std::min(kTile * tile_end(s->u, radius, state.tiles_x), state.width);
  const int top = kTile * tile_begin(s->v, radius, state.tiles_y);
  const int bottom = std::min(kTile * tile_end(s->v, radius, state.tiles_y), state.height);
  if (left >= right || top >= bottom) return false;
  const int x0 = clamp_pixel(std::ceil(s->u - half_x), left, right);
  const int x1 = clamp_pixel(std::floor(s->u + half_x) + 1.0f, left, right);
  const int y0 = clamp_pixel(std::ceil(s->v - half_y), top, bottom);
  const int y1 = clamp_pixel(std::floor(s->v + half_y) + 1.0f, top, bottom);
  if (x0 >= x1 || y0 >= y1) return false;
  s->x0 = static_cast<std::int16_t>(x0);
  s->x1 = static_cast<std::int16_t>(x1);
  s->y0 = static_cast<std::int16_t>(y0);
  s->y1 = static_cast<std::int16_t>(y1);
  s->inv_var_x = 1.0f / var_x;
  s->inv_var_y = 1.0f / var_y;
  s->opacity = opacity;
  s->r = rgb[0];
  s->g = rgb[1];
  s->b = rgb[2];
  s->depth = depth;
  return true;
}

void prepare(const GradInputs& in, int b, GradState* state) {
  GradImage& image = state->images[b];
  std::vector<GradSplat> found;
  std::vector<SortEntry> entries, scratch;
  found.reserve(state->count);
  entries.reserve(state->count);
  for (int i = 0; i < state->count; ++i) {
    GradSplat s;
    if (!project(in, static_cast<std::size_t>(b) * state->count + i, *state, &s)) continue;
    s.index = i;
    SortEntry e;
    std::memcpy(&e.key, &s.depth, sizeof e.key);
    e.slot = static_cast<std::int32_t>(found.size());
    entries.push_back(e);
    found.push_back(s);
  }
  sort_by_key(&entries, &scratch);

  const int tiles = state->tiles_x * state->tiles_y;
  image.splats.resize(found.size());
  image.tile_begin.assign(tiles + 1, 0);
  auto each_tile = [&](const GradSplat& s, auto&& fn) {
    for (int ty = s.y0 / kTile; ty <= (s.y1 - 1) / kTile; ++ty) {
      for (int tx = s.x0 / kTile; tx <= (s.x1 - 1) / kTile; ++tx) fn(ty * state->tiles_x + tx);
    }
  };
  for (std::size_t i = 0; i < entries.size(); ++i) {
    image.splats[i] = found[entries[i].slot];
    each_tile(image.splats[i], [&](int tile) { ++image.tile_begin[tile + 1]; });
  }
  for (int i = 0; i < tiles; ++i) image.tile_begin[i + 1] += image.tile_begin[i];
  image.list.resize(image.tile_begin[tiles]);
  std::vector<std::int32_t> cursor(image.tile_begin.begin(), image.tile_begin.end() - 1);
  for (std::size_t i = 0; i < image.splats.size(); ++i) {
    each_tile(image.splats[i], [&](int tile) { image.list[cursor[tile]++] = static_cast<std::int32_t>(i); });
  }
  image.tile_blended.assign(tiles, 0);
  image.transmittance.resize(static_cast<std::size_t>(tiles) * kTilePixels);
  image.stop.resize(static_cast<std::size_t>(tiles) * kTilePixels);
}

// Where a tile lies: its first pixel and how much of it is inside the image.
struct TilePlace {
  TilePlace(const GradState& state, int tile)
      : px(tile % state.tiles_x * kTile),
        py(tile / state.tiles_x * kTile),
        columns(std::min(kTile, state.width - px)),
        rows(std::min(kTile, state.height - py)) {}
  int px, py, columns, rows;
};

void blend(GradState* state, int b, int tile, const float* background, const GradOutputs& out) {
  GradImage& image = state->images[b];
  const TilePlace place(*state, tile);
  TilePlanes planes;
  std::memset(&planes, 0, sizeof planes);
  for (int y = 0; y < kTile; ++y) {
    for (int x = 0; x < kTile; ++x) {
      const bool inside = x < place.columns && y < place.rows;
      planes.t[y * kTile + x] = inside ? 1.0f : -1.0f;
      planes.stop[y * kTile + x] = inside ? INT_MAX : 0;
    }
  }
  const std::int32_t first = image.tile_begin[tile];
  image.tile_blended[tile] = kernels::forward_tile(image.splats.data(), image.list.data() + first,
                                                   image.tile_begin[tile + 1] - first, place.px, place.py, &planes);
  const std::size_t saved = static_cast<std::size_t>(tile) * kTilePixels;
  for (int i = 0; i < kTilePixels; ++i) image.transmittance[saved + i] = std::fabs(planes.t[i]);
  std::memcpy(image.stop.data() + saved, planes.stop, sizeof planes.stop);
  for (int y = 0; y < place.rows; ++y) {
    for (int x = 0; x < place.columns; ++x) {
      const int i = y * kTile + x;
      const float t = std::fabs(planes.t[i]);
      const std::size_t pixel =
          (static_cast<std::size_t>(b) * state->height + place.py + y) * state->width + place.px + x;
      out.rgb[3 * pixel] = planes.r[i] + t * background[0];
      out.rgb[3 * pixel + 1] = planes.g[i] + t * background[1];
      out.rgb[3 * pixel + 2] = planes.b[i] + t * background[2];
      out.depth[pixel] = planes.d[i];
      out.alpha[pixel] = 1.0f - t;  // the weights add up to 1 - T
    }
  }
}

// Calls sink(list position in the tile, sums) for every blended entry and adds to background[3].
template <class Sink>
void unblend(const GradState& state, int b, int tile, const float* background, const GradUpstream& up,
             float* background_grad, Sink&& sink) {
  const GradImage& image = state.images[b];
  const TilePlace place(state, tile);
  TilePlanes planes;
  std::memset(&planes, 0, sizeof planes);
  const std::size_t saved = static_cast<std::size_t>(tile) * kTilePixels;
  std::memcpy(planes.t, image.transmittance.data() + saved, sizeof planes.t);
  std::memcpy(planes.stop, image.stop.data() + saved, sizeof planes.stop);
  for (int y = 0; y < place.rows; ++y) {
    for (int x = 0; x < place.columns; ++x) {
      const int i = y * kTile + x;
      const std::size_t pixel =
          (static_cast<std::size_t>(b) * state.height + place.py + y) * state.width + place.px + x;
      planes.r[i] = up.rgb[3 * pixel];
      planes.g[i] = up.rgb[3 * pixel + 1];
      planes.b[i] = up.rgb[3 * pixel + 2];
      planes.d[i] = up.depth[pixel];
      // The final transmittance T carries the background, and alpha = 1 - T.
      planes.suffix[i] = planes.t[i] * (planes.r[i] * background[0] + planes.g[i] * background[1] +
                                        planes.b[i] * background[2] - up.alpha[pixel]);
      background_grad[0] += planes.t[i] * planes.r[i];
      background_grad[1] += planes.t[i] * planes.g[i];
      background_grad[2] += planes.t[i] * planes.b[i];
    }
  }
  kernels::backward_tile(image.splats.data(), image.list.data() + image.tile_begin[tile], image.tile_blended[tile],
                         place.px, place.py, &planes, sink);
}

void add_sums(float* to, const float* from) {
  for (int k = 0; k < kGradSums; ++k) to[k] += from[k];
}

// Chains the sums of every splat to the inputs.
void finish(const GradState& state, const GradInputs& in, int b, const float* sums, const GradResults& out) {
  const std::size_t base = static_cast<std::size_t>(b) * state.count;
  std::memset(out.xz + 2 * base, 0, sizeof(float) * 2 * state.count);
  std::memset(out.depth + base, 0, sizeof(float) * state.count);
  std::memset(out.scale + 2 * base, 0, sizeof(float) * 2 * state.count);
  std::memset(out.opacity + base, 0, sizeof(float) * state.count);
  std::memset(out.rgb + 3 * base, 0, sizeof(float) * 3 * state.count);
  const float fx = 0.5f * static_cast<float>(state.width), fy = 0.5f * static_cast<float>(state.height);
  const GradImage& image = state.images[b];
  for (std::size_t i = 0; i < image.splats.size(); ++i) {
    const GradSplat& s = image.splats[i];
    const float* q = sums + i * kGradSums;
    const std::size_t row = base + s.index;
    // power = -(dx^2 / A + dy^2 / C) / 2 with dx = u - x, u = fx x_ndc + const, v = -fy z_ndc + const, A = (fx s)^2 +
    // 0.3
    out.xz[2 * row] = -s.inv_var_x * q[1] * fx * kHomogeneous;
    out.xz[2 * row + 1] = s.inv_var_y * q[3] * fy * kHomogeneous;
    out.scale[2 * row] = s.inv_var_x * s.inv_var_x * q[2] * fx * fx * in.scale[2 * row];
    out.scale[2 * row + 1] = s.inv_var_y * s.inv_var_y * q[4] * fy * fy * in.scale[2 * row + 1];
    out.opacity[row] = q[0] / s.opacity;
    for (int c = 0; c < 3; ++c) out.rgb[3 * row + c] = q[5 + c];
    out.depth[row] = q[8];
  }
}

// One task per image keeps an image in one core's cache; too few images for the threads are split into tiles.
bool split_into_tiles(int batch, int threads) { return batch < 4 * threads && batch % threads != 0; }

}  // namespace

void raster_grad_forward(const GradInputs& in, int threads, GradState* state, const GradOutputs& out) {
  threads = std::max(1, threads);
  state->tiles_x = (state->width + kTile - 1) / kTile;
  state->tiles_y = (state->height + kTile - 1) / kTile;
  state->images.resize(state->batch);
  const int tiles = state->tiles_x * state->tiles_y;
  if (split_into_tiles(state->batch, threads)) {
    parallel_for(state->batch, threads, [&](int b) { prepare(in, b, state); });
    parallel_for(state->batch * tiles, threads,
                 [&](int i) { blend(state, i / tiles, i % tiles, in.background + 3 * (i / tiles), out); });
  } else {
    parallel_for(state->batch, threads, [&](int b) {
      prepare(in, b, state);
      for (int tile = 0; tile < tiles; ++tile) blend(state, b, tile, in.background + 3 * b, out);
    });
  }
}

void raster_grad_backward(const GradState& state, const GradInputs& in, const GradUpstream& upstream, int threads,
                          const GradResults& out) {
  threads = std::max(1, threads);
  const int tiles = state.tiles_x * state.tiles_y;
  auto add_background = [&](int b, const std::vector<float>& per_tile) {
    float* to = out.background + 3 * b;
    to[0] = to[1] = to[2] = 0.0f;
    for (int tile = 0; tile < tiles; ++tile) {
      for (int c = 0; c < 3; ++c) to[c] += per_tile[3 * tile + c];
    }
  };
  if (!split_into_tiles(state.batch, threads)) {
    parallel_for(state.batch, threads, [&](int b) {
      const GradImage& image = state.images[b];
      std::vector<float> sums(image.splats.size() * kGradSums, 0.0f), background(3 * tiles, 0.0f);
      for (int tile = 0; tile < tiles; ++tile) {
        const std::int32_t* list = image.list.data() + image.tile_begin[tile];
        unblend(state, b, tile, in.background + 3 * b, upstream, &background[3 * tile],
                [&](int i, const float* s) { add_sums(&sums[static_cast<std::size_t>(list[i]) * kGradSums], s); });
      }
      finish(state, in, b, sums.data(), out);
      add_background(b, background);
    });
    return;
  }
  // The same additions in the same order, but each tile first writes its sums to slots of its own.
  std::vector<std::vector<float>> slots(state.batch), background(state.batch);
  for (int b = 0; b < state.batch; ++b) {
    slots[b].resize(state.images[b].list.size() * kGradSums);
    background[b].assign(3 * tiles, 0.0f);
  }
  parallel_for(state.batch * tiles, threads, [&](int task) {
    const int b = task / tiles, tile = task % tiles;
    float* to = slots[b].data() + static_cast<std::size_t>(state.images[b].tile_begin[tile]) * kGradSums;
    unblend(state, b, tile, in.background + 3 * b, upstream, &background[b][3 * tile], [&](int i, const float* s) {
      std::memcpy(to + static_cast<std::size_t>(i) * kGradSums, s, sizeof(float) * kGradSums);
    });
  });
  parallel_for(state.batch, threads, [&](int b) {
    const GradImage& image = state.images[b];
    std::vector<float> sums(image.splats.size() * kGradSums, 0.0f);
    for (int tile = 0; tile < tiles; ++tile) {
      const std::int32_t first = image.tile_begin[tile];
      for (int i = 0; i < image.tile_blended[tile]; ++i) {
        add_sums(&sums[static_cast<std::size_t>(image.list[first + i]) * kGradSums],
                 slots[b].data() + static_cast<std::size_t>(first + i) * kGradSums);
      }
    }
    finish(state, in, b, sums.data(), out);
    add_background(b, background[b]);
  });
}

}  // namespace streamsplat
