/* The smallest program that renders: two Gaussians, one at a time of its own, and the middle pixel printed. */
#include <stdio.h>

#include "streamsplat_raster.h"

enum { HEIGHT = 48, WIDTH = 64 };

int main(void) {
  /* x, y (inverse depth), z, r, g, b, scale_x, scale_z, opacity */
  const float gaussians[2][9] = {{0.0f, 0.9f, 0.0f, 1.0f, 0.2f, 0.1f, 0.2f, 0.3f, 0.6f},
                                 {0.1f, 0.1f, -0.1f, 0.0f, 0.9f, 0.4f, 0.5f, 0.4f, 0.9f}};
  const float motion[2][3] = {{0.1f, 0.0f, 0.0f}, {0.0f, 0.05f, -0.1f}};
  const float fade[2][2] = {{4.0f, 0.5f}, {0.0f, 0.3f}};
  const float background[3] = {0.5f, 0.5f, 0.5f};
  static float means[2][3], scales[2][3], opacity[2], rgb[2][3];
  static float colour[HEIGHT][WIDTH][3], depth[HEIGHT][WIDTH], expected[HEIGHT][WIDTH], alpha[HEIGHT][WIDTH];
  const ss_splats splats = {&means[0][0], &scales[0][0], opacity, &rgb[0][0], NULL, 2};
  const ss_image image = {&colour[0][0][0], &depth[0][0], &expected[0][0], &alpha[0][0]};
  const ss_view turned = {{1, 0, 0, 0, 0.1f, -1, 0, 1, 0.1f}, {0, 0, 0}};
  ss_rasterizer* rasterizer = NULL;
  ss_stats stats;
  ss_status status;
  int pass;

  status = ss_evaluate_at(&gaussians[0][0], &motion[0][0], &fade[0][0], 2, 0.25f, SS_DEPTH_PUBLISHED, 2, &means[0][0],
                          &scales[0][0], opacity, &rgb[0][0]);
  if (status == SS_OK) status = ss_rasterizer_create(HEIGHT, WIDTH, 2, SS_SIMD_AUTO, &rasterizer);
  for (pass = 0; pass < 2 && status == SS_OK; ++pass) {
    const float* p = colour[HEIGHT / 2][WIDTH / 2];
    status = ss_rasterizer_render(rasterizer, &splats, pass == 0 ? NULL : &turned, background, SS_EXTENT_PUBLISHED,
                                  &image, &stats);
    if (status == SS_OK)
      printf("%a %a %a %a %a %lld\n", p[0], p[1], p[2], depth[HEIGHT / 2][WIDTH / 2], alpha[HEIGHT / 2][WIDTH / 2],
             (long long)stats.pairs);
  }
  if (status != SS_OK) fprintf(stderr, "failed: %s\n", ss_status_text(status));

  /* Errors are codes, never crashes. */
  if (ss_rasterizer_create(0, WIDTH, 0, SS_SIMD_AUTO, &(ss_rasterizer*){NULL}) != SS_INVALID_ARGUMENT) return 2;
  if (ss_rasterizer_create(HEIGHT, WIDTH, 0, SS_SIMD_AUTO, NULL) != SS_INVALID_ARGUMENT) return 3;
  if (ss_rasterizer_render(NULL, &splats, NULL, background, SS_EXTENT_FULL, &image, NULL) != SS_INVALID_ARGUMENT)
    return 4;
  if (ss_rasterizer_render(rasterizer, &splats, NULL, background, (ss_extent)7, &image, NULL) != SS_INVALID_ARGUMENT)
    return 5;
  ss_rasterizer_destroy(rasterizer);
  ss_rasterizer_destroy(NULL);
  return status == SS_OK ? 0 : 1;
}
