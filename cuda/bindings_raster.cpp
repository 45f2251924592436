// Python bindings of the CPU rasterizer. Values are checked by runtime/rasterizer.py, which is the public interface;
// here only what would be unsafe is refused (sizes of arrays, through std::invalid_argument -> ValueError).
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>

#include "bindings.h"
#include "raster_cpu.h"
#include "raster_cpu_time.h"
#include "streamsplat_raster.h"

namespace nb = nanobind;

namespace streamsplat {
namespace {

using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Rows2 = nb::ndarray<const float, nb::shape<-1, 2>, nb::c_contig, nb::device::cpu>;
using Rows3 = nb::ndarray<const float, nb::shape<-1, 3>, nb::c_contig, nb::device::cpu>;
using Rows4 = nb::ndarray<const float, nb::shape<-1, 4>, nb::c_contig, nb::device::cpu>;
using Rows9 = nb::ndarray<const float, nb::shape<-1, 9>, nb::c_contig, nb::device::cpu>;
using Vector3 = nb::ndarray<const float, nb::shape<3>, nb::c_contig, nb::device::cpu>;
using Matrix3 = nb::ndarray<const float, nb::shape<3, 3>, nb::c_contig, nb::device::cpu>;
using VectorOut = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Rows3Out = nb::ndarray<float, nb::shape<-1, 3>, nb::c_contig, nb::device::cpu>;
using PlaneOut = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using ImageOut = nb::ndarray<float, nb::shape<-1, -1, 3>, nb::c_contig, nb::device::cpu>;

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

void check(ss_status status) {
  if (status == SS_OUT_OF_MEMORY) throw std::bad_alloc();
  if (status == SS_INVALID_ARGUMENT || status == SS_UNSUPPORTED) throw std::invalid_argument(ss_status_text(status));
  if (status != SS_OK) throw std::runtime_error(ss_status_text(status));
}

struct Destroy {
  void operator()(ss_rasterizer* r) const { ss_rasterizer_destroy(r); }
};

class PyRasterizer {
 public:
  PyRasterizer(int height, int width, int threads, const std::string& simd) : height_(height), width_(width) {
    ss_rasterizer* raw = nullptr;
    check(ss_rasterizer_create(height, width, threads, static_cast<ss_simd>(simd_level(simd)), &raw));
    handle_.reset(raw);
  }

  nb::tuple render(const Rows3& means, const Rows3& scales, const Vector& opacity, const Rows3& rgb,
                   const std::optional<Rows4>& quats, std::int64_t count, const Vector3& background,
                   const std::optional<Matrix3>& rotation, const std::optional<Vector3>& translation, bool full,
                   const ImageOut& out_rgb, const PlaneOut& depth, const PlaneOut& expected, const PlaneOut& alpha) {
    const auto rows = [count](std::size_t n) { return count >= 0 && static_cast<std::size_t>(count) <= n; };
    require(rows(means.shape(0)) && rows(scales.shape(0)) && rows(opacity.shape(0)) && rows(rgb.shape(0)) &&
                (!quats || rows(quats->shape(0))),
            "count exceeds the rows of an array");
    require(rotation.has_value() == translation.has_value(), "rotation and translation go together");
    require(fits(out_rgb) && fits(depth) && fits(expected) && fits(alpha), "an output has another size");
    const ss_splats splats{means.data(), scales.data(), opacity.data(), rgb.data(), quats ? quats->data() : nullptr,
                           count};
    ss_view view{};
    if (rotation) {
      for (int i = 0; i < 9; ++i) view.rotation[i] = rotation->data()[i];
      for (int i = 0; i < 3; ++i) view.translation[i] = translation->data()[i];
    }
    const ss_image image{out_rgb.data(), depth.data(), expected.data(), alpha.data()};
    ss_stats s{};
    ss_status status;
    {
      nb::gil_scoped_release release;
      status = ss_rasterizer_render(handle_.get(), &splats, rotation ? &view : nullptr, background.data(),
                                    full ? SS_EXTENT_FULL : SS_EXTENT_PUBLISHED, &image, &s);
    }
    check(status);
    return nb::make_tuple(s.rendered, s.culled_invalid, s.culled_behind, s.culled_transparent, s.culled_outside,
                          s.pairs, s.binned_pairs);
  }

