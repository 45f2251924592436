// The camera and the depth of things, with the runtime's conventions (runtime/rasterizer.py, cuda/splat_math.h).

const LIMITS = { yaw: 0.6, pitch: 0.4 };

// Depth of a normalised inverse depth in [0, 1].
export function depthOf(y, mapping) {
  return mapping === "paper" ? 2 / (1 + y) : 1 / (0.2 + 9.8 * y + 1e-6);
}

// View.swing: the canonical camera swung about the world point (0, pivot, 0). Rows of the rotation, and translation.
export function swing(yaw, pitch, pivot) {
  const [cy, sy, cp, sp] = [Math.cos(yaw), Math.sin(yaw), Math.cos(pitch), Math.sin(pitch)];
  // about_horizontal @ about_vertical, in view axes x right, y down, z depth ...
  const turn = [
    [cy, 0, sy],
    [sp * sy, cp, -sp * cy],
    [-cp * sy, sp, cp * cy],
  ];
  // ... times the canonical view, (x, depth, z) -> (x, -z, depth).
  const rotation = turn.map(([a, b, c]) => [a, c, -b]);
  return { rotation, translation: rotation.map((row, i) => (i === 2 ? pivot : 0) - row[1] * pivot) };
}

// Drag to look around; what the hand lets go stays.
export class Camera {
  constructor() {
    this.reset();
  }

  reset() {
    this.yaw = 0;
    this.pitch = 0;
    this.pivot = undefined; // depth to turn about; the middle of the scene
  }

  // `dx` to the right and `dy` downwards, in widths of the picture: what is near follows the hand.
  drag(dx, dy) {
    this.yaw = clamp(this.yaw - dx * 1.2, LIMITS.yaw);
    this.pitch = clamp(this.pitch + dy * 1.2, LIMITS.pitch);
  }
}

function clamp(value, limit) {
  return Math.min(limit, Math.max(-limit, value));
}
