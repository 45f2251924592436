#include "raster_cpu_time.h"

#include <math.h>

#include <algorithm>

#include "raster_cpu_kernel.h"
#include "raster_cpu_pool.h"

namespace streamsplat {
namespace {

constexpr std::int64_t kTask = 2048;  // Gaussians per task
constexpr int kBatch = 64;            // Gaussians whose exponentials are taken together

}  // namespace

void evaluate_at(const float* gaussians, const float* motion, const float* fade, std::int64_t count, float dt,
                 DepthMapping mapping, int threads, float* means, float* scales, float* opacity, float* rgb) {
  const SimdKernels& kernels = simd_kernels(SimdLevel::kAuto);
  const float age = fabsf(dt);
  const int tasks = static_cast<int>((count + kTask - 1) / kTask);
  ThreadPool::shared(threads).parallel_for(tasks, [&](int task) {
    const std::int64_t end = std::min(count, (task + 1) * kTask);
    for (std::int64_t first = task * kTask; first < end; first += kBatch) {
      const int batch = static_cast<int>(std::min<std::int64_t>(kBatch, end - first));
      // fade_factor(g0, g1, dt) = (1 + exp(-g0 g1)) / (1 + exp(g0 (|dt| - g1))): equal terms, so exactly 1, at dt = 0.
      alignas(64) float exponent[2][kBatch] = {};
      alignas(64) float power[2][kBatch];
      for (int j = 0; j < batch; ++j) {
        const float g0 = fade[2 * (first + j)], g1 = fade[2 * (first + j) + 1];
        exponent[0][j] = g0 * (0.0f - g1);
        exponent[1][j] = g0 * (age - g1);
      }
      kernels.exponential(exponent[0], power[0], kBatch);
      kernels.exponential(exponent[1], power[1], kBatch);
      for (int j = 0; j < batch; ++j) {
        const std::int64_t i = first + j;
        const float* g = gaussians + 9 * i;
        const float* v = motion + 3 * i;
        const float y = g[1] + v[1] * dt;
        means[3 * i] = g[0] + v[0] * dt;
        means[3 * i + 1] = mapping == DepthMapping::kPublished ? published_depth(y) : paper_depth(y);
        means[3 * i + 2] = g[2] + v[2] * dt;
        scales[3 * i] = g[6];
        scales[3 * i + 1] = 0.5f * (g[6] + g[7]);
        scales[3 * i + 2] = g[7];
        std::copy(g + 3, g + 6, rgb + 3 * i);
        // The clamped exponential hides a NaN or infinite gamma; 0 * gamma brings it back.
        opacity[i] = g[8] * ((1.0f + power[0][j]) / (1.0f + power[1][j])) + 0.0f * fade[2 * i] + 0.0f * fade[2 * i + 1];
      }
    }
  });
}

}  // namespace streamsplat
