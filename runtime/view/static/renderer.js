// Draws a scene with WebGL2: splats from back to front into a floating-point frame buffer, colour and depth at once,
// and from there to the canvas.

import { Order } from "./order.js";
import { PICTURE_FRAGMENT, PICTURE_VERTEX, SPLAT_FRAGMENT, SPLAT_VERTEX } from "./shaders.js";

const TEXTURE_WIDTH = 1024; // as in the shader

// Of runtime/depth_colours.py, from far to near.
const DEPTH_STOPS = [
  [10, 8, 38], [42, 18, 98], [98, 26, 124], [158, 44, 112],
  [212, 76, 80], [244, 132, 52], [253, 196, 84], [252, 246, 192],
];

export class Renderer {
  // `hello` is the runtime's; throws where the browser has no WebGL2.
  constructor(hello) {
    const { width, height, grid } = hello;
    this.size = [width, height];
    this.background = hello.background;
    this.paper = hello.depth_mapping === "paper";
    this.gaussians = grid[0] * grid[1];
    this.order = new Order(this.gaussians, hello.depth_mapping);
    this.canvas = document.createElement("canvas");
    const gl = this.canvas.getContext("webgl2", { alpha: false, antialias: false, depth: false });
    if (!gl) throw new Error("This browser has no WebGL2. Use “exact pixels”: the runtime renders for you.");
    this.gl = gl;
    // Sums of many small parts need more than 8 bits.
    this.float = Boolean(gl.getExtension("EXT_color_buffer_float") || gl.getExtension("EXT_color_buffer_half_float"));
    const info = gl.getExtension("WEBGL_debug_renderer_info");
    this.device = String(gl.getParameter(info ? info.UNMASKED_RENDERER_WEBGL : gl.RENDERER));
    this.software = /swiftshader|llvmpipe|software/i.test(this.device);
    this.splats = program(gl, SPLAT_VERTEX, SPLAT_FRAGMENT);
    this.picture = program(gl, PICTURE_VERTEX, PICTURE_FRAGMENT);
    this.textures = ["earlier", "later", "motion"].map(() => gl.createTexture());
    this.uploaded = [null, null, null];
    this.makeIndices();
    this.colours = this.makeColours();
    this.scale = 0;
    this.fence = null;
  }

  makeIndices() {
    const gl = this.gl;
    this.vertices = gl.createVertexArray();
    this.indices = gl.createBuffer();
    gl.bindVertexArray(this.vertices);
    gl.bindBuffer(gl.ARRAY_BUFFER, this.indices);
    gl.bufferData(gl.ARRAY_BUFFER, 8 * this.gaussians, gl.STREAM_DRAW);
    const place = gl.getAttribLocation(this.splats.program, "index");
    gl.enableVertexAttribArray(place);
    gl.vertexAttribIPointer(place, 1, gl.UNSIGNED_INT, 0, 0);
    gl.vertexAttribDivisor(place, 1);
    this.empty = gl.createVertexArray();
  }

