// Python module `streamsplat_edge._core`.
#include "bindings.h"

NB_MODULE(_core, m) {
#ifdef NDEBUG
  // An interrupt leaves objects alive in tracebacks until the interpreter is gone. The report about them on
  // stderr is for whoever works on the bindings; to users it reads like a crash.
  nanobind::set_leak_warnings(false);
#endif
  streamsplat::register_raster(m);
  streamsplat::register_grad(m);
}
