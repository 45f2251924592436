#include "raster_grad.h"

#include <algorithm>
#include <atomic>
#include <climits>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "raster_cpu_project.h"
#include "raster_grad_kernel.h"
#include "raster_grad_lists.h"
#include "raster_grad_shelf.h"
#include "splat_math.h"

namespace streamsplat {
namespace {

constexpr int kRowsPerTask = 4096;  // Gaussians per task where one image is split over threads

const GradKernels& kernels_of([[maybe_unused]] SimdLevel level) {
#if defined(__x86_64__)
  if (level == SimdLevel::kAvx512) return grad_kernels_avx512();
  if (level == SimdLevel::kAvx2) return grad_kernels_avx2();
#endif
  return grad_kernels_plain();
}

using GradSums = Buffer<float>;

// Runs fn(0..tasks-1) on up to `threads` threads and rethrows the first exception: unlike those of a ThreadPool, tasks
// here grow buffers, and may run out of memory.
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

// Projects rows [begin, end) of an image. Culled ones get an empty box: those that cannot be seen, and those of which
// no pixel can reach alpha 1/255.
void project_rows(const GradInputs& in, int b, int begin, int end, GradState* state) {
  Projection p{};
  p.width = state->width;
  p.height = state->height;
  p.tiles_x = (state->width + kTile - 1) / kTile;
  p.tiles_y = (state->height + kTile - 1) / kTile;
  p.extent = Extent::kPublished;
  Splat* const splats = state->images[b].splats.data();
  const std::size_t base = static_cast<std::size_t>(b) * state->count;
  ProjectBatch batch;
  for (int first = begin; first < end; first += kProjectBatch) {
    const int members = std::min(kProjectBatch, end - first);
    bool keep[kProjectBatch] = {};
    for (int j = 0; j < kProjectBatch; ++j) {
      const std::size_t row = base + first + j;
      keep[j] = j < members && can_be_seen(in, static_cast<std::int64_t>(row));
      batch.u[j] = keep[j] ? in.xz[2 * row] : 0.0f;
      batch.v[j] = keep[j] ? -in.xz[2 * row + 1] : 0.0f;
      batch.depth[j] = keep[j] ? in.depth[row] : 1.0f;
      batch.opacity[j] = keep[j] ? in.opacity[row] : 1.0f;
      batch.a[j] = keep[j] ? in.scale[2 * row] : 1.0f;
      batch.c[j] = keep[j] ? in.scale[2 * row + 1] : 1.0f;
    }
    for (int j = 0; j < kProjectBatch; ++j) {
      const float a = pixel_variance(batch.a[j], p.width), c = pixel_variance(batch.c[j], p.height);
      batch.a[j] = a;
      batch.c[j] = c;
      batch.det[j] = a * c;
      batch.half_inv_x[j] = 0.5f / a;
      batch.half_inv_y[j] = 0.5f / c;
    }
    place(p, batch);
    for (int j = 0; j < members; ++j) {
      Splat& s = splats[first + j];
      const float* const rgb = in.rgb + 3 * (base + first + j);
      const bool visible = keep[j] && batch.x0[j] < batch.x1[j] && batch.y0[j] < batch.y1[j];
      s.x = batch.x[j];
      s.y = batch.y[j];
      s.half_inv_x = batch.half_inv_x[j];
      s.half_inv_y = batch.half_inv_y[j];
      s.opacity = batch.opacity[j];
      s.r = rgb[0];
      s.g = rgb[1];
      s.b = rgb[2];
      s.depth = batch.depth[j];
      s.box_x0 = static_cast<std::int16_t>(visible ? batch.x0[j] : 0);
      s.box_x1 = static_cast<std::int16_t>(visible ? batch.x1[j] : 0);
      s.box_y0 = static_cast<std::int16_t>(batch.y0[j]);
      s.box_y1 = static_cast<std::int16_t>(batch.y1[j]);
    }
  }
}

// Sizes the buffers that do not depend on the values.
void reserve(GradState* state) {
  const std::size_t pixels = static_cast<std::size_t>(state->blocks_x) * state->blocks_y * kBlockPixels;
  for (GradImage& image : state->images) {
    image.splats.reserve(state->count);
    image.transmittance.reserve(pixels);
    image.stop.reserve(pixels);
  }
}

// Where a block lies: its first pixel and how much of it is inside the image.
struct BlockPlace {
  BlockPlace(const GradState& state, int block)
      : x(block % state.blocks_x * kBlockWidth),
        y(block / state.blocks_x * kBlockHeight),
        columns(std::min(kBlockWidth, state.width - x)),
        rows(std::min(kBlockHeight, state.height - y)) {}
  int x, y, columns, rows;
};

void blend(GradState* state, int b, int block, const float* background, const GradOutputs& out) {
  GradImage& image = state->images[b];
  const BlockPlace place(*state, block);
  const std::uint32_t first = image.block_begin[block];
  const int count = static_cast<int>(image.block_begin[block + 1] - first);
  std::int32_t* const list = image.list.data() + first;
  {
    Loan<SortScratch> scratch;
    sort_entries(image.entries.data() + first, count, &scratch.item, list);
  }
  BlockPlanes planes;
  std::memset(&planes, 0, sizeof planes);
  for (int y = 0; y < place.rows; ++y) {
    std::fill_n(planes.t + y * kBlockWidth, place.columns, 1.0f);
    std::fill_n(planes.stop + y * kBlockWidth, place.columns, INT_MAX);
  }
  image.blended[block] = kernels_of(state->level).forward(image.splats.data(), list, count, place.x, place.y, &planes);
  for (int i = 0; i < kBlockPixels; ++i) planes.t[i] = planes.t[i] > 0.0f ? planes.t[i] : planes.rest[i];
  const std::size_t saved = static_cast<std::size_t>(block) * kBlockPixels;
  std::memcpy(image.transmittance.data() + saved, planes.t, sizeof planes.t);
  std::memcpy(image.stop.data() + saved, planes.stop, sizeof planes.stop);
  for (int y = 0; y < place.rows; ++y) {
    const std::size_t pixel = (static_cast<std::size_t>(b) * state->height + place.y + y) * state->width + place.x;
    float *const rgb = out.rgb + 3 * pixel, *const depth = out.depth + pixel, *const alpha = out.alpha + pixel;
    for (int x = 0; x < place.columns; ++x) {
      const int i = y * kBlockWidth + x;
      rgb[3 * x] = planes.r[i] + planes.t[i] * background[0];
      rgb[3 * x + 1] = planes.g[i] + planes.t[i] * background[1];
      rgb[3 * x + 2] = planes.b[i] + planes.t[i] * background[2];
      depth[x] = planes.d[i];
      alpha[x] = 1.0f - planes.t[i];  // the weights add up to 1 - T
    }
  }
}

// Adds to the sums of the block's Gaussians (per row, or per list entry of the block) and to background_grad[3].
void unblend(const GradState& state, int b, int block, const float* background, const GradUpstream& up, bool by_entry,
             float* sums, float* background_grad) {
  const GradImage& image = state.images[b];
  const BlockPlace place(state, block);
  BlockPlanes planes;
  std::memset(&planes, 0, sizeof planes);
  const std::size_t saved = static_cast<std::size_t>(block) * kBlockPixels;
  std::memcpy(planes.t, image.transmittance.data() + saved, sizeof planes.t);
  std::memcpy(planes.stop, image.stop.data() + saved, sizeof planes.stop);
  for (int y = 0; y < place.rows; ++y) {
    const std::size_t pixel = (static_cast<std::size_t>(b) * state.height + place.y + y) * state.width + place.x;
    const float *const rgb = up.rgb + 3 * pixel, *const depth = up.depth + pixel, *const alpha = up.alpha + pixel;
    for (int x = 0; x < place.columns; ++x) {
      const int i = y * kBlockWidth + x;
      planes.r[i] = rgb[3 * x];
      planes.g[i] = rgb[3 * x + 1];
      planes.b[i] = rgb[3 * x + 2];
      planes.d[i] = depth[x];
      // The final transmittance T carries the background, and alpha = 1 - T.
      planes.rest[i] = planes.t[i] * (planes.r[i] * background[0] + planes.g[i] * background[1] +
                                      planes.b[i] * background[2] - alpha[x]);
    }
    for (int x = 0; x < place.columns; ++x) {
      const int i = y * kBlockWidth + x;
      background_grad[0] += planes.t[i] * planes.r[i];
      background_grad[1] += planes.t[i] * planes.g[i];
      background_grad[2] += planes.t[i] * planes.b[i];
    }
  }
  kernels_of(state.level)
      .backward(image.splats.data(), image.list.data() + image.block_begin[block], image.blended[block], place.x,
                place.y, &planes, by_entry, sums);
}

// Chains the sums of rows [begin, end) to the inputs.
void finish_rows(const GradState& state, const GradInputs& in, int b, int begin, int end, const float* sums,
                 const GradResults& out) {
  const std::int64_t base = static_cast<std::int64_t>(b) * state.count;
  const Splat* const splats = state.images[b].splats.data();
  for (int i = begin; i < end; ++i) {
    const Splat& s = splats[i];
    if (s.box_x0 == s.box_x1) {
      chain_nothing(base + i, out);
      continue;
    }
    chain_sums(sums + static_cast<std::size_t>(i) * kGradSums, s.half_inv_x, s.half_inv_y, s.opacity, in, base + i,
               state.width, state.height, out);
  }
}

// One task per image keeps an image in one core's cache; too few images for the threads are split into blocks.
bool split_images(int batch, int threads) { return batch < 4 * threads && batch % threads != 0; }

}  // namespace

GradState::GradState(int batch_, int count_, int height_, int width_, SimdLevel level_)
    : batch(batch_),
      count(count_),
      height(height_),
      width(width_),
      blocks_x((width_ + kBlockWidth - 1) / kBlockWidth),
      blocks_y((height_ + kBlockHeight - 1) / kBlockHeight),
      level(level_ == SimdLevel::kAuto ? simd_best() : level_) {
  images.reserve(batch);
  for (int b = 0; b < batch; ++b) images.push_back(Shelf<GradImage>::take());
}

GradState::~GradState() {
  for (GradImage& image : images) Shelf<GradImage>::give(std::move(image));
}

void raster_grad_forward(const GradInputs& in, int threads, GradState* state, const GradOutputs& out) {
  threads = std::max(1, threads);
  reserve(state);
  const int blocks = state->blocks_x * state->blocks_y;
  const auto blend_block = [&](int b, int block) { blend(state, b, block, in.background + 3 * b, out); };
  if (!split_images(state->batch, threads)) {
    parallel_for(state->batch, threads, [&](int b) {
      project_rows(in, b, 0, state->count, state);
      bin(b, state);
      for (int block = 0; block < blocks; ++block) blend_block(b, block);
    });
    return;
  }
  const int parts = (state->count + kRowsPerTask - 1) / kRowsPerTask;
  parallel_for(state->batch * parts, threads, [&](int task) {
    const int begin = task % parts * kRowsPerTask;
    project_rows(in, task / parts, begin, std::min(begin + kRowsPerTask, state->count), state);
  });
  parallel_for(state->batch, threads, [&](int b) { bin(b, state); });
  parallel_for(state->batch * blocks, threads, [&](int task) { blend_block(task / blocks, task % blocks); });
}

void raster_grad_backward(const GradState& state, const GradInputs& in, const GradUpstream& upstream, int threads,
                          const GradResults& out) {
  threads = std::max(1, threads);
  const int blocks = state.blocks_x * state.blocks_y;
  const std::size_t sums_size = static_cast<std::size_t>(state.count) * kGradSums;
  const auto add_background = [&](int b, const std::vector<float>& per_block) {
    float* const to = out.background + 3 * b;
    to[0] = to[1] = to[2] = 0.0f;
    for (int block = 0; block < blocks; ++block) {
      for (int c = 0; c < 3; ++c) to[c] += per_block[3 * block + c];
    }
  };
  if (!split_images(state.batch, threads)) {
    parallel_for(state.batch, threads, [&](int b) {
      Loan<GradSums> loan;
      std::vector<float> background(3 * static_cast<std::size_t>(blocks), 0.0f);
      loan.item.reserve(sums_size);
      float* const sums = loan.item.data();
      std::fill_n(sums, sums_size, 0.0f);
      for (int block = 0; block < blocks; ++block)
        unblend(state, b, block, in.background + 3 * b, upstream, false, sums, &background[3 * block]);
      finish_rows(state, in, b, 0, state.count, sums, out);
      add_background(b, background);
    });
    return;
  }
  // The same additions in the same order, but each block first writes its sums to slots of its own.
  std::vector<Loan<GradSums>> slots(state.batch), sums(state.batch);
  std::vector<std::vector<float>> background(state.batch);
  for (int b = 0; b < state.batch; ++b) {
    slots[b].item.reserve(static_cast<std::size_t>(state.images[b].block_begin[blocks]) * kGradSums);
    sums[b].item.reserve(sums_size);
    background[b].assign(3 * static_cast<std::size_t>(blocks), 0.0f);
  }
  parallel_for(state.batch * blocks, threads, [&](int task) {
    const int b = task / blocks, block = task % blocks;
    float* const to = slots[b].item.data() + static_cast<std::size_t>(state.images[b].block_begin[block]) * kGradSums;
    std::fill_n(to, static_cast<std::size_t>(state.images[b].blended[block]) * kGradSums, 0.0f);
    unblend(state, b, block, in.background + 3 * b, upstream, true, to, &background[b][3 * block]);
  });
  parallel_for(state.batch, threads, [&](int b) {
    const GradImage& image = state.images[b];
    std::fill_n(sums[b].item.data(), sums_size, 0.0f);
    for (int block = 0; block < blocks; ++block) {
      const std::size_t first = image.block_begin[block];
      for (int i = 0; i < image.blended[block]; ++i) {
        float* const to = sums[b].item.data() + static_cast<std::size_t>(image.list.data()[first + i]) * kGradSums;
        const float* const from = slots[b].item.data() + (first + i) * kGradSums;
        for (int k = 0; k < kGradSums; ++k) to[k] += from[k];
      }
    }
    finish_rows(state, in, b, 0, state.count, sums[b].item.data(), out);
    add_background(b, background[b]);
  });
}

}  // namespace streamsplat
