// One register function per area, each defined in its own source file, so that areas can change independently.
#ifndef STREAMSPLAT_BINDINGS_H_
#define STREAMSPLAT_BINDINGS_H_

#include <nanobind/nanobind.h>

namespace streamsplat {

void register_raster(nanobind::module_& m);  // bindings_raster.cpp: CPU rasterizer
void register_grad(nanobind::module_& m);    // bindings_grad.cpp: differentiable rasterizer for training

}  // namespace streamsplat

#endif  // STREAMSPLAT_BINDINGS_H_
