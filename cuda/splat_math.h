// Per-Gaussian and per-pixel arithmetic, defined once for host and device code.
//
// Reproduces the published rasterizer (the constants and the order of operations matter for parity): view depth <= 0 is
// dropped, 0.3 px^2 is added to the projected covariance, the radius is 3 sigma of the larger eigenvalue, and a
// Gaussian touches every 16x16 tile that its radius touches.
#ifndef STREAMSPLAT_SPLAT_MATH_H_
#define STREAMSPLAT_SPLAT_MATH_H_

#if defined(__CUDACC_RTC__)  // NVRTC has no headers, and knows the functions of <math.h> and <string.h> without them
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#else
#include <math.h>
#include <stdint.h>
#include <string.h>
#endif

#if defined(__CUDACC__)
#define SS_HD __host__ __device__ __forceinline__
#else
#define SS_HD inline
#endif

namespace streamsplat {

constexpr int kTile = 16;                              // pixels per tile side
constexpr float kLowPass = 0.3f;                       // px^2 added to both diagonal entries of the 2-D covariance
constexpr float kAlphaMax = 0.99f;                     // a single Gaussian never covers more than this
constexpr float kAlphaMin = 1.0f / 255.0f;             // below this a Gaussian adds nothing to a pixel
constexpr float kTransmittanceMin = 1e-4f;             // blending stops before transmittance would fall below this
constexpr float kHomogeneous = 1.0f / (1.0f + 1e-7f);  // the published projection divides by w + 1e-7 with w = 1

// Sigma is limited to 1e9 pixels, so that squares and determinants of extreme but valid scales stay finite in float32;
// at that size a Gaussian is constant over any image. Opacity is limited so that exp(-40) times it stays below 1/255.
constexpr float kSigmaMax = 1e9f;
constexpr float kOpacityMax = 1e6f;

// Normalised device coordinate in [-1, 1] to pixel coordinate ((ndc + 1) size - 1) / 2; the centre of pixel i is i.
// Rounded once: that meets the golden data, while rounding ndc + 1 first as well misses 1e-5 on depth.
SS_HD float ndc_to_pixel(float ndc, int size) {
#if defined(__CUDA_ARCH__)
  return fmaf(ndc, 0.5f * static_cast<float>(size), 0.5f * static_cast<float>(size - 1));
#else  // fmaf is a library call where the base instruction set has no FMA
  return static_cast<float>(static_cast<double>(ndc) * (0.5 * size) + 0.5 * (size - 1));
#endif
}

// Normalised inverse depth y in [0, 1] to depth, as published: 0.1 (near) to 5 (far). Values outside [0, 1] map behind
// the camera and are dropped there.
SS_HD float published_depth(float y) { return (y >= 0.0f && y <= 1.0f) ? 1.0f / (0.2f + 9.8f * y + 1e-6f) : y - 10.0f; }

// Paper: g(z) = 2 / (1 + z), defined on [0, 1] like the published mapping.
SS_HD float paper_depth(float y) { return (y >= 0.0f && y <= 1.0f) ? 2.0f / (1.0f + y) : y - 10.0f; }

// Arguments of exp in the fade are limited to this, either way: both ends give normal numbers of float32.
constexpr float kFadeExponentMax = 87.0f;

// Orders Gaussians front to back, equal depths by index: positive floats order like their bits.
SS_HD uint64_t depth_key(float depth, uint32_t index) {
  uint32_t bits;
  memcpy(&bits, &depth, sizeof bits);
  return static_cast<uint64_t>(bits) << 32 | index;
}

// ceilf for v >= 0, written so that compilers vectorise it without SSE4.1; from 2^23 on every float is an integer.
SS_HD float ceil_positive(float v) {
#if defined(__CUDA_ARCH__)
  return ceilf(v);
#else
  const float low = v < 8388608.0f ? v : 8388608.0f;
  const float whole = static_cast<float>(static_cast<int>(low));
  const float up = whole < low ? whole + 1.0f : whole;
  return v < 8388608.0f ? up : v;
#endif
}

// Radius in pixels of the circle that bounds 3 sigma of a 2-D covariance [a b; b c] (low-pass already added).
SS_HD float splat_radius(float a, float c, float det) {
  const float mid = 0.5f * (a + c);
  const float disc = mid * mid - det;
  return ceil_positive(3.0f * sqrtf(mid + sqrtf(disc > 0.1f ? disc : 0.1f)));
}

// Upper bound of ln(255 v) for v > 0, at most 0.007 above it.
SS_HD float log255_upper(float v) {
  const float scaled = 255.0f * v;
  int32_t bits;
  memcpy(&bits, &scaled, sizeof bits);
  const float exponent = static_cast<float>((bits >> 23) - 127);
  bits = (bits & 0x007FFFFF) | 0x3F800000;
  float m;
  memcpy(&m, &bits, sizeof m);
  // Quadratic fit of log2 on [1, 2), error +-0.00494, raised by that much.
  const float log2_upper = exponent + (-0.34484843f * m + 2.02466578f) * m - 1.67487759f + 0.0050f;
  return 0.69314718f * log2_upper;
}

// Half the extent in pixels, along one axis, of where alpha can reach 1/255: dx^2 / (2 variance) <= ln(255 opacity).
// `reach` = 2 log255_upper(opacity). The margins cover float rounding; every pixel is tested exactly later.
SS_HD float support_half(float variance, float reach) { return sqrtf(variance * reach) * 1.00001f + 0.01f; }

SS_HD int larger(int a, int b) { return a > b ? a : b; }
SS_HD int smaller(int a, int b) { return a < b ? a : b; }

// First and one-past-last tile along one axis. Truncation toward zero and the +15 are the published behaviour; the
// clamp happens in float so that extreme but valid radii do not overflow the integer.
SS_HD int clamp_to_int(float v, float high) {
  v = v > 0.0f ? v : 0.0f;
  return static_cast<int>(v < high ? v : high);
}
SS_HD int tile_begin(float centre, float radius, int tiles) {
  return clamp_to_int((centre - radius) / static_cast<float>(kTile), static_cast<float>(tiles));
}
SS_HD int tile_end(float centre, float radius, int tiles) {
  return clamp_to_int((centre + radius + static_cast<float>(kTile - 1)) / static_cast<float>(kTile),
                      static_cast<float>(tiles));
}

}  // namespace streamsplat

#endif  // STREAMSPLAT_SPLAT_MATH_H_
