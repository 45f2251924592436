// The bar at the bottom: what is buffered, key frames as ticks, the moment that is shown. Drag it to scrub.

const COLOURS = { ground: "#1d1f24", filled: "#32353c", tick: "#ffb838", head: "#e8eaed" };

export class Timeline {
  constructor(canvas, onSeek) {
    this.canvas = canvas;
    this.span = [0, 1];
    const seek = (event) => {
      const box = canvas.getBoundingClientRect();
      const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
      onSeek(this.span[0] + share * (this.span[1] - this.span[0]));
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      seek(event);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (canvas.hasPointerCapture(event.pointerId)) seek(event);
    });
  }

  draw(store, time) {
    const { canvas } = this;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth * ratio, canvas.clientHeight * ratio].map(Math.round);
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    const context = canvas.getContext("2d");
    context.fillStyle = COLOURS.ground;
    context.fillRect(0, 0, width, height);
    this.span = store.span();
    const [first, last] = this.span;
    if (!(last > first)) return;
    const place = (seconds) => ((seconds - first) / (last - first)) * width;
    context.fillStyle = COLOURS.filled;
    for (const pair of store.pairs) context.fillRect(place(pair.time), 0, place(pair.end) - place(pair.time), height);
    context.fillStyle = COLOURS.tick;
    for (const keyFrame of store.keyFrames.values()) context.fillRect(place(keyFrame.time), height * 0.66, ratio, height);
    context.fillStyle = COLOURS.head;
    context.fillRect(Math.min(width - 3 * ratio, Math.max(0, place(time) - ratio)), 0, 3 * ratio, height);
    canvas.setAttribute("aria-valuemin", first.toFixed(2));
    canvas.setAttribute("aria-valuemax", last.toFixed(2));
    canvas.setAttribute("aria-valuenow", time.toFixed(2));
  }
}
