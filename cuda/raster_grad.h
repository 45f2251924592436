// Differentiable CPU rasterizer for training: the canonical, axis-aligned view only.
//
// The forward pass computes what REFERENCE.md section 3 describes (constants in splat_math.h): splats sorted by depth,
// ties by index, blended front to back inside the published tile rectangle. The backward pass is the exact derivative
// of that computation with the order, the culling, the 1/255 and the 1e-4 decisions held fixed; the 0.99 clamp passes
// nothing.
//
// Phases, each parallel over images (enough images for the threads) or over the blocks of all images (too few):
//   project   every Gaussian, the arithmetic of the runtime rasterizer (raster_cpu_project.h)
//   bin       (depth bits, index) of the visible ones into lists of pixel blocks
//   blend     one block: sort its list, blend it front to back (raster_grad_tile.h, one copy per instruction set)
//   unblend   backward only: one block back to front; its sums are added per Gaussian in block order
//   finish    backward only: the sums are chained to the inputs
// Blocks are wider than the published 16x16 tiles, so that a list entry of a small Gaussian is one vector per pixel
// row. The order of every addition is fixed: results are bit-identical whatever the number of threads.
#ifndef STREAMSPLAT_RASTER_GRAD_H_
#define STREAMSPLAT_RASTER_GRAD_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "raster_cpu_kernel.h"
#include "raster_grad_math.h"

namespace streamsplat {

// An array that only grows and whose elements are not initialised.
template <class T>
class Buffer {
 public:
  void reserve(std::size_t count) {
    if (count <= capacity_) return;
    data_.reset();
    capacity_ = 0;
    data_.reset(new T[count]);
    capacity_ = count;
  }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  std::size_t bytes() const { return capacity_ * sizeof(T); }

 private:
  std::unique_ptr<T[]> data_;
  std::size_t capacity_ = 0;
};

// What the backward pass needs of one image.
struct GradImage {
  Buffer<Splat> splats;                    // of the caller's rows; box_x0 == box_x1 if culled
  std::vector<std::uint32_t> block_begin;  // blocks + 1 offsets into `entries` and `list`
  Buffer<std::uint64_t> entries;           // depth bits and row, unsorted; only used by the forward pass
  Buffer<std::int32_t> list;               // rows, front to back
  std::vector<std::int32_t> blended;       // how many entries of its list a block looked at until all pixels stopped
  Buffer<float> transmittance;             // after blending, stored block by block
  Buffer<std::int32_t> stop;               // list position at which a pixel stopped; INT32_MAX if it never did
};

// Buffers of finished states are reused (raster_grad_shelf.h): fresh memory would be a tenth of the whole computation.
struct GradState {
  GradState(int batch, int count, int height, int width, SimdLevel level);  // the level must be supported
  ~GradState();
  GradState(const GradState&) = delete;
  GradState& operator=(const GradState&) = delete;

  const int batch, count, height, width, blocks_x, blocks_y;
  const SimdLevel level;
  std::vector<GradImage> images;
};

// Fills `state` and `out`.
void raster_grad_forward(const GradInputs& in, int threads, GradState* state, const GradOutputs& out);

// `in` must hold the values the forward pass saw.
void raster_grad_backward(const GradState& state, const GradInputs& in, const GradUpstream& upstream, int threads,
                          const GradResults& out);

}  // namespace streamsplat

#endif  // STREAMSPLAT_RASTER_GRAD_H_
