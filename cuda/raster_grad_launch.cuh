// The C interface in terms of the kernels. Included after a definition of DeviceScope, launch and describe_status:
// those of raster_grad.cu on a device, those of tests/rasterizer_cuda/ on the CPU.
#ifndef STREAMSPLAT_RASTER_GRAD_LAUNCH_CUH_
#define STREAMSPLAT_RASTER_GRAD_LAUNCH_CUH_

#include "raster_grad_cuda.h"
#include "raster_grad_kernels.cuh"
#include "raster_grad_sort.h"

namespace streamsplat {

inline int64_t rows_of(const GradShape& shape) { return int64_t{shape.batch} * shape.count; }
inline int64_t tiles_of(const GradShape& shape) { return int64_t{shape.batch} * tiles_x(shape) * tiles_y(shape); }
inline int64_t blocks_for(int64_t threads) { return (threads + kBlock - 1) / kBlock; }

// Bits of a key that can differ: the depth and the numbers of the tiles.
inline int key_bits(const GradShape& shape) {
  int bits = 32;
  for (int64_t last = tiles_of(shape) - 1; last > 0; last >>= 1) ++bits;
  return bits;
}

}  // namespace streamsplat

int ssgrad_abi() { return streamsplat::kGradAbi; }

const char* ssgrad_error(int status) { return streamsplat::describe_status(status); }

int ssgrad_scratch_bytes(const streamsplat::GradPlace* place, const streamsplat::GradShape* shape, int64_t pairs,
                         int64_t* bytes) {
  using namespace streamsplat;
  const DeviceScope scope(place->device);
  if (scope.status() != 0) return scope.status();
  GradScratch scratch{nullptr, 0};
  GradPairs sized{pairs, {}, {}, 0};
  const int status = pairs == 0 ? exclusive_sum(nullptr, rows_of(*shape) + 1, &scratch, place->stream)
                                : sort_pairs(&sized, key_bits(*shape), &scratch, place->stream);
  *bytes = scratch.bytes;
  return status;
}

int ssgrad_project(const streamsplat::GradPlace* place, const streamsplat::GradShape* shape,
                   const streamsplat::GradInputs* in, streamsplat::GradSplat* splats, int64_t* pair_begin,
                   const streamsplat::GradScratch* scratch) {
  using namespace streamsplat;
  const DeviceScope scope(place->device);
  if (scope.status() != 0) return scope.status();
  const int64_t entries = rows_of(*shape) + 1;
  const int status =
      launch(project_kernel, blocks_for(entries), kBlock, place->stream, *shape, *in, splats, pair_begin);
  if (status != 0) return status;
  GradScratch sized = *scratch;
  return exclusive_sum(pair_begin, entries, &sized, place->stream);
}

int ssgrad_blend(const streamsplat::GradPlace* place, const streamsplat::GradShape* shape,
                 const streamsplat::GradInputs* in, const int64_t* pair_begin, streamsplat::GradPairs* pairs,
                 const streamsplat::GradSaved* saved, const streamsplat::GradOutputs* out,
                 const streamsplat::GradScratch* scratch) {
  using namespace streamsplat;
  const DeviceScope scope(place->device);
  int status = scope.status();
  pairs->current = 0;
  if (pairs->count > 0) {
    if (status == 0)
      status = launch(list_kernel, blocks_for(rows_of(*shape)), kBlock, place->stream, *shape, pair_begin,
                      saved->splats, pairs->keys[0], pairs->rows[0]);
    GradScratch sized = *scratch;
    if (status == 0) status = sort_pairs(pairs, key_bits(*shape), &sized, place->stream);
    if (status == 0)
      status = launch(range_kernel, blocks_for(pairs->count), kBlock, place->stream, pairs->count,
                      static_cast<const uint64_t*>(pairs->keys[pairs->current]), saved->ranges);
  }
  GradSaved sorted = *saved;
  sorted.rows = pairs->rows[pairs->current];
  if (status == 0)
    status = launch(blend_kernel, tiles_of(*shape), kBlock, place->stream, *shape, in->background, sorted, *out);
  return status;
}

int ssgrad_unblend(const streamsplat::GradPlace* place, const streamsplat::GradShape* shape,
                   const streamsplat::GradInputs* in, const streamsplat::GradSaved* saved,
                   const streamsplat::GradUpstream* upstream, float* sums, const streamsplat::GradResults* out) {
  using namespace streamsplat;
  const DeviceScope scope(place->device);
  int status = scope.status();
  if (status == 0)
    status = launch(unblend_kernel, tiles_of(*shape), kBlock, place->stream, *shape, in->background, *saved, *upstream,
                    sums);
  if (status == 0)
    status = launch(finish_kernel, blocks_for(rows_of(*shape)), kBlock, place->stream, *shape, *in,
                    static_cast<const GradSplat*>(saved->splats), static_cast<const float*>(sums), *out);
  return status;
}

#endif  // STREAMSPLAT_RASTER_GRAD_LAUNCH_CUH_
