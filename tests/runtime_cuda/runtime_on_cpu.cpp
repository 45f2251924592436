// cuda/streamsplat.cu for the CPU: its kernels, started by name, and the layout of their arguments.
#include <map>
#include <string>
#include <tuple>

#include "cuda_on_cpu.h"
// After it, because that needs its definitions:
#include "streamsplat.cu"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using Kernel = std::function<void(const void* const*)>;

template <class... Parameters, std::size_t... Number>
Kernel by_address(void (*kernel)(Parameters...), std::index_sequence<Number...>) {
  return [kernel](const void* const* arguments) {
    std::tuple<Parameters...> given(*static_cast<const Parameters*>(arguments[Number])...);
    cuda_on_cpu::call(kernel, given);
  };
}
template <class... Parameters>
Kernel by_address(void (*kernel)(Parameters...)) {
  return by_address(kernel, std::index_sequence_for<Parameters...>());
}

#define KERNEL(name) {#name, by_address(name)}
const std::map<std::string, Kernel> kKernels = {KERNEL(project_given_canonical),
                                                KERNEL(project_given_general),
                                                KERNEL(blend_given_canonical),
                                                KERNEL(blend_given_general),
                                                KERNEL(project_ring_canonical),
                                                KERNEL(project_ring_general),
                                                KERNEL(blend_ring_canonical),
                                                KERNEL(blend_ring_general),
                                                KERNEL(lifecycle_judge),
                                                KERNEL(lifecycle_compact),
                                                KERNEL(depth_extent),
                                                KERNEL(depth_scale),
                                                KERNEL(prepare_rgb),
                                                KERNEL(prepare_nv12),
                                                KERNEL(prepare_smooth8),
                                                KERNEL(prepare_smooth16)};

std::string last_error;

}  // namespace

// Starts a kernel; `arguments` are addresses, as for cuLaunchKernel. Returns null, or what went wrong.
EXPORT const char* on_cpu_launch(const char* name, const unsigned grid[3], unsigned threads,
                                 const void* const* arguments) {
  const auto kernel = kKernels.find(name);
  if (kernel == kKernels.end()) return "no such kernel";
  cuda_on_cpu::watch().next_launch();
  try {
    for (blockIdx.z = 0; blockIdx.z < grid[2]; ++blockIdx.z)
      for (blockIdx.y = 0; blockIdx.y < grid[1]; ++blockIdx.y)
        for (blockIdx.x = 0; blockIdx.x < grid[0]; ++blockIdx.x)
          cuda_on_cpu::block().run(static_cast<int>(threads), [&] { kernel->second(arguments); });
  } catch (const std::logic_error& error) {
    last_error = error.what();
    return last_error.c_str();
  }
  return nullptr;
}

// Order of warps and lanes: 0 in order, 1 in reverse, from 2 on a seed.
EXPORT void on_cpu_schedule(std::uint64_t schedule) { cuda_on_cpu::block().schedule = schedule; }

// Where kernels that are watched may read and write.
EXPORT void on_cpu_allow(const void* memory, std::size_t size) { cuda_on_cpu::watch().allow(memory, size); }

// Puts keys in order as blend_tile does, in rounds of at most kSortCapacity, each of which begins in `begins`. Returns
// null, or what went wrong.
EXPORT const char* on_cpu_sort(const streamsplat::Word* keys, int count, streamsplat::Word* sorted, int* begins) {
  using namespace streamsplat;
  __shared__ SelectShared shared;
  __shared__ SelectBins bins;
  try {
    cuda_on_cpu::block().run(kThreads, [&] {
      const int thread = static_cast<int>(threadIdx.x);
      const KeySource source{keys, nullptr, nullptr, count, 0, 0};
      for (int i = thread; i < kSortCapacity; i += kThreads) shared.keys[i] = 0;  // would come first
      __syncthreads();
      Word from = 0, bound = kNoKey;
      for (int begin = 0, round = 0; begin < count; ++round, from = bound, bound = kNoKey) {
        int chosen = count - begin;
        if (chosen > kSortCapacity) bound = choose_bound(source, from, &shared, &bins, &chosen);
        collect(source, from, bound, count <= kSortCapacity, &shared);
        sort_some(shared.keys, chosen);
        for (int i = thread; i < chosen; i += kThreads) sorted[begin + i] = shared.keys[i];
        if (thread == 0) begins[round] = begin;
        begin += chosen;
        __syncthreads();
      }
    });
  } catch (const std::logic_error& error) {
    last_error = error.what();
    return last_error.c_str();
  }
  return nullptr;
}

// Bit w: the box, in pixels of a tile, touches the patch of warp w.
EXPORT int on_cpu_patches(int x0, int x1, int y0, int y1) { return streamsplat::touched_patches(x0, x1, y0, y1); }

// The bit of the warp whose thread has a pixel of the tile.
EXPORT int on_cpu_patch_of(int column, int row) {
  for (threadIdx.x = 0; threadIdx.x < streamsplat::kThreads; ++threadIdx.x) {
    const streamsplat::TilePixel at = streamsplat::tile_pixel();
    if (at.column == column && at.row == row) return 1 << threadIdx.x / streamsplat::kWarp;
  }
  return 0;
}

// Sizes and offsets that runtime/cuda/layout.py repeats.
EXPORT void on_cpu_layout(std::size_t* to) {
  using streamsplat::RasterFrame;
  using streamsplat::RingState;
  for (const std::size_t value : {sizeof(RasterParams),
                                  offsetof(RasterParams, means),
                                  offsetof(RasterParams, frames),
                                  offsetof(RasterParams, rgb_out),
                                  offsetof(RasterParams, alpha_out),
                                  sizeof(RasterFrame),
                                  offsetof(RasterFrame, background),
                                  offsetof(RasterFrame, dt),
                                  sizeof(RingParams),
                                  offsetof(RingParams, state),
                                  offsetof(RingParams, fates),
                                  offsetof(RingParams, totals),
                                  sizeof(RingState),
                                  offsetof(RingState, pair),
                                  offsetof(RingState, first_id),
                                  sizeof(streamsplat::RingTotals),
                                  sizeof(streamsplat::BlockCounts),
                                  sizeof(DepthParams),
                                  offsetof(DepthParams, depth),
                                  offsetof(DepthParams, before),
                                  sizeof(streamsplat::DepthMoment),
                                  offsetof(streamsplat::DepthMoment, fresh),
                                  sizeof(streamsplat::DepthState),
                                  sizeof(streamsplat::DepthPart),
                                  std::size_t{streamsplat::kDepthBlock},
                                  sizeof(PrepareParams),
                                  offsetof(PrepareParams, column),
                                  offsetof(PrepareParams, matrix),
                                  offsetof(PrepareParams, pitch),
                                  offsetof(PrepareParams, pixels),
                                  offsetof(PrepareParams, out),
                                  sizeof(streamsplat::Span),
                                  std::size_t{streamsplat::kColourBits},
                                  sizeof(streamsplat::CudaSplat),
                                  std::size_t{streamsplat::kTallies},
                                  std::size_t{streamsplat::kThreads},
                                  std::size_t{streamsplat::kTile},
                                  std::size_t{streamsplat::kSortCapacity}})
    *to++ = value;
}
