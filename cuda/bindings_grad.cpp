// Python bindings of the differentiable rasterizer; training/rasterizer.py is the only caller and checks shapes first.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <cstddef>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>

#include "bindings.h"
#include "raster_grad.h"

namespace nb = nanobind;
using namespace nb::literals;

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

// A capsule, not a bound class: torch never frees the graphs that are still alive when the interpreter shuts down (say
// in a global variable), and nanobind would report the state that such a graph holds as a leaked instance.
constexpr const char* kStateName = "streamsplat_edge._core.GradState";

const GradState& state_of(const nb::capsule& capsule) {
  if (capsule.name() == nullptr || std::strcmp(capsule.name(), kStateName) != 0)
    throw std::invalid_argument("state must be what raster_grad_forward returned");
  return *static_cast<const GradState*>(capsule.data());
}

SimdLevel supported_level(const std::string& name) {
  const SimdLevel level = simd_level(name);
  if (!simd_supported(level)) throw std::invalid_argument("this CPU has no " + name);
  return level;
}

nb::capsule forward(const Input& xz, const Input& depth, const Input& scale, const Input& opacity, const Input& rgb,
                    const Input& background, const Output& out_rgb, const Output& out_depth, const Output& out_alpha,
                    int threads, const std::string& simd) {
  if (depth.ndim() != 2 || out_alpha.ndim() != 3) throw std::invalid_argument("depth must be [B,N], alpha [B,H,W]");
  const Sizes z{depth.shape(0), depth.shape(1), out_alpha.shape(1), out_alpha.shape(2)};
  if (z.h == 0 || z.w == 0 || z.h > 32000 || z.w > 32000) throw std::invalid_argument("image sides must be 1 to 32000");
  const GradInputs in = check_inputs(z, xz, depth, scale, opacity, rgb, background);
  check(out_rgb, "out_rgb", {z.b, z.h, z.w, 3});
  check(out_depth, "out_depth", {z.b, z.h, z.w});
  check(out_alpha, "out_alpha", {z.b, z.h, z.w});
  auto state = std::make_unique<GradState>(static_cast<int>(z.b), static_cast<int>(z.n), static_cast<int>(z.h),
                                           static_cast<int>(z.w), supported_level(simd));
  const GradOutputs out{out_rgb.data(), out_depth.data(), out_alpha.data()};
  {
    nb::gil_scoped_release release;
    raster_grad_forward(in, threads, state.get(), out);
  }
  return nb::capsule(state.release(), kStateName, [](void* p) noexcept { delete static_cast<GradState*>(p); });
}

void backward(const nb::capsule& capsule, const Input& xz, const Input& depth, const Input& scale, const Input& opacity,
              const Input& rgb, const Input& background, const Input& up_rgb, const Input& up_depth,
              const Input& up_alpha, const Output& grad_xz, const Output& grad_depth, const Output& grad_scale,
              const Output& grad_opacity, const Output& grad_rgb, const Output& grad_background, int threads) {
  const GradState& state = state_of(capsule);
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
  m.def("raster_grad_forward", &forward, "xz"_a, "depth"_a, "scale"_a, "opacity"_a, "rgb"_a, "background"_a,
        "out_rgb"_a, "out_depth"_a, "out_alpha"_a, "threads"_a, "simd"_a = "auto",
        "Differentiable rendering; see training/rasterizer.py. Returns the state that the backward pass needs.");
  m.def("raster_grad_backward", &backward, "state"_a, "xz"_a, "depth"_a, "scale"_a, "opacity"_a, "rgb"_a,
        "background"_a, "up_rgb"_a, "up_depth"_a, "up_alpha"_a, "grad_xz"_a, "grad_depth"_a, "grad_scale"_a,
        "grad_opacity"_a, "grad_rgb"_a, "grad_background"_a, "threads"_a, "The derivative of raster_grad_forward.");
}

}  // namespace streamsplat
