// From a decoded picture on the device, of any size, to what the networks read: float planes in [0, 1] of their size.
//
// A thread per pixel that is written. Its weights come from two tables, one per direction (runtime/cuda/resampling.py):
// areas where neither side grows, else bilinear, as swscale does it for the CPU. Colours are converted per pixel that
// is read, before they are averaged, again as the CPU does: a picture is RGB of 8 bits there before it is resized.
//
// Three arithmetics of colour:
//   rgb      packed RGB8
//   nv12     8-bit YUV 4:2:0 with an even number of rows: libav's integers on x86, bit by bit. Products are cut to
//            whole levels, so that colours are a level darker in the mean than exact ones; what the networks have seen.
//   smooth   all other YUV 4:2:0 (10 bits and more; an odd number of rows): exact, with chroma interpolated between
//            rows. The CPU's way over tables of libav is up to 5 levels off at a pixel, at most 2.1 in the mean.
#ifndef STREAMSPLAT_PREPARE_CUDA_CUH_
#define STREAMSPLAT_PREPARE_CUDA_CUH_

#include "raster_cuda.h"

namespace streamsplat {

constexpr int kColourBits = 13;  // of the fractions of ColourMatrix

// Y'CbCr to RGB in levels of 8 bits, times 1 << kColourBits.
struct ColourMatrix {
  int32_t offset;  // of luma: 16 or 0 levels, not scaled
  int32_t luma;
  int32_t red_v, green_u, green_v, blue_u;
};
static_assert(sizeof(ColourMatrix) == 24, "layout known to the caller");

// Which pixels of a row or column make one that is written. Weights sum to 1.
struct Span {
  int32_t first, count;
};
static_assert(sizeof(Span) == 8, "layout known to the caller");

// Arguments by value.
struct PrepareParams {
  int32_t height, width;                       // that are written
  int32_t stored_height, stored_width;         // of the picture as it lies in memory
  int32_t taps_down, taps_across;              // row lengths of the weights
  int32_t column[3], row[3];                   // stored = [0] * x + [1] * y + [2] of the upright picture
  ColourMatrix matrix;                         // of YUV
  int64_t pitch, chroma_pitch;                 // bytes from row to row
  const uint8_t* pixels;                       // packed RGB, or luma
  const uint8_t* chroma;                       // of YUV: U and V in turn
  const Span *down, *across;                   // [height], [width]
  const float *weights_down, *weights_across;  // [height, taps_down], [width, taps_across]
  float* out;                                  // [3, height, width]
};
static_assert(sizeof(PrepareParams) == 6 * 4 + 6 * 4 + 24 + 2 * 8 + 7 * 8, "layout known to the caller");

struct Colour {
  float r, g, b;
};

__device__ inline Colour clamped(float r, float g, float b) {
  return {fminf(fmaxf(r, 0.0f), 255.0f), fminf(fmaxf(g, 0.0f), 255.0f), fminf(fmaxf(b, 0.0f), 255.0f)};
}

struct PackedRgb {
  __device__ static Colour at(const PrepareParams& p, int x, int y) {
    const uint8_t* const pixel = p.pixels + y * p.pitch + 3 * x;
    return {static_cast<float>(pixel[0]), static_cast<float>(pixel[1]), static_cast<float>(pixel[2])};
  }
};

struct Nv12 {
  // Values have three more bits than levels; products are cut, towards minus infinity.
  __device__ static int scaled(int value, int factor) { return value * factor >> (kColourBits + 3); }

  __device__ static Colour at(const PrepareParams& p, int x, int y) {
    const ColourMatrix& m = p.matrix;
    const uint8_t* const chroma = p.chroma + (y >> 1) * p.chroma_pitch + 2 * (x >> 1);
    const int luma = scaled(8 * (p.pixels[y * p.pitch + x] - m.offset), m.luma);
    const int u = 8 * (chroma[0] - 128), v = 8 * (chroma[1] - 128);
    const int r = luma + scaled(v, m.red_v), b = luma + scaled(u, m.blue_u);
    const int g = luma + scaled(u, m.green_u) + scaled(v, m.green_v);
    return clamped(static_cast<float>(r), static_cast<float>(g), static_cast<float>(b));
  }
};

// Two neighbours in a row or column of chroma and the share of the second, for one of `length` pixels.
struct Between {
  int first, second;
  float share;

