// Python bindings of the differentiable rasterizer; training/rasterizer.py is the only caller and checks shapes first.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/unique_ptr.h>

#include <cstddef>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>

#include "bindings.h"
#include "raster_grad.h"

namespace nb = nanobind;

namespace streamsplat {
namespace {

using Input = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Output = nb::ndarray<float, nb::c_contig, nb::device::cpu>;

template <class Array>
void check(const Array& array, const char* name, std::initializer_list<std::size_t> shape) {
  bool same = array.ndim() == shape.size();
  std::size_t i = 0;
  for (std::size_t extent : shape) {
    same = same && array.shape(i) == extent;
    ++i;
  }
  if (!same) throw std::invalid_argument(std::string(name) + " has a shape that does not fit the other arrays");
}

struct Sizes {
  std::size_t b, n, h, w;
};

GradInputs check_inputs(const Sizes& z, const Input& xz, const Input& depth, const Input& scale, const Input& opacity,
                        const Input& rgb, const Input& background) {
  check(xz, "xz", {z.b, z.n, 2});
  check(depth, "depth", {z.b, z.n});
  check(scale, "scale", {z.b, z.n, 2});
  check(opacity, "opacity", {z.b, z.n});
  check(rgb, "rgb", {z.b, z.n, 3});
  check(background, "background", {z.b, 3});
  return {xz.data(), depth.data(), scale.data(), opacity.data(), rgb.data(), background.data()};
}

std::unique_ptr<GradState> forward(const Input& xz, const Input& depth, const Input& scale, const Input& opacity,
                                   const Input& rgb, const Input& background, const Output& out_rgb,
                                   const Output& out_depth, const Output& out_alpha, int threads) {
  if (depth.ndim() != 2 || out_alpha.ndim() != 3) throw std::invalid_argument("depth must be [B,N], alpha [B,H,W]");
  const Sizes z{depth.shape(0), depth.shape(1), out_alpha.shape(1), out_alpha.shape(2)};
  if (z.h == 0 || z.w == 0 || z.h > 32000 || z.w > 32000) throw std::invalid_argument("image sides must be 1 to 32000");
  const GradInputs in = check_inputs(z, xz, depth, scale, opacity, rgb, background);
  check(out_rgb, "out_rgb", {z.b, z.h, z.w, 3});
  check(out_depth, "out_depth", {z.b, z.h, z.w});
  check(out_alpha, "out_alpha", {z.b, z.h, z.w});
  auto state = std::make_unique<GradState>();
  state->batch = static_cast<int>(z.b);
  state->count = static_cast<int>(z.n);
  state->height = static_cast<int>(z.h);
  state->width = static_cast<int>(z.w);
  const GradOutputs out{out_rgb.data(), out_depth.data(), out_alpha.data()};
  nb::gil_scoped_release release;
  raster_grad_forward(in, threads, state.get(), out);
  return state;
}

void backward(const GradState& state, const Input& xz, const Input& depth, const Input& scale, const Input& opacity,
              const Input& rgb, const Input& background, const Input& up_rgb, const Input& up_depth,
              const Input& up_alpha, const Output& grad_xz, const Output& grad_depth, const Output& grad_scale,
              const Output& grad_opacity, const Output& grad_rgb, const Output& grad_background, int threads) {
  const Sizes z{static_cast<std::size_t>(state.batch), static_cast<std::size_t>(state.count),
                static_cast<std::size_t>(state.height), static_cast<std::size_t>(state.width)};
  const GradInputs in = check_inputs(z, xz, depth, scale, opacity, rgb, background);
  check(up_rgb, "up_rgb", {z.b, z.h, z.w, 3});
  check(up_depth, "up_depth", {z.b, z.h, z.w});
  check(up_alpha, "up_alpha", {z.b, z.h, z.w});
  check(grad_xz, "grad_xz", {z.b, z.n, 2});
  check(grad_depth, "grad_depth", {z.b, z.n});
  check(grad_scale, "grad_scale", {z.b, z.n, 2});
  check(grad_opacity, "grad_opacity", {z.b, z.n});
  check(grad_rgb, "grad_rgb", {z.b, z.n, 3});
  check(grad_background, "grad_background", {z.b, 3});
  const GradUpstream upstream{up_rgb.data(), up_depth.data(), up_alpha.data()};
  const GradResults out{grad_xz.data(),      grad_depth.data(), grad_scale.data(),
                        grad_opacity.data(), grad_rgb.data(),   grad_background.data()};
  nb::gil_scoped_release release;
  raster_grad_backward(state, in, upstream, threads, out);
}

}  // namespace

void register_grad(nb::module_& m) {
  nb::class_<GradState>(m, "GradState", "What the backward pass needs of a forward pass.");
  m.def("raster_grad_forward", &forward, "Differentiable rendering; see training/rasterizer.py.");
  m.def("raster_grad_backward", &backward, "The derivative of raster_grad_forward.");
}

}  // namespace streamsplat
