// Messages of the runtime, as laid out in runtime/view/packing.py. Little-endian, as every machine with WebGL2 is.

export const VERSION = 1;
const KINDS = { 1: "keyFrame", 2: "pair", 3: "picture", 4: "exact" };

// [lowest, step] per column: value = lowest + code * step.
const COLUMNS = { x: 0, y: 1, z: 2, r: 3, g: 4, b: 5, scaleX: 6, scaleZ: 7, opacity: 8 };

export function decode(buffer) {
  const data = new DataView(buffer);
  const kind = KINDS[data.getUint8(0)];
  if (!kind || data.getUint8(1) !== VERSION) throw new Error("the runtime speaks another version; reload the page");
  const message = { kind, number: data.getUint32(4, true), time: data.getFloat64(8, true) };
  if (kind === "keyFrame") {
    message.id = data.getUint32(16, true);
    message.count = data.getUint32(20, true);
    message.ranges = new Float32Array(buffer, 24, 18);
    message.words = new Uint32Array(buffer, 96, 3 * message.count);
  } else if (kind === "pair") {
    message.end = data.getFloat64(16, true);
    message.earlier = data.getUint32(24, true);
    message.later = data.getUint32(28, true);
    message.count = data.getUint32(32, true);
    message.ranges = new Float32Array(buffer, 40, 10);
    message.words = new Uint32Array(buffer, 80, 4 * message.count);
  } else if (kind === "picture") {
    message.frame = data.getUint32(16, true);
    message.blob = new Blob([new Uint8Array(buffer, 24)], { type: "image/jpeg" });
  } else {
    message.request = data.getUint32(16, true);
    message.width = data.getUint16(20, true);
    message.height = data.getUint16(22, true);
    message.rgb = new Uint8Array(buffer, 24, 3 * message.width * message.height);
  }
  return message;
}

// Positions of a key frame as floats, and which Gaussians can be drawn at all.
export function decodePositions(keyFrame, out, offset) {
  const { words, ranges, count } = keyFrame;
  const [x0, dx, y0, dy, z0, dz] = ranges;
  for (let i = 0, w = 0, o = offset; i < count; i++, w += 3, o++) {
    out.x[o] = x0 + (words[w] & 0xffff) * dx;
    out.y[o] = y0 + (words[w] >>> 16) * dy;
    out.z[o] = z0 + (words[w + 1] & 0xffff) * dz;
    out.drawn[o] = words[w + 2] >>> 24 ? 1 : 0;
  }
}

// Motion of a pair as floats, both key frames one after the other.
export function decodeMotion(pair, out) {
  const { words, ranges } = pair;
  const [x0, dx, y0, dy, z0, dz] = ranges;
  for (let i = 0, w = 0; i < 2 * pair.count; i++, w += 2) {
    out.mx[i] = x0 + (words[w] & 0xffff) * dx;
    out.my[i] = y0 + (words[w] >>> 16) * dy;
    out.mz[i] = z0 + (words[w + 1] & 0xffff) * dz;
    if (((words[w + 1] >>> 16) & 0xff) === 255) out.drawn[i] = 0;
  }
}

// Normalised inverse depths of a key frame's Gaussians: [2nd, 50th, 98th] percentile of those that are drawn.
export function depthPercentiles(keyFrame) {
  const { words, ranges, count } = keyFrame;
  const low = ranges[2 * COLUMNS.y];
  const step = ranges[2 * COLUMNS.y + 1];
  const values = [];
  const stride = Math.max(1, Math.floor(count / 4096));
  for (let i = 0; i < count; i += stride) {
    const y = low + (words[3 * i] >>> 16) * step;
    if (words[3 * i + 2] >>> 24 && y >= 0 && y <= 1) values.push(y);
  }
  if (!values.length) return [0, 0.5, 1];
  values.sort((a, b) => a - b);
  return [0.02, 0.5, 0.98].map((p) => values[Math.round(p * (values.length - 1))]);
}
