# The CUDA version of the differentiable rasterizer, a shared library that Python loads where tensors are on a GPU.
add_library(streamsplat_grad_cuda SHARED
  raster_grad.cu
  raster_grad_sort.cu
)
# The static CUDA runtime: torch brings its own, of any version, and both work on the same context of the driver.
set_target_properties(streamsplat_grad_cuda PROPERTIES
  CUDA_STANDARD 17
  CUDA_STANDARD_REQUIRED ON
  CUDA_RUNTIME_LIBRARY Static
  CUDA_VISIBILITY_PRESET hidden
  NO_SONAME ON
)
# Contraction off, as for the C++ version: see raster_grad_kernels.cuh.
target_compile_options(streamsplat_grad_cuda PRIVATE -fmad=false -Xcompiler=-Wall,-Wextra)
install(TARGETS streamsplat_grad_cuda LIBRARY DESTINATION streamsplat_edge)
