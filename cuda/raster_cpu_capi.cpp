#include <cmath>
#include <cstdint>
#include <memory>
#include <new>

#include "raster_cpu.h"
#include "raster_cpu_time.h"
#include "streamsplat_raster.h"

struct ss_rasterizer {
  streamsplat::RasterizerCpu impl;
};

namespace {

constexpr int kSizeMax = 16384;
constexpr std::int64_t kCountMax = INT32_MAX;

bool finite(const float* values, int count) {
  for (int i = 0; i < count; ++i)
    if (!std::isfinite(values[i])) return false;
  return true;
}

// Runs `body` and turns what it throws into a status.
template <class Body>
ss_status guarded(Body&& body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return SS_OUT_OF_MEMORY;
  } catch (...) {
    return SS_INTERNAL;
  }
}

}  // namespace

ss_status ss_rasterizer_create(int height, int width, int threads, ss_simd simd, ss_rasterizer** out) {
  if (out == nullptr) return SS_INVALID_ARGUMENT;
  *out = nullptr;
  if (height < 1 || width < 1 || height > kSizeMax || width > kSizeMax || threads < 0) return SS_INVALID_ARGUMENT;
  if (simd < SS_SIMD_AUTO || simd > SS_SIMD_AVX512) return SS_INVALID_ARGUMENT;
  const auto level = static_cast<streamsplat::SimdLevel>(simd);
  if (!streamsplat::simd_supported(level)) return SS_UNSUPPORTED;
  return guarded([&] {
    *out = new ss_rasterizer{{height, width, threads, level}};
    return SS_OK;
  });
}

void ss_rasterizer_destroy(ss_rasterizer* rasterizer) { delete rasterizer; }

ss_status ss_rasterizer_render(ss_rasterizer* rasterizer, const ss_splats* splats, const ss_view* view,
                               const float background[3], ss_extent extent, const ss_image* image, ss_stats* stats) {
  if (rasterizer == nullptr || splats == nullptr || background == nullptr || image == nullptr)
    return SS_INVALID_ARGUMENT;
  if (splats->count < 0 || splats->count > kCountMax) return SS_INVALID_ARGUMENT;
  if (splats->count > 0 &&
      (splats->means == nullptr || splats->scales == nullptr || splats->opacity == nullptr || splats->rgb == nullptr))
    return SS_INVALID_ARGUMENT;
  if (image->rgb == nullptr || image->depth == nullptr || image->expected_depth == nullptr || image->alpha == nullptr)
    return SS_INVALID_ARGUMENT;
  if (extent != SS_EXTENT_PUBLISHED && extent != SS_EXTENT_FULL) return SS_INVALID_ARGUMENT;
  if (!finite(background, 3)) return SS_INVALID_ARGUMENT;
  if (view != nullptr && !(finite(view->rotation, 9) && finite(view->translation, 3))) return SS_INVALID_ARGUMENT;

  streamsplat::ViewInput transform{};
  if (view != nullptr) {
    for (int i = 0; i < 9; ++i) transform.rotation[i] = view->rotation[i];
    for (int i = 0; i < 3; ++i) transform.translation[i] = view->translation[i];
  }
  return guarded([&] {
    const streamsplat::RasterStats s = rasterizer->impl.render(
        {splats->means, splats->scales, splats->opacity, splats->rgb, splats->quats, splats->count},
        view != nullptr ? &transform : nullptr, background, static_cast<streamsplat::Extent>(extent),
        {image->rgb, image->depth, image->expected_depth, image->alpha});
    if (stats != nullptr)
      *stats = {s.rendered,       s.culled_invalid, s.culled_behind, s.culled_transparent,
                s.culled_outside, s.pairs,          s.binned_pairs};
    return SS_OK;
  });
}

ss_status ss_evaluate_at(const float* gaussians, const float* motion, const float* fade, int64_t count, float dt,
                         ss_depth_mapping mapping, int threads, float* means, float* scales, float* opacity,
                         float* rgb) {
  if (count < 0 || count > kCountMax || threads < 0 || !std::isfinite(dt)) return SS_INVALID_ARGUMENT;
  if (mapping != SS_DEPTH_PUBLISHED && mapping != SS_DEPTH_PAPER) return SS_INVALID_ARGUMENT;
  if (count > 0 && (gaussians == nullptr || motion == nullptr || fade == nullptr || means == nullptr ||
                    scales == nullptr || opacity == nullptr || rgb == nullptr))
    return SS_INVALID_ARGUMENT;
  return guarded([&] {
    streamsplat::evaluate_at(gaussians, motion, fade, count, dt, static_cast<streamsplat::DepthMapping>(mapping),
                             threads, means, scales, opacity, rgb);
    return SS_OK;
  });
}

const char* ss_status_text(ss_status status) {
  switch (status) {
    case SS_OK:
      return "ok";
    case SS_INVALID_ARGUMENT:
      return "invalid argument";
    case SS_UNSUPPORTED:
      return "this CPU does not support the SIMD level";
    case SS_OUT_OF_MEMORY:
      return "out of memory";
    default:
      return "the system refused to start threads";
  }
}