  makeColours() {
    const table = new Uint8Array(256 * 4);
    for (let i = 0; i < 256; i++) {
      const at = (i / 255) * (DEPTH_STOPS.length - 1);
      const stop = Math.min(Math.floor(at), DEPTH_STOPS.length - 2);
      for (let c = 0; c < 3; c++) {
        table[4 * i + c] = DEPTH_STOPS[stop][c] + (at - stop) * (DEPTH_STOPS[stop + 1][c] - DEPTH_STOPS[stop][c]);
      }
      table[4 * i + 3] = 255;
    }
    const gl = this.gl;
    const texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, 256, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, table);
    nearest(gl);
    return texture;
  }

  // Canvas pixels per model pixel, a whole number. 1 gives the pixels of the runtime, more a smoother enlargement.
  resize(scale) {
    if (scale === this.scale) return;
    const gl = this.gl;
    this.scale = scale;
    [this.canvas.width, this.canvas.height] = this.size.map((side) => side * scale);
    if (this.target) [this.target.light, this.target.depth].forEach((texture) => gl.deleteTexture(texture));
    const buffer = this.target ? this.target.buffer : gl.createFramebuffer();
    this.target = { buffer, light: this.makeTarget(), depth: this.makeTarget() };
    gl.bindFramebuffer(gl.FRAMEBUFFER, buffer);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, this.target.light, 0);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT1, gl.TEXTURE_2D, this.target.depth, 0);
    gl.drawBuffers([gl.COLOR_ATTACHMENT0, gl.COLOR_ATTACHMENT1]);
  }

  makeTarget() {
    const gl = this.gl;
    const texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.texStorage2D(gl.TEXTURE_2D, 1, this.float ? gl.RGBA16F : gl.RGBA8, this.canvas.width, this.canvas.height);
    nearest(gl);
    return texture;
  }

  // Whether the GPU is done with what it was given: a slow one then gets fewer frames, not a growing queue of them.
  get idle() {
    const { gl } = this;
    if (this.fence && gl.getSyncParameter(this.fence, gl.SYNC_STATUS) !== gl.SIGNALED) return false;
    gl.deleteSync(this.fence);
    this.fence = null;
    return true;
  }

  // Sums colour and depth of a scene (Store.sceneAt) into the frame buffer. Returns what it took.
  draw(scene, view) {
    const gl = this.gl;
    const begin = performance.now();
    const order = this.order.sort(scene, view);
    const sorted = performance.now();
    gl.useProgram(this.splats.program);
    this.bind(scene);
    gl.bindBuffer(gl.ARRAY_BUFFER, this.indices);
    gl.bufferData(gl.ARRAY_BUFFER, order, gl.STREAM_DRAW);
    this.setUniforms(scene, view);
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.target.buffer);
    gl.viewport(0, 0, this.canvas.width, this.canvas.height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    gl.bindVertexArray(this.vertices);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, order.length);
    gl.disable(gl.BLEND);
    return { sort: sorted - begin, visible: order.length };
  }

  bind(scene) {
    const { earlier, later, pair } = scene;
    const gl = this.gl;
    [earlier, later || earlier, pair].forEach((message, unit) => {
      gl.activeTexture(gl.TEXTURE0 + unit);
      gl.bindTexture(gl.TEXTURE_2D, this.textures[unit]);
      if (!message || this.uploaded[unit] === message) return; // a lone key frame has no motion
      const words = unit < 2 ? 3 : 2;
      const rows = Math.ceil(message.words.length / words / TEXTURE_WIDTH);
      const data = new Uint32Array(words * TEXTURE_WIDTH * rows);
      data.set(message.words);
      const [format, layout] = unit < 2 ? [gl.RGB32UI, gl.RGB_INTEGER] : [gl.RG32UI, gl.RG_INTEGER];
      gl.texImage2D(gl.TEXTURE_2D, 0, format, TEXTURE_WIDTH, rows, 0, layout, gl.UNSIGNED_INT, data);
      nearest(gl);
      this.uploaded[unit] = message;
    });
  }

  setUniforms(scene, view) {
    const { earlier, later, pair, t } = scene;
    const { gl } = this;
    const at = this.splats.uniforms;
    ["earlier", "later", "motion"].forEach((name, unit) => gl.uniform1i(at[name], unit));
    const ranges = new Float32Array(36);
    ranges.set(earlier.ranges);
    ranges.set((later || earlier).ranges, 18);
    gl.uniform2fv(at.gaussianRange, ranges);
    if (pair) gl.uniform2fv(at.motionRange, pair.ranges);
    gl.uniform1ui(at.count, this.gaussians);
    gl.uniform1i(at.moving, pair ? 1 : 0);
    gl.uniform1i(at.paper, this.paper ? 1 : 0);
    gl.uniform1f(at.time, t);
    gl.uniform3fv(at.rotation, view.rotation.flat());
    gl.uniform3fv(at.translation, view.translation);
    gl.uniform2fv(at.size, this.size);
  }

  // Puts the sums on the canvas, as colour or as depth; `nearness` is the range of 1 / depth that is shown.
  resolve(showDepth, nearness = [0, 1]) {
    const { gl } = this;
    const at = this.picture.uniforms;
    gl.useProgram(this.picture.program);
    [this.target.light, this.target.depth, this.colours].forEach((texture, i) => {
      gl.activeTexture(gl.TEXTURE3 + i);
      gl.bindTexture(gl.TEXTURE_2D, texture);
    });
    ["light", "depth", "colours"].forEach((name, i) => gl.uniform1i(at[name], 3 + i));
    gl.uniform1i(at.showDepth, showDepth ? 1 : 0);
    gl.uniform3fv(at.background, this.background);
    gl.uniform2fv(at.nearness, nearness);
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.viewport(0, 0, this.canvas.width, this.canvas.height);
    gl.bindVertexArray(this.empty);
    gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
    gl.deleteSync(this.fence);
    this.fence = gl.fenceSync(gl.SYNC_GPU_COMMANDS_COMPLETE, 0);
    gl.flush();
    return this.canvas;
  }
}

function nearest(gl) {
  for (const name of ["TEXTURE_MIN_FILTER", "TEXTURE_MAG_FILTER"]) {
    gl.texParameteri(gl.TEXTURE_2D, gl[name], gl.NEAREST);
  }
  for (const name of ["TEXTURE_WRAP_S", "TEXTURE_WRAP_T"]) {
    gl.texParameteri(gl.TEXTURE_2D, gl[name], gl.CLAMP_TO_EDGE);
  }
}

function program(gl, vertex, fragment) {
  const made = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    gl.attachShader(made, shader);
  }
  gl.linkProgram(made);
  if (!gl.getProgramParameter(made, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(made));
  const uniforms = {};
  for (let i = 0; i < gl.getProgramParameter(made, gl.ACTIVE_UNIFORMS); i++) {
    const name = gl.getActiveUniform(made, i).name.replace("[0]", "");
    uniforms[name] = gl.getUniformLocation(made, name);
  }
  return { program: made, uniforms };
}
