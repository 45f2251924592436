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
      alignas(64) float exponent[2][kBatch] = {};
      alignas(64) float power[2][kBatch];
      for (int j = 0; j < batch; ++j) {
        exponent[0][j] = fade_exponent(fade + 2 * (first + j), 0.0f);
        exponent[1][j] = fade_exponent(fade + 2 * (first + j), age);
      }
      kernels.exponential(exponent[0], power[0], kBatch);
      kernels.exponential(exponent[1], power[1], kBatch);
      for (int j = 0; j < batch; ++j) {
        const std::int64_t i = first + j;
        const float* gaussian = gaussians + kGaussianColumns * i;
        const float both[2] = {power[0][j], power[1][j]};
        gaussian_at(gaussian, motion + 3 * i, fade + 2 * i, both, dt, mapping, means + 3 * i, scales + 3 * i,
                    opacity + i);
        std::copy(gaussian + kRed, gaussian + kBlue + 1, rgb + 3 * i);
      }
    }
  });
}

}  // namespace streamsplat
