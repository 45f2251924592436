// Python bindings of the differentiable rasterizer.
#include "bindings.h"

namespace streamsplat {

void register_grad(nanobind::module_& m) { static_cast<void>(m); }

}  // namespace streamsplat
