// Python module `streamsplat_edge._core`.
#include "bindings.h"

NB_MODULE(_core, m) {
  streamsplat::register_raster(m);
  streamsplat::register_grad(m);
}
