// The two library algorithms that the CUDA version of the differentiable rasterizer uses: CUB on the device
// (raster_grad_sort.cu), the C++ standard library where tests run the kernels on the CPU.
#ifndef STREAMSPLAT_RASTER_GRAD_SORT_H_
#define STREAMSPLAT_RASTER_GRAD_SORT_H_

#include <stdint.h>

#include "raster_grad_cuda.h"

namespace streamsplat {

// Both only write `scratch->bytes` where scratch->data is null, and return a cudaError_t.

// data[i] becomes the sum of data[0..i).
int exclusive_sum(int64_t* data, int64_t count, GradScratch* scratch, void* stream);

// Sorts by the `bits` low bits of the keys, stable; starts from buffer 0 and sets `current`.
int sort_pairs(GradPairs* pairs, int bits, GradScratch* scratch, void* stream);

}  // namespace streamsplat

#endif  // STREAMSPLAT_RASTER_GRAD_SORT_H_
