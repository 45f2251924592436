#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>

#include "raster_grad_sort.h"

namespace streamsplat {

// Counts fit an int (the caller checks), the type that all versions of CUB take.

int exclusive_sum(int64_t* data, int64_t count, GradScratch* scratch, void* stream) {
  size_t bytes = static_cast<size_t>(scratch->bytes);
  const cudaError_t status = cub::DeviceScan::ExclusiveSum(scratch->data, bytes, data, data, static_cast<int>(count),
                                                           static_cast<cudaStream_t>(stream));
  if (scratch->data == nullptr) scratch->bytes = static_cast<int64_t>(bytes);
  return status;
}

int sort_pairs(GradPairs* pairs, int bits, GradScratch* scratch, void* stream) {
  cub::DoubleBuffer<uint64_t> keys(pairs->keys[0], pairs->keys[1]);
  cub::DoubleBuffer<int32_t> rows(pairs->rows[0], pairs->rows[1]);
  size_t bytes = static_cast<size_t>(scratch->bytes);
  const cudaError_t status = cub::DeviceRadixSort::SortPairs(
      scratch->data, bytes, keys, rows, static_cast<int>(pairs->count), 0, bits, static_cast<cudaStream_t>(stream));
  if (scratch->data == nullptr) scratch->bytes = static_cast<int64_t>(bytes);
  pairs->current = rows.selector;
  return status;
}

}  // namespace streamsplat
