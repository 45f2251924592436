/* StreamSplat CPU rasterizer, plain C interface (C99, no Python needed).
 *
 * From CMake: find_package(streamsplat_edge) after `cmake --install`, or add_subdirectory(.../cuda), and
 * target_link_libraries(program streamsplat_edge::raster). Otherwise link libstreamsplat_raster.a with the C++ standard
 * library and pthreads. See docs/c-api.md. All arrays are C-contiguous float32. World axes: x right, y depth,
 * z up; the image spans x and z in [-1, 1]. A rasterizer may be used from several threads; calls are served one after
 * the other. No function throws. Working memory grows to the largest call seen (Gaussians, and tiles that they touch)
 * and is kept.
 */
#ifndef STREAMSPLAT_RASTER_H_
#define STREAMSPLAT_RASTER_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ss_rasterizer ss_rasterizer;

typedef enum ss_status {
  SS_OK = 0,
  SS_INVALID_ARGUMENT = 1, /* null pointer, size or enum out of range, view or background not finite */
  SS_UNSUPPORTED = 2,      /* this CPU lacks the SIMD level that was asked for */
  SS_OUT_OF_MEMORY = 3,
  SS_INTERNAL = 4 /* the system refused to start threads */
} ss_status;

typedef enum ss_simd { SS_SIMD_AUTO = 0, SS_SIMD_SCALAR = 1, SS_SIMD_AVX2 = 2, SS_SIMD_AVX512 = 3 } ss_simd;

/* PUBLISHED: the tiles that 3 sigma touch, as the published model was trained. FULL: every pixel with alpha >= 1/255.
 */
typedef enum ss_extent { SS_EXTENT_PUBLISHED = 0, SS_EXTENT_FULL = 1 } ss_extent;

typedef enum ss_depth_mapping { SS_DEPTH_PUBLISHED = 0, SS_DEPTH_PAPER = 1 } ss_depth_mapping;

typedef struct ss_splats {
  const float* means;   /* [count][3] x, depth, z */
  const float* scales;  /* [count][3] standard deviations in world units */
  const float* opacity; /* [count] */
  const float* rgb;     /* [count][3] */
  const float* quats;   /* [count][4] w, x, y, z, not normalised; NULL = no rotation */
  int64_t count;        /* 0 to 2^31 - 1 */
} ss_splats;

/* p_view = rotation * p_world + translation; view axes: x right, y down, z depth. Orthographic. */
typedef struct ss_view {
  float rotation[9]; /* row-major */
  float translation[3];
} ss_view;

typedef struct ss_image {
  float* rgb;            /* [height][width][3] */
  float* depth;          /* [height][width] accumulated: sum of depth * weight */
  float* expected_depth; /* [height][width] depth / alpha, 0 where alpha is 0 */
  float* alpha;          /* [height][width] */
} ss_image;

typedef struct ss_stats {
  int64_t rendered;
  int64_t culled_invalid;     /* NaN or infinite input */
  int64_t culled_behind;      /* view depth <= 0 */
  int64_t culled_transparent; /* opacity < 1/255 */
  int64_t culled_outside;
  int64_t pairs;        /* tile-Gaussian pairs of the extent */
  int64_t binned_pairs; /* those that can reach alpha 1/255 */
} ss_stats;

/* height and width: 1 to 16384. threads: 0 = all cores this process may run on; at most 256 are used. Rasterizers with
 * the same number of threads share them. */
ss_status ss_rasterizer_create(int height, int width, int threads, ss_simd simd, ss_rasterizer** out);
void ss_rasterizer_destroy(ss_rasterizer* rasterizer); /* NULL is allowed */

/* view NULL = canonical. stats may be NULL. */
ss_status ss_rasterizer_render(ss_rasterizer* rasterizer, const ss_splats* splats, const ss_view* view,
                               const float background[3], ss_extent extent, const ss_image* image, ss_stats* stats);

/* Gaussians of a key frame at dt = t - anchor, t in [0, 1] over the pair.
 * gaussians [count][9]: x, y, z, r, g, b, scale_x, scale_z, opacity; motion [count][3]; fade [count][2] = gamma0,
 * gamma1. Writes means [count][3], scales [count][3], opacity [count], rgb [count][3]. */
ss_status ss_evaluate_at(const float* gaussians, const float* motion, const float* fade, int64_t count, float dt,
                         ss_depth_mapping mapping, int threads, float* means, float* scales, float* opacity,
                         float* rgb);

const char* ss_status_text(ss_status status);

#ifdef __cplusplus
}
#endif

#endif /* STREAMSPLAT_RASTER_H_ */