 private:
  template <class Array>
  bool fits(const Array& a) const {
    return a.shape(0) == static_cast<std::size_t>(height_) && a.shape(1) == static_cast<std::size_t>(width_);
  }

  int height_, width_;
  std::unique_ptr<ss_rasterizer, Destroy> handle_;
};

void py_evaluate_at(const Rows9& gaussians, const Rows3& motion, const Rows2& fade, float dt, bool paper, int threads,
                    const Rows3Out& means, const Rows3Out& scales, const VectorOut& opacity, const Rows3Out& rgb,
                    std::int64_t offset) {
  const std::size_t count = gaussians.shape(0);
  require(motion.shape(0) == count && fade.shape(0) == count, "gaussians, motion and fade differ in rows");
  const auto room = [&](std::size_t n) { return offset >= 0 && static_cast<std::size_t>(offset) + count <= n; };
  require(room(means.shape(0)) && room(scales.shape(0)) && room(opacity.shape(0)) && room(rgb.shape(0)),
          "the output has no room for the rows at this offset");
  ss_status status;
  {
    nb::gil_scoped_release release;
    status = ss_evaluate_at(gaussians.data(), motion.data(), fade.data(), static_cast<std::int64_t>(count), dt,
                            paper ? SS_DEPTH_PAPER : SS_DEPTH_PUBLISHED, threads, means.data() + 3 * offset,
                            scales.data() + 3 * offset, opacity.data() + offset, rgb.data() + 3 * offset);
  }
  check(status);
}

}  // namespace

SimdLevel simd_level(const std::string& name) {
  if (name == "scalar") return SimdLevel::kPlain;  // everywhere, also where that is NEON and called so
  for (const SimdLevel level : {SimdLevel::kAuto, SimdLevel::kPlain, SimdLevel::kAvx2, SimdLevel::kAvx512})
    if (name == simd_name(level)) return level;
  throw std::invalid_argument("simd must be auto, avx512, avx2, neon or scalar, not " + name);
}

void register_raster(nb::module_& m) {
  // No implicit conversion anywhere: a converted output would be a copy, a converted input a hidden allocation.
  nb::class_<PyRasterizer>(m, "Rasterizer")
      .def(nb::init<int, int, int, const std::string&>(), nb::arg("height"), nb::arg("width"), nb::arg("threads"),
           nb::arg("simd"))
      .def("render", &PyRasterizer::render, nb::arg("means").noconvert(), nb::arg("scales").noconvert(),
           nb::arg("opacity").noconvert(), nb::arg("rgb").noconvert(), nb::arg("quats").noconvert().none(),
           nb::arg("count"), nb::arg("background").noconvert(), nb::arg("rotation").noconvert().none(),
           nb::arg("translation").noconvert().none(), nb::arg("full"), nb::arg("out_rgb").noconvert(),
           nb::arg("depth").noconvert(), nb::arg("expected_depth").noconvert(), nb::arg("alpha").noconvert());
  m.def("evaluate_at", &py_evaluate_at, nb::arg("gaussians").noconvert(), nb::arg("motion").noconvert(),
        nb::arg("fade").noconvert(), nb::arg("dt"), nb::arg("paper"), nb::arg("threads"), nb::arg("means").noconvert(),
        nb::arg("scales").noconvert(), nb::arg("opacity").noconvert(), nb::arg("rgb").noconvert(), nb::arg("offset"));
  m.def("simd_best", [] { return std::string(simd_name(simd_best())); });
  m.def(
      "simd_supported",
      [](const std::string& name) {
        if (name == "neon") return name == simd_name(SimdLevel::kPlain);
        return simd_supported(simd_level(name));
      },
      nb::arg("level"));
  m.def("pool_threads", [](int threads) { return ThreadPool::shared(threads).threads(); }, nb::arg("threads"));
}

}  // namespace streamsplat
