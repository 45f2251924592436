// Phase `bin` of the differentiable rasterizer and the first step of `blend`: which Gaussians a block blends, in order.
#ifndef STREAMSPLAT_RASTER_GRAD_LISTS_H_
#define STREAMSPLAT_RASTER_GRAD_LISTS_H_

#include <cstdint>

#include "raster_grad.h"

namespace streamsplat {

struct SortScratch {
  Buffer<std::uint64_t> a, b;
};

// Lists (depth bits, row) of every visible Gaussian in every block it touches.
void bin(int b, GradState* state);

// Writes the rows of `entries` by depth, ties by row. Least-significant-digit radix sort on the depth bits; it is
// stable and entries come in row order.
void sort_entries(const std::uint64_t* entries, int count, SortScratch* scratch, std::int32_t* list);

}  // namespace streamsplat

#endif  // STREAMSPLAT_RASTER_GRAD_LISTS_H_
