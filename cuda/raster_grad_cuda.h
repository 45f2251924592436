// C interface of the CUDA version of the differentiable rasterizer; training/rasterizer_cuda.py is its only caller and
// checks shapes first.
//
// It is a shared library of its own, loaded at run time, and not an extension of torch: it depends on neither torch's
// headers nor its ABI nor on Python, so that one build serves every torch of the CUDA driver, and an installation
// without nvcc is whole. It allocates nothing and never waits for the device: the caller passes pointers, the stream,
// and work space whose size it asks for first.
//
// Every function returns 0, or a cudaError_t that ssgrad_error() puts into words. Calls must be made in this order:
//   ssgrad_project    Gaussians to splats; pair_begin[batch * count] is then the number of pairs (tile, Gaussian)
//   ssgrad_blend      with room for that many pairs
//   ssgrad_unblend    any number of times, with what the two left behind
#ifndef STREAMSPLAT_RASTER_GRAD_CUDA_H_
#define STREAMSPLAT_RASTER_GRAD_CUDA_H_

#include <stdint.h>

#include "raster_grad_math.h"

namespace streamsplat {

constexpr int kGradAbi = 1;          // raised whenever anything in this file changes
constexpr int kGradSplatBytes = 48;  // of a GradSplat

struct GradSplat;

struct GradShape {
  int32_t batch, count, height, width;
};

struct GradPlace {
  void* stream;    // cudaStream_t
  int32_t device;  // ordinal
};

struct GradScratch {
  void* data;
  int64_t bytes;
};

// Entries of one tile in the list.
struct TileRange {
  int32_t begin, end;
};

// Pairs sorted by tile, then depth, then row. Two buffers each: sorting goes back and forth between them.
struct GradPairs {
  int64_t count;
  uint64_t* keys[2];  // tile << 32 | bits of the depth
  int32_t* rows[2];   // of [batch * count]
  int32_t current;    // out: which of the two holds the result
};

// What the backward pass needs besides the inputs.
struct GradSaved {
  GradSplat* splats;     // [batch * count]
  const int32_t* rows;   // [pairs], front to back within a tile
  TileRange* ranges;     // [batch * tiles], zeros before the call of ssgrad_blend
  float* transmittance;  // [batch, height, width], after blending
  int32_t* stop;         // same shape: how many entries of its tile's list a pixel went through
};

}  // namespace streamsplat

#define SSGRAD_API extern "C" __attribute__((visibility("default")))

SSGRAD_API int ssgrad_abi(void);
SSGRAD_API const char* ssgrad_error(int status);

// Bytes of scratch for ssgrad_project and ssgrad_blend; `pairs` is 0 for the former.
SSGRAD_API int ssgrad_scratch_bytes(const streamsplat::GradPlace* place, const streamsplat::GradShape* shape,
                                    int64_t pairs, int64_t* bytes);

// Writes splats[batch * count] and pair_begin[batch * count + 1].
SSGRAD_API int ssgrad_project(const streamsplat::GradPlace* place, const streamsplat::GradShape* shape,
                              const streamsplat::GradInputs* in, streamsplat::GradSplat* splats, int64_t* pair_begin,
                              const streamsplat::GradScratch* scratch);

// Sorts the pairs and renders. Writes `out`, all of `saved` but its rows (they are pairs->rows[pairs->current]), and
// the place of its pairs into every splat.
SSGRAD_API int ssgrad_blend(const streamsplat::GradPlace* place, const streamsplat::GradShape* shape,
                            const streamsplat::GradInputs* in, const int64_t* pair_begin, streamsplat::GradPairs* pairs,
                            const streamsplat::GradSaved* saved, const streamsplat::GradOutputs* out,
                            const streamsplat::GradScratch* scratch);

// Writes `out` but its background, a sum over pixels that the caller takes. `sums` has room for 9 floats per pair.
SSGRAD_API int ssgrad_unblend(const streamsplat::GradPlace* place, const streamsplat::GradShape* shape,
                              const streamsplat::GradInputs* in, const streamsplat::GradSaved* saved,
                              const streamsplat::GradUpstream* upstream, float* sums,
                              const streamsplat::GradResults* out);

#endif  // STREAMSPLAT_RASTER_GRAD_CUDA_H_
