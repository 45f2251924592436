// The pictures side by side, as large as the window allows, and what the hand does to them.

// Sets the size of `count` panels of an aspect ratio within `stage`. Returns the width in CSS pixels.
export function layOut(stage, count, aspect, gap = 10) {
  let best = 0;
  let chosen = 1;
  for (let columns = 1; columns <= count; columns++) {
    const rows = Math.ceil(count / columns);
    const width = (stage.clientWidth - 32 - gap * (columns - 1)) / columns;
    const height = (stage.clientHeight - 28 - gap * (rows - 1)) / rows;
    if (Math.min(width, height * aspect) > best) [best, chosen] = [Math.min(width, height * aspect), columns];
  }
  const width = Math.max(80, Math.floor(best));
  stage.style.setProperty("--columns", chosen);
  stage.style.setProperty("--panel-width", `${width}px`);
  stage.style.setProperty("--panel-height", `${Math.round(width / aspect)}px`);
  return width;
}

// Copies an image or canvas onto a canvas, which takes its size.
export function copyTo(canvas, image) {
  if (canvas.width !== image.width || canvas.height !== image.height) {
    [canvas.width, canvas.height] = [image.width, image.height];
  }
  canvas.getContext("2d", { willReadFrequently: false }).drawImage(image, 0, 0);
}

// RGB, 8 bits each, onto a canvas.
export function putRgb(canvas, { width, height, rgb }) {
  const image = new ImageData(width, height);
  for (let i = 0, from = 0; i < image.data.length; i += 4, from += 3) {
    image.data[i] = rgb[from];
    image.data[i + 1] = rgb[from + 1];
    image.data[i + 2] = rgb[from + 2];
    image.data[i + 3] = 255;
  }
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// Calls `moved(dx, dy)` in widths of the panel while it is dragged.
export function onDrag(panel, moved) {
  let last = null;
  panel.addEventListener("pointerdown", (event) => {
    panel.setPointerCapture(event.pointerId);
    panel.classList.add("held");
    last = event;
  });
  panel.addEventListener("pointermove", (event) => {
    if (!last || !panel.hasPointerCapture(event.pointerId)) return;
    moved((event.clientX - last.clientX) / panel.clientWidth, (event.clientY - last.clientY) / panel.clientWidth);
    last = event;
  });
  panel.addEventListener("lostpointercapture", () => {
    panel.classList.remove("held");
    last = null;
  });
}