  __device__ static Between of(int index, int length) {
    const int count = (length + 1) / 2;
    const float place =
        (static_cast<float>(index) + 0.5f) * static_cast<float>(count) / static_cast<float>(length) - 0.5f;
    const float before = floorf(place);
    const int at = static_cast<int>(before);
    return {at < 0 ? 0 : at, at + 1 < count ? at + 1 : count - 1, place - before};
  }
};

// Sample: uint8_t, or uint16_t with the value in its upper bits.
template <class Sample>
struct SmoothYuv {
  __device__ static float level(const uint8_t* row, int index) {
    constexpr float kLevel = sizeof(Sample) == 1 ? 1.0f : 1.0f / 256.0f;
    return static_cast<float>(reinterpret_cast<const Sample*>(row)[index]) * kLevel;
  }

  __device__ static float across(const uint8_t* row, const Between& x, int channel) {
    const float first = level(row, 2 * x.first + channel);
    return first + x.share * (level(row, 2 * x.second + channel) - first);
  }

  __device__ static Colour at(const PrepareParams& p, int x, int y) {
    constexpr float kUnit = 1.0f / (1 << kColourBits);
    const ColourMatrix& m = p.matrix;
    const Between down = Between::of(y, p.stored_height);
    // libav interpolates along rows where their length is odd only.
    const Between along = p.stored_width % 2 != 0 ? Between::of(x, p.stored_width) : Between{x >> 1, x >> 1, 0.0f};
    const uint8_t* const upper = p.chroma + down.first * p.chroma_pitch;
    const uint8_t* const lower = p.chroma + down.second * p.chroma_pitch;
    const float u0 = across(upper, along, 0), v0 = across(upper, along, 1);
    const float u = u0 + down.share * (across(lower, along, 0) - u0) - 128.0f;
    const float v = v0 + down.share * (across(lower, along, 1) - v0) - 128.0f;
    const float luma = (level(p.pixels + y * p.pitch, x) - static_cast<float>(m.offset)) * static_cast<float>(m.luma);
    return clamped((luma + v * static_cast<float>(m.red_v)) * kUnit,
                   (luma + u * static_cast<float>(m.green_u) + v * static_cast<float>(m.green_v)) * kUnit,
                   (luma + u * static_cast<float>(m.blue_u)) * kUnit);
  }
};

template <class Source>
__device__ inline void prepare_pixel(const PrepareParams& p) {
  const int index = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (index >= p.height * p.width) return;
  const int row = index / p.width, column = index - row * p.width;
  const Span down = p.down[row], across = p.across[column];
  const float* const weights_down = p.weights_down + static_cast<int64_t>(row) * p.taps_down;
  const float* const weights_across = p.weights_across + static_cast<int64_t>(column) * p.taps_across;
  Colour sum{0.0f, 0.0f, 0.0f};
  for (int i = 0; i < down.count; ++i) {
    const int y = down.first + i;
    Colour line{0.0f, 0.0f, 0.0f};
    for (int k = 0; k < across.count; ++k) {
      const int x = across.first + k;
      const Colour c =
          Source::at(p, p.column[0] * x + p.column[1] * y + p.column[2], p.row[0] * x + p.row[1] * y + p.row[2]);
      const float weight = weights_across[k];
      line.r += weight * c.r;
      line.g += weight * c.g;
      line.b += weight * c.b;
    }
    const float weight = weights_down[i];
    sum.r += weight * line.r;
    sum.g += weight * line.g;
    sum.b += weight * line.b;
  }
  const int64_t plane = static_cast<int64_t>(p.height) * p.width;
  p.out[index] = rintf(sum.r) * (1.0f / 255.0f);  // whole levels, as the CPU has them
  p.out[plane + index] = rintf(sum.g) * (1.0f / 255.0f);
  p.out[2 * plane + index] = rintf(sum.b) * (1.0f / 255.0f);
}

}  // namespace streamsplat

#endif  // STREAMSPLAT_PREPARE_CUDA_CUH_
