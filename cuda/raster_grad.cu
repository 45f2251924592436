// The CUDA version of the differentiable rasterizer: how its kernels are started on a device. Tests compile the same
// kernels and the same calls for the CPU, with tests/rasterizer_cuda/cuda_on_cpu.h in the place of this file.
#include <cuda_runtime.h>

#include "raster_grad_sort.h"

namespace streamsplat {

// Makes a device current for a scope; the caller's choice is restored.
class DeviceScope {
 public:
  explicit DeviceScope(int device) {
    status_ = cudaGetDevice(&before_);
    if (status_ == cudaSuccess) status_ = cudaSetDevice(device);
    restore_ = status_ == cudaSuccess && before_ != device;
  }
  ~DeviceScope() {
    if (restore_) cudaSetDevice(before_);
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;
  int status() const { return status_; }

 private:
  cudaError_t status_;
  int before_ = 0;
  bool restore_;
};

template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), int64_t blocks, int threads, void* stream, const Arguments&... arguments) {
  if (blocks == 0) return cudaSuccess;
  kernel<<<static_cast<unsigned>(blocks), threads, 0, static_cast<cudaStream_t>(stream)>>>(arguments...);
  return cudaGetLastError();
}

const char* describe_status(int status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); }

}  // namespace streamsplat

#include "raster_grad_launch.cuh"
