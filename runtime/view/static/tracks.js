// Motion of the last pair length as lines: where a choice of Gaussians came from. Colour is the direction.

const TRACKS = 2000;
const SHORTEST = 0.3; // model pixels
const VISIBLE = 0.45;

// Draws onto a 2-D canvas of any size. `data` are the floats of Order, `before` the motion of the pair before or null.
export function drawTracks(canvas, scene, view, order, grid, size, mapping, depthOf) {
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  if (!scene.pair) return 0;
  const { x, y, z, mx, my, mz, drawn } = order.data;
  const [rows, columns] = grid;
  const density = (rows * columns) / TRACKS;
  const step = Math.max(1, Math.round(rows > 1 ? Math.sqrt(density) : density)); // of an unknown grid, one row
  const project = (px, py, pz) => {
    const depth = depthOf(Math.min(1, Math.max(0, py)), mapping);
    return [0, 1].map((axis) => {
      const [a, b, c] = view.rotation[axis];
      return (a * px + b * depth + c * pz + view.translation[axis] + 1) * 0.5;
    });
  };
  context.lineWidth = Math.max(1, canvas.width / 480);
  context.lineCap = "round";
  let count = 0;
  // Of both key frames the one that is nearer in time: its Gaussians are the ones that are seen.
  const second = scene.t > 0.5;
  const dt = second ? scene.t - 1 : scene.t;
  for (let row = Math.min(step, rows) >> 1; row < rows; row += step) {
    for (let column = step >> 1; column < columns; column += step) {
      const i = row * columns + column + (second ? rows * columns : 0);
      if (!drawn[i]) continue;
      const length = Math.hypot(mx[i] * size[0], mz[i] * size[1]) / 2;
      if (length < SHORTEST) continue;
      const at = (offset) => project(x[i] + mx[i] * offset, y[i] + my[i] * offset, z[i] + mz[i] * offset);
      const [fromX, fromY] = at(dt - 1);
      const [toX, toY] = at(dt);
      const hue = (Math.atan2(toY - fromY, toX - fromX) * 180) / Math.PI;
      const alpha = Math.min(1, VISIBLE + length / 4);
      context.strokeStyle = context.fillStyle = `hsl(${hue} 90% 65% / ${alpha})`;
      context.beginPath();
      context.moveTo(fromX * canvas.width, fromY * canvas.height);
      context.lineTo(toX * canvas.width, toY * canvas.height);
      context.stroke();
      context.beginPath();
      context.arc(toX * canvas.width, toY * canvas.height, 1.4 * context.lineWidth, 0, 2 * Math.PI);
      context.fill();
      count++;
    }
  }
  return count;
}
