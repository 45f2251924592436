// From back to front: depth of every Gaussian at a time, and a radix sort. Depth first, then index, as the runtime.

import { decodeMotion, decodePositions } from "./wire.js";
import { depthOf } from "./camera.js";

const BINS = 1 << 16;

export class Order {
  constructor(gaussians, mapping) {
    const n = 2 * gaussians;
    this.gaussians = gaussians;
    this.mapping = mapping;
    const floats = () => new Float32Array(n);
    this.data = { x: floats(), y: floats(), z: floats(), mx: floats(), my: floats(), mz: floats() };
    this.data.drawn = new Uint8Array(n);
    this.depth = new Float32Array(n);
    this.bits = new Uint32Array(this.depth.buffer);
    this.keys = [new Uint32Array(n), new Uint32Array(n)];
    this.indices = [new Uint32Array(n), new Uint32Array(n)];
    this.histograms = [new Uint32Array(BINS), new Uint32Array(BINS)];
    this.shown = {};
  }

  // Decodes what changed since the last scene.
  load(scene) {
    const { earlier, later, pair } = scene;
    if (this.shown.earlier === earlier && this.shown.pair === pair) return;
    this.shown = { earlier, pair };
    decodePositions(earlier, this.data, 0);
    if (pair) {
      decodePositions(later, this.data, this.gaussians);
      decodeMotion(pair, this.data);
    } else {
      for (const name of ["mx", "my", "mz"]) this.data[name].fill(0);
    }
  }

  // Indices of the Gaussians in front of the camera, farthest first: a view that the next call overwrites.
  sort(scene, view) {
    this.load(scene);
    const visible = this.measure(scene, view);
    const [low, high] = this.histograms;
    low.fill(0);
    high.fill(0);
    const [keys, swapKeys] = this.keys;
    const [indices, swapIndices] = this.indices;
    for (let i = 0; i < visible; i++) {
      low[keys[i] & 0xffff]++;
      high[keys[i] >>> 16]++;
    }
    for (let bin = 0, a = 0, b = 0; bin < BINS; bin++) {
      const [countA, countB] = [low[bin], high[bin]];
      low[bin] = a;
      high[bin] = b;
      a += countA;
      b += countB;
    }
    for (let i = 0; i < visible; i++) {
      const to = low[keys[i] & 0xffff]++;
      swapKeys[to] = keys[i];
      swapIndices[to] = indices[i];
    }
    for (let i = 0; i < visible; i++) indices[high[swapKeys[i] >>> 16]++] = swapIndices[i];
    return indices.subarray(0, visible);
  }

  // Sort keys, largest depth first. Indices go in backwards: a stable sort then puts the larger of equals behind.
  measure(scene, view) {
    const { x, y, z, mx, my, mz, drawn } = this.data;
    const { depth, bits, mapping } = this;
    const [keys] = this.keys;
    const [indices] = this.indices;
    const [rx, ry, rz] = view.rotation[2];
    const shift = view.translation[2];
    const first = this.gaussians;
    let visible = 0;
    for (let i = (scene.pair ? 2 : 1) * first - 1; i >= 0; i--) {
      if (!drawn[i]) continue;
      const dt = i < first ? scene.t : scene.t - 1;
      const inverse = y[i] + my[i] * dt;
      if (!(inverse >= 0 && inverse <= 1)) continue; // behind the camera
      const far = depthOf(inverse, mapping);
      depth[i] = rx * (x[i] + mx[i] * dt) + ry * far + rz * (z[i] + mz[i] * dt) + shift;
      if (!(depth[i] > 0)) continue;
      keys[visible] = ~bits[i]; // positive floats order like their bits
      indices[visible++] = i;
    }
    return visible;
  }
}
