// The arithmetic of cuda/splat_math.h in GLSL. Coordinates are pixels of the model's image, whatever the canvas has:
// the centre of pixel i is i, rows run downwards, and row 0 is the first of the frame buffer.

const HEAD = `#version 300 es
precision highp float;
precision highp int;
precision highp usampler2D;
`;

export const SPLAT_VERTEX = `${HEAD}
const float LOW_PASS = 0.3;
const float ALPHA_MIN = 1.0 / 255.0;
const float HOMOGENEOUS = 1.0 / (1.0 + 1e-7);
const float TILE = 16.0;

uniform usampler2D earlier, later;  // RGB32UI, one texel per Gaussian of a key frame
uniform usampler2D motion;          // RG32UI, both key frames one after the other
uniform vec2 gaussianRange[18];     // [lowest, step] of nine columns, of either key frame
uniform vec2 motionRange[5];
uniform uint count;                 // Gaussians per key frame
uniform bool moving;
uniform bool paper;                 // mapping of depth
uniform float time;                 // in the pair, 0 to 1
uniform vec3 rotation[3];           // rows
uniform vec3 translation;
uniform vec2 size;                  // model pixels

in uint index;
out vec2 toCentre;
flat out vec4 conic;                // half_inv_x, half_inv_y, shear, opacity
flat out vec4 colour;               // and depth

float value(vec2 range, uint code) { return range.x + float(code) * range.y; }
ivec2 place(uint i) { return ivec2(i & 1023u, i >> 10u); }

float depthOf(float y) { return paper ? 2.0 / (1.0 + y) : 1.0 / (0.2 + 9.8 * y + 1e-6); }

void main() {
  gl_Position = vec4(2.0, 2.0, 2.0, 1.0);  // outside, until it turns out to be visible
  bool second = index >= count;
  uint row = second ? index - count : index;
  uvec3 code = second ? texelFetch(later, place(row), 0).rgb : texelFetch(earlier, place(row), 0).rgb;
  int base = second ? 9 : 0;
  uint opacityCode = code.b >> 24u;
  if (opacityCode == 0u) return;
  float dt = second ? time - 1.0 : time;
  vec3 position = vec3(value(gaussianRange[base], code.r & 0xffffu), value(gaussianRange[base + 1], code.r >> 16u),
                       value(gaussianRange[base + 2], code.g & 0xffffu));
  float opacity = value(gaussianRange[base + 8], opacityCode);
  if (moving) {
    uvec2 m = texelFetch(motion, place(index), 0).rg;
    uint gamma0Code = (m.g >> 16u) & 0xffu;
    if (gamma0Code == 255u) return;
    position += dt * vec3(value(motionRange[0], m.r & 0xffffu), value(motionRange[1], m.r >> 16u),
                          value(motionRange[2], m.g & 0xffffu));
    float gamma0 = value(motionRange[3], gamma0Code), gamma1 = value(motionRange[4], m.g >> 24u);
    opacity *= (1.0 + exp(-gamma0 * gamma1)) / (1.0 + exp(gamma0 * (abs(dt) - gamma1)));
  }
  if (opacity < ALPHA_MIN || position.y < 0.0 || position.y > 1.0) return;
  position.y = depthOf(position.y);
  vec3 view = vec3(dot(rotation[0], position), dot(rotation[1], position), dot(rotation[2], position)) + translation;
  if (view.z <= 0.0) return;

  float sx = exp(value(gaussianRange[base + 6], (code.b >> 8u) & 0xffu));
  float sz = exp(value(gaussianRange[base + 7], (code.b >> 16u) & 0xffu));
  vec3 scale = vec3(sx, 0.5 * (sx + sz), sz);
  vec3 across = 0.5 * size.x * rotation[0] * scale, down = 0.5 * size.y * rotation[1] * scale;
  float a = dot(across, across), b = dot(across, down), c = dot(down, down);
  vec3 minors = cross(across, down);
  float det = dot(minors, minors) + LOW_PASS * (a + c) + LOW_PASS * LOW_PASS;
  a += LOW_PASS;
  c += LOW_PASS;

  vec2 centre = view.xy * HOMOGENEOUS * 0.5 * size + 0.5 * (size - 1.0);
  // Where alpha can reach 1/255, and within the tiles that three sigma touch.
  vec2 support = sqrt(2.0 * log(255.0 * opacity) * vec2(a, c)) * 1.00001 + 0.01;
  float mid = 0.5 * (a + c);
  float radius = ceil(3.0 * sqrt(mid + sqrt(max(0.1, mid * mid - det))));
  vec2 tiles = ceil(size / TILE);
  vec2 begin = floor(clamp((centre - radius) / TILE, vec2(0.0), tiles));
  vec2 end = floor(clamp((centre + radius + (TILE - 1.0)) / TILE, vec2(0.0), tiles));
  vec2 low = max(centre - support, begin * TILE - 0.5), high = min(centre + support, end * TILE - 0.5);
  if (any(greaterThanEqual(low, high))) return;

  vec2 corner = mix(low, high, vec2(gl_VertexID & 1, gl_VertexID >> 1));
  toCentre = centre - corner;
  conic = vec4(0.5 * c / det, 0.5 / c, -b / c, opacity);
  colour = vec4(value(gaussianRange[base + 3], (code.g >> 16u) & 0xffu), value(gaussianRange[base + 4], code.g >> 24u),
                value(gaussianRange[base + 5], code.b & 0xffu), view.z);
  gl_Position = vec4((corner + 0.5) / size * 2.0 - 1.0, 0.0, 1.0);
}`;

export const SPLAT_FRAGMENT = `${HEAD}
in vec2 toCentre;
flat in vec4 conic;
flat in vec4 colour;
layout(location = 0) out vec4 light;  // premultiplied by alpha
layout(location = 1) out vec4 depth;

void main() {
  float u = toCentre.x + conic.z * toCentre.y;
  float alpha = min(0.99, conic.w * exp(-u * u * conic.x - toCentre.y * toCentre.y * conic.y));
  if (alpha < 1.0 / 255.0) discard;
  light = vec4(colour.rgb * alpha, alpha);
  depth = vec4(colour.a * alpha, 0.0, 0.0, alpha);
}`;

export const PICTURE_VERTEX = `${HEAD}
out vec2 at;
void main() {
  vec2 corner = vec2(gl_VertexID & 1, gl_VertexID >> 1);
  at = vec2(corner.x, 1.0 - corner.y);  // the canvas has its first row at the top
  gl_Position = vec4(corner * 2.0 - 1.0, 0.0, 1.0);
}`;

// Over the background; or nearness (1 / expected depth) in colours, dark where nothing is.
export const PICTURE_FRAGMENT = `${HEAD}
precision highp sampler2D;
uniform sampler2D light, depth, colours;
uniform bool showDepth;
uniform vec3 background;
uniform vec2 nearness;  // shown as darkest and brightest
in vec2 at;
out vec4 pixel;

void main() {
  vec4 sum = texture(light, at);
  pixel = vec4(sum.rgb + (1.0 - sum.a) * background, 1.0);
  if (!showDepth) return;
  float accumulated = texture(depth, at).r;
  pixel = vec4(0.078, 0.082, 0.094, 1.0);
  if (sum.a <= 0.05 || accumulated <= 0.0) return;
  float level = (sum.a / accumulated - nearness.x) / max(nearness.y - nearness.x, 0.02 * nearness.y);
  pixel = texture(colours, vec2(clamp(level, 0.0, 1.0) * 255.0 / 256.0 + 0.5 / 256.0, 0.5));
}`;
