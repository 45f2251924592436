#include "raster_cpu.h"

#include <algorithm>
#include <utility>

namespace streamsplat {
namespace {

constexpr int kDigitBitsMax = 11;
constexpr std::int64_t kSortParallelFrom = 16384;             // below, starting threads costs more than sorting
constexpr std::uint64_t kBandPairs = std::uint64_t{1} << 25;  // list entries held at a time (128 MB at most)

constexpr std::int64_t kPrefetch = 24;  // Gaussians

int chunk_count(std::int64_t items, int threads) { return items < kSortParallelFrom ? 1 : std::min(2 * threads, 16); }

// Calls body(chunk, begin, end) for every chunk of [0, items), on the threads of the pool.
template <class Body>
void parallel_chunks(ThreadPool* pool, std::int64_t items, int chunks, Body&& body) {
  pool->parallel_for(chunks, [&](int chunk) { body(chunk, items * chunk / chunks, items * (chunk + 1) / chunks); });
}

int bit_width(std::uint32_t v) { return v == 0 ? 0 : 32 - __builtin_clz(v); }

template <class T>
void grow(std::vector<T>& v, std::size_t size) {
  if (v.size() < size) v.resize(size);
}

}  // namespace

RasterizerCpu::RasterizerCpu(int height, int width, int threads, SimdLevel level)
    : height_(height),
      width_(width),
      tiles_x_((width + kTile - 1) / kTile),
      tiles_y_((height + kTile - 1) / kTile),
      threads_(ThreadPool::shared(threads).threads()),
      kernels_(&simd_kernels(level)) {
  grow(tile_begin_, static_cast<std::size_t>(tiles_x_) * static_cast<std::size_t>(tiles_y_) + 1);
}

void RasterizerCpu::reserve(std::int64_t count) {
  const std::size_t n = static_cast<std::size_t>(count);
  grow(splats_, n);
  grow(rects_, n);
  grow(sorted_rects_, n);
  grow(keys_, n);
  grow(spare_, n);
  grow(blocks_, n / static_cast<std::size_t>(kProjectBlock) + 1);
  const std::size_t chunks = static_cast<std::size_t>(chunk_count(count, threads_));
  grow(histograms_, chunks << kDigitBitsMax);
  grow(tile_counts_, chunks * static_cast<std::size_t>(tiles_x_) * static_cast<std::size_t>(tiles_y_));
}

RasterStats RasterizerCpu::render(const SplatInput& splats, const ViewInput* view, const float background[3],
                                  Extent extent, const RenderTarget& target) {
  std::lock_guard<std::mutex> lock(mutex_);
  pool_ = &ThreadPool::shared(threads_);
  reserve(splats.count);
  RasterStats stats;
  project(splats, view, extent, stats);
  sort();
  count_tiles();
  // Tiles are worked off in bands whose lists fit a fixed budget: thousands of Gaussians that each cover the whole
  // image must not need memory for Gaussians times tiles. Ordinary scenes are one band.
  const bool canonical = view == nullptr && splats.quats == nullptr;
  for (int first = 0; first < tiles_x_ * tiles_y_;) {
    const int last = begin_band(first);
    scatter(first, last);
    blend(first, last, canonical, background, target);
    first = last;
  }
  return stats;
}

// Least-significant-digit radix sort on the depth bits. It is stable and the keys start in index order, so ties stay in
// index order; the number of chunks does not change the result.
void RasterizerCpu::sort() {
  const std::int64_t n = visible_;
  if (n < 2) return;
  std::uint32_t low = UINT32_MAX, high = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint32_t depth = static_cast<std::uint32_t>(keys_.data()[i] >> 32);
    low = std::min(low, depth);
    high = std::max(high, depth);
  }
  const int bits = bit_width(high - low);
  const int passes = (bits + kDigitBitsMax - 1) / kDigitBitsMax;
  if (passes == 0) return;
  const int digit_bits = (bits + passes - 1) / passes;
  const std::size_t digits = std::size_t{1} << digit_bits;
  const int chunks = chunk_count(n, threads_);
  for (int pass = 0; pass < passes; ++pass) {
    const int shift = pass * digit_bits;
    const auto digit_of = [&](std::uint64_t key) {
      return ((static_cast<std::uint32_t>(key >> 32) - low) >> shift) & (static_cast<std::uint32_t>(digits) - 1);
    };
    const std::uint64_t* const from = keys_.data();
    std::uint64_t* const to = spare_.data();
    parallel_chunks(pool_, n, chunks, [&](int chunk, std::int64_t begin, std::int64_t end) {
      std::uint32_t* const histogram = histograms_.data() + static_cast<std::size_t>(chunk) * digits;
      std::fill(histogram, histogram + digits, 0u);
      for (std::int64_t i = begin; i < end; ++i) ++histogram[digit_of(from[i])];
    });
    std::uint32_t position = 0;
    for (std::size_t digit = 0; digit < digits; ++digit)
      for (int chunk = 0; chunk < chunks; ++chunk) {
        std::uint32_t& entry = histograms_[static_cast<std::size_t>(chunk) * digits + digit];
        const std::uint32_t count = entry;
        entry = position;
        position += count;
      }
    parallel_chunks(pool_, n, chunks, [&](int chunk, std::int64_t begin, std::int64_t end) {
      std::uint32_t* const write = histograms_.data() + static_cast<std::size_t>(chunk) * digits;
      for (std::int64_t i = begin; i < end; ++i) to[write[digit_of(from[i])]++] = from[i];
    });
    keys_.swap(spare_);
  }
}

