// One register function per area, each defined in its own source file, so that areas can change independently.
#ifndef STREAMSPLAT_BINDINGS_H_
#define STREAMSPLAT_BINDINGS_H_

#include <nanobind/nanobind.h>

#include <string>

#include "raster_cpu_kernel.h"

namespace streamsplat {

void register_raster(nanobind::module_& m);  // bindings_raster.cpp: CPU rasterizer
void register_grad(nanobind::module_& m);    // bindings_grad.cpp: differentiable rasterizer for training

// The level that `simd_name` calls so; std::invalid_argument where there is none. This CPU may not support it.
SimdLevel simd_level(const std::string& name);

}  // namespace streamsplat

#endif  // STREAMSPLAT_BINDINGS_H_
