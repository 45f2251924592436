#include "raster_grad_lists.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "raster_grad_kernel.h"
#include "splat_math.h"

namespace streamsplat {
namespace {

constexpr int kRadixFrom = 96;  // list entries; below, a comparison sort is faster

}  // namespace

void bin(int b, GradState* state) {
  GradImage& image = state->images[b];
  const Splat* const splats = image.splats.data();
  const int blocks = state->blocks_x * state->blocks_y, stride = state->blocks_x;
  image.block_begin.assign(static_cast<std::size_t>(blocks) + 1, 0);
  const auto each_block = [&](const Splat& s, auto&& fn) {
    const int x0 = s.box_x0 / kBlockWidth, x1 = (s.box_x1 - 1) / kBlockWidth;
    const int y0 = s.box_y0 / kBlockHeight, y1 = (s.box_y1 - 1) / kBlockHeight;
    for (int y = y0; y <= y1; ++y) {
      for (int x = x0; x <= x1; ++x) fn(y * stride + x);
    }
  };
  std::uint32_t* const begin = image.block_begin.data();
  for (int i = 0; i < state->count; ++i) {
    if (splats[i].box_x0 != splats[i].box_x1) each_block(splats[i], [&](int block) { ++begin[block + 1]; });
  }
  for (int i = 0; i < blocks; ++i) begin[i + 1] += begin[i];
  image.entries.reserve(begin[blocks]);
  image.list.reserve(begin[blocks]);
  image.blended.assign(blocks, 0);
  std::vector<std::uint32_t> cursor(begin, begin + blocks);
  std::uint64_t* const entries = image.entries.data();
  for (int i = 0; i < state->count; ++i) {
    const Splat& s = splats[i];
    if (s.box_x0 == s.box_x1) continue;
    const std::uint64_t entry = depth_key(s.depth, static_cast<std::uint32_t>(i));
    each_block(s, [&](int block) { entries[cursor[block]++] = entry; });
  }
}

void sort_entries(const std::uint64_t* entries, int count, SortScratch* scratch, std::int32_t* list) {
  const auto row_of = [](std::uint64_t entry) { return static_cast<std::int32_t>(static_cast<std::uint32_t>(entry)); };
  const std::size_t n = static_cast<std::size_t>(count);
  scratch->a.reserve(n);
  if (count < kRadixFrom) {
    std::uint64_t* const sorted = scratch->a.data();
    std::copy(entries, entries + n, sorted);
    std::sort(sorted, sorted + n);
    std::transform(sorted, sorted + n, list, row_of);
    return;
  }
  scratch->b.reserve(n);
  std::uint32_t low = UINT32_MAX, high = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint32_t key = static_cast<std::uint32_t>(entries[i] >> 32);
    low = std::min(low, key);
    high = std::max(high, key);
  }
  constexpr int kDigitMax = 10;
  const int bits = high == low ? 1 : 32 - __builtin_clz(high - low);
  const int passes = (bits + kDigitMax - 1) / kDigitMax, digit_bits = (bits + passes - 1) / passes;
  const std::uint32_t digits = 1u << digit_bits;
  const auto digit_of = [&](std::uint64_t entry, int pass) {
    return (static_cast<std::uint32_t>(entry >> 32) - low) >> (pass * digit_bits) & (digits - 1);
  };
  std::uint32_t offsets[4][1 << kDigitMax];
  for (int pass = 0; pass < passes; ++pass) std::memset(offsets[pass], 0, digits * sizeof(std::uint32_t));
  for (std::size_t i = 0; i < n; ++i) {
    for (int pass = 0; pass < passes; ++pass) ++offsets[pass][digit_of(entries[i], pass)];
  }
  const std::uint64_t* from = entries;
  for (int pass = 0; pass < passes; ++pass) {
    std::uint32_t sum = 0, *const offset = offsets[pass];
    for (std::uint32_t d = 0; d < digits; ++d) sum += std::exchange(offset[d], sum);
    if (pass == passes - 1) {
      for (std::size_t i = 0; i < n; ++i) list[offset[digit_of(from[i], pass)]++] = row_of(from[i]);
    } else {
      std::uint64_t* const to = pass % 2 == 0 ? scratch->a.data() : scratch->b.data();
      for (std::size_t i = 0; i < n; ++i) to[offset[digit_of(from[i], pass)]++] = from[i];
      from = to;
    }
  }
}

}  // namespace streamsplat