void RasterizerCpu::count_tiles() {
  const std::size_t tiles = static_cast<std::size_t>(tiles_x_) * static_cast<std::size_t>(tiles_y_);
  const std::uint64_t* const keys = keys_.data();
  const TileRect* const rects = rects_.data();
  TileRect* const sorted_rects = sorted_rects_.data();
  const auto count = [&](int chunk, std::int64_t begin, std::int64_t end) {
    std::uint32_t* const counts = tile_counts_.data() + static_cast<std::size_t>(chunk) * tiles;
    std::fill(counts, counts + tiles, 0u);
    for (std::int64_t i = begin; i < end; ++i) {
      // In depth order the rectangles are scattered: fetch ahead, and keep a sorted copy for `scatter`.
      __builtin_prefetch(&rects[static_cast<std::uint32_t>(keys[std::min(i + kPrefetch, end - 1)])]);
      const TileRect rect = rects[static_cast<std::uint32_t>(keys[i])];
      sorted_rects[i] = rect;
      for (int y = rect.y0; y < rect.y1; ++y)
        for (int x = rect.x0; x < rect.x1; ++x) ++counts[y * tiles_x_ + x];
    }
  };
  parallel_chunks(pool_, visible_, chunk_count(visible_, threads_), count);
}

int RasterizerCpu::begin_band(int first) {
  const int tiles = tiles_x_ * tiles_y_, chunks = chunk_count(visible_, threads_);
  std::uint32_t* const begin = tile_begin_.data();
  std::uint64_t held = 0;
  int last = first;
  for (; last < tiles; ++last) {
    std::uint32_t* const of_tile = tile_counts_.data() + last;
    std::uint64_t in_tile = 0;
    for (int chunk = 0; chunk < chunks; ++chunk) in_tile += of_tile[std::int64_t{chunk} * tiles];
    if (last > first && held + in_tile > kBandPairs) break;
    std::uint32_t position = static_cast<std::uint32_t>(held);
    begin[last] = position;
    for (int chunk = 0; chunk < chunks; ++chunk)
      position += std::exchange(of_tile[std::int64_t{chunk} * tiles], position);
    held += in_tile;
  }
  begin[last] = static_cast<std::uint32_t>(held);
  grow(lists_, static_cast<std::size_t>(held));
  return last;
}

void RasterizerCpu::scatter(int first, int last) {
  const std::size_t tiles = static_cast<std::size_t>(tiles_x_) * static_cast<std::size_t>(tiles_y_);
  const std::uint64_t* const keys = keys_.data();
  const TileRect* const sorted_rects = sorted_rects_.data();
  std::uint32_t* const lists = lists_.data();
  const auto append = [&](int chunk, std::int64_t begin, std::int64_t end) {
    std::uint32_t* const write = tile_counts_.data() + static_cast<std::size_t>(chunk) * tiles;
    for (std::int64_t i = begin; i < end; ++i) {
      const std::uint32_t index = static_cast<std::uint32_t>(keys[i]);
      const TileRect rect = sorted_rects[i];
      for (int y = rect.y0; y < rect.y1; ++y)
        for (int x = rect.x0; x < rect.x1; ++x) {
          const int tile = y * tiles_x_ + x;
          if (tile >= first && tile < last) lists[write[tile]++] = index;
        }
    }
  };
  parallel_chunks(pool_, visible_, chunk_count(visible_, threads_), append);
}

void RasterizerCpu::blend(int first, int last, bool canonical, const float background[3], const RenderTarget& target) {
  const auto kernel = canonical ? kernels_->blend_canonical : kernels_->blend_general;
  const std::uint32_t* const begin = tile_begin_.data();
  pool_->parallel_for(last - first, [&](int task) {
    const int tile = first + task;
    TileJob job;
    job.splats = splats_.data();
    job.list = lists_.data() + begin[tile];
    job.count = begin[tile + 1] - begin[tile];
    job.x0 = tile % tiles_x_ * kTile;
    job.y0 = tile / tiles_x_ * kTile;
    job.width = width_;
    job.height = height_;
    std::copy(background, background + 3, job.background);
    job.rgb = target.rgb;
    job.depth = target.depth;
    job.expected_depth = target.expected_depth;
    job.alpha = target.alpha;
    kernel(job);
  });
}

}  // namespace streamsplat
