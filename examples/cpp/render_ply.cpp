// Renders a scene that `streamsplat-edge run clip.mp4 --save 'scene_%04d.ply'` saved:  render_ply SCENE.ply OUT.ppm
#include <algorithm>
#include <cmath>
#include <fstream>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "streamsplat_raster.h"

struct Scene {
  int width = 0, height = 0;  // of the model's picture
  std::vector<float> means, scales, opacity, rgb;
};

// docs/outputs.md says what the file holds. Undone here: its axes, its logarithms, and the rasterizer's widening.
Scene read_scene(const char* path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const auto size = file.tellg();
  file.seekg(0);
  Scene scene;
  float aspect = 0;
  long long count = 0;
  std::string line, fields;
  while (std::getline(file, line) && line != "end_header") {
    std::istringstream words(line);
    if (line.rfind("comment streamsplat-edge picture ", 0) == 0)
      words.ignore(33) >> scene.width >> scene.height >> aspect;
    else if (line.rfind("element vertex ", 0) == 0)
      words.ignore(15) >> count;
    else if (line.rfind("property float ", 0) == 0)
      fields += line.substr(14);
  }
  if (!file || fields != " x y z f_dc_0 f_dc_1 f_dc_2 opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3" ||
      scene.width < 1 || scene.height < 1 || !(aspect > 0) || count < 0 || count > (size - file.tellg()) / (14 * 4))
    throw std::runtime_error(std::string(path) + ": not a PLY file that `run --save` wrote, or cut short");
  const auto narrower = [](float scale, int pixels) {  // 0.3 square pixels of a picture that spans two units
    return std::sqrt(std::max(scale * scale - 0.3f * 4 / (float(pixels) * pixels), 0.0f));
  };
  for (float v[14]; count > 0 && file.read(reinterpret_cast<char*>(v), sizeof v); --count) {
    const float x = narrower(std::exp(v[7]) / aspect, scene.width), z = narrower(std::exp(v[8]), scene.height);
    scene.means.insert(scene.means.end(), {v[0] / aspect, v[2], -v[1]});
    scene.scales.insert(scene.scales.end(), {x, (x + z) / 2, z});
    for (int c = 3; c < 6; ++c) scene.rgb.push_back(v[c] * 0.28209479f + 0.5f);
    scene.opacity.push_back(1 / (1 + std::exp(-v[6])));
  }
  return scene;
}

int main(int argc, char** argv) try {
  if (argc != 3) throw std::runtime_error("usage: render_ply SCENE.ply OUT.ppm");
  const Scene scene = read_scene(argv[1]);
  const size_t pixels = size_t(scene.width) * scene.height;
  std::vector<float> rgb(3 * pixels), depth(pixels), expected_depth(pixels), alpha(pixels);
  const ss_splats splats{
      scene.means.data(),           scene.scales.data(), scene.opacity.data(), scene.rgb.data(), nullptr,
      int64_t(scene.opacity.size())};
  const ss_image image{rgb.data(), depth.data(), expected_depth.data(), alpha.data()};
  const float grey[3] = {0.5f, 0.5f, 0.5f};
  ss_rasterizer* rasterizer = nullptr;
  ss_stats stats{};
  ss_status status = ss_rasterizer_create(scene.height, scene.width, 0 /* all cores */, SS_SIMD_AUTO, &rasterizer);
  if (status == SS_OK)
    status = ss_rasterizer_render(rasterizer, &splats, nullptr /* canonical view */, grey, SS_EXTENT_PUBLISHED, &image,
                                  &stats);
  ss_rasterizer_destroy(rasterizer);
  if (status != SS_OK) throw std::runtime_error(ss_status_text(status));
  std::ofstream out(argv[2], std::ios::binary);
  out << "P6\n" << scene.width << ' ' << scene.height << "\n255\n";
  for (float value : rgb) out.put(char(std::lround(std::clamp(value, 0.0f, 1.0f) * 255)));
  if (!out.flush()) throw std::runtime_error(std::string(argv[2]) + ": cannot be written");
  std::cout << stats.rendered << " of " << splats.count << " Gaussians, " << scene.width << 'x' << scene.height << '\n';
} catch (const std::exception& error) {
  std::cerr << "error: " << error.what() << '\n';
  return 1;
}
