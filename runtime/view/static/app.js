// The page: what comes from the runtime, what is shown, and what buttons and keys do.

import { Camera, depthOf, swing } from "./camera.js";
import { Connection } from "./connection.js";
import { Exact } from "./exact.js";
import { Order } from "./order.js";
import { copyTo, layOut, onDrag, putRgb } from "./panels.js";
import { Playback } from "./playback.js";
import { Renderer } from "./renderer.js";
import { number, showStats } from "./stats.js";
import { Store } from "./store.js";
import { Timeline } from "./timeline.js";
import { drawTracks } from "./tracks.js";

const STATS_MS = 250;
const LARGEST_SCALE = 4;
const SWITCHES = { input: "i", depth: "d", tracks: "t", stats: "s", exact: "e" };

const find = (selector) => document.querySelector(selector);
const canvases = {
  input: find("#panel-input canvas"),
  scene: find("#panel-scene canvas"),
  tracks: find("#tracks"),
  depth: find("#panel-depth canvas"),
};
const stage = find("#stage");
const show = Object.fromEntries(
  Object.keys(SWITCHES).map((name) => [name, find(`#show-${name}`).ariaPressed === "true"]),
);
const [store, playback, camera] = [new Store(), new Playback(), new Camera()];

let hello = null;
let status = null;
let renderer = null;
let order = null;
let connected = false;
let aspect = 16 / 9;
let changed = true; // something but the time
let shownTime = null;
let shownPicture = null;
let statsAt = 0;
let work = { sort: 0, visible: 0, tracks: 0 };
const rate = { frames: 0, since: performance.now(), value: 0 };

const connection = new Connection({
  open() {
    connected = true;
    exact.reset();
    changed = true;
  },
  closed(reason) {
    connected = false;
    changed = true;
    if (reason) say(`The runtime closed the connection: ${reason}`);
  },
  failed(error) {
    say(error.message);
    console.error(error);
  },
  hello: begin,
  status(message) {
    status = message;
    playback.ended = message.ended;
    if (message.oldest !== null) store.forget(message.oldest);
  },
  keyFrame: keep,
  pair: keep,
  picture: keep,
  exact(image) {
    exact.answered();
    if (show.exact) putRgb(canvases.scene, image);
    changed = true;
  },
});
const exact = new Exact(connection);
const timeline = new Timeline(find("#timeline"), (time) => playback.seek(time));

function keep(message) {
  store.add(message);
  changed = true;
}

// A run begins, or the connection is back.
function begin(message) {
  if (hello?.run === message.run) return;
  hello = message;
  store.clear();
  playback.time = null;
  playback.goLive();
  aspect = hello.aspect;
  find("#title").textContent = hello.title;
  document.title = hello.title ? `${hello.title} – StreamSplat Edge` : "StreamSplat Edge";
  say("");
  try {
    renderer = new Renderer(hello);
    order = renderer.order;
    renderer.canvas.addEventListener("webglcontextlost", lost);
  } catch (error) {
    renderer = null;
    order = new Order(hello.grid[0] * hello.grid[1], hello.depth_mapping);
    say(error.message);
    flip("exact", true);
  }
  changed = true;
}

// The graphics card was taken away (sleep, a new driver). It comes back as a new one.
function lost(event) {
  event.preventDefault(); // or it would never come back
  const { canvas } = renderer;
  renderer = null;
  canvas.addEventListener("webglcontextrestored", () => {
    renderer = new Renderer(hello);
    renderer.canvas.addEventListener("webglcontextlost", lost);
    order = renderer.order;
    changed = true;
  });
}

function say(text) {
  find("#message").textContent = text;
  find("#message").hidden = !text;
}

// Between the percentiles of both key frames: the same for a moment however it was reached.
function percentiles({ earlier, later, t }) {
  return earlier.percentiles.map((value, i) => (later ? value + t * (later.percentiles[i] - value) : value));
}

function draw(scale) {
  const scene = store.sceneAt(playback.time);
  if (!scene || !hello) return;
  const depths = percentiles(scene).map((y) => depthOf(y, hello.depth_mapping));
  const pivot = camera.pivot ?? depths[1];
  const view = swing(camera.yaw, camera.pitch, pivot);
  if (renderer && (!show.exact || show.depth)) {
    renderer.resize(scale);
    work = renderer.draw(scene, view);
    if (!show.exact) copyTo(canvases.scene, renderer.resolve(false));
    if (show.depth) copyTo(canvases.depth, renderer.resolve(true, [1 / depths[0], 1 / depths[2]]));
    rate.frames++;
  }
  if (show.exact) exact.ask(playback.time, camera, pivot);
  if (show.tracks) {
    order.load(scene);
    const ratio = window.devicePixelRatio || 1;
    const box = [canvases.tracks.clientWidth, canvases.tracks.clientHeight].map((side) => Math.round(side * ratio));
    [canvases.tracks.width, canvases.tracks.height] = box;
    const size = [hello.width, hello.height];
    work.tracks = drawTracks(canvases.tracks, scene, view, order, hello.grid, size, hello.depth_mapping, depthOf);
  }
  if (show.input) drawPicture();
}

async function drawPicture() {
  const picture = store.pictureAt(playback.time);
  if (!picture || picture === shownPicture) return;
  shownPicture = picture;
  const bitmap = await createImageBitmap(picture.blob);
  if (picture === shownPicture) {
    copyTo(canvases.input, bitmap);
    if (Math.abs(aspect - bitmap.width / bitmap.height) > 0.01) {
      aspect = bitmap.width / bitmap.height; // the model's own shape may be another
      changed = true;
    }
  }
  bitmap.close();
}

function frame(now) {
  const seconds = Math.min(0.25, (now - (frame.last ?? now)) / 1000);
  frame.last = now;
  requestAnimationFrame(frame);
  const panels = ["input", "scene", "depth"].filter((name) => name === "scene" || show[name]);
  const width = layOut(stage, panels.length, aspect);
  if (store.empty) return sayState();
  const newest = store.pairs.at(-1);
  playback.step(seconds, store.span(), newest ? newest.end - newest.time : 0.1);
  const stale = changed || playback.time !== shownTime || width !== frame.width;
  if (stale && (!renderer || renderer.idle)) {
    [changed, shownTime, frame.width] = [false, playback.time, width];
    const wanted = Math.round((width * (window.devicePixelRatio || 1)) / hello.width);
    draw(renderer?.software ? 1 : Math.min(LARGEST_SCALE, Math.max(1, wanted)));
    timeline.draw(store, playback.time);
  }
  sayState();
  if (show.stats && now - statsAt > STATS_MS) {
    if (now - rate.since > 1000) {
      rate.value = (1000 * rate.frames) / (now - rate.since);
      [rate.frames, rate.since] = [0, now];
    }
    statsAt = now;
    showStats(find("#stats"), status, pageRows());
  }
}

function pageRows() {
  const [first, last] = store.span();
  return [
    ["frames / s", number(rate.value, 0)],
    ["sorted in", `${number(work.sort, 1)} ms`],
    ["buffered", `${number(last - first, 1)} s, ${store.pairs.length} pairs`],
    ["received", `${number(connection.bytes / 1e6, 1)} MB`],
    ["left out", number((status?.left_out ?? 0) + (status?.passed_over ?? 0))],
    ...(renderer && !renderer.float ? [["sums", "8 bits only"]] : []),
    ...(show.tracks ? [["tracks", number(work.tracks ?? 0)]] : []),
  ];
}

function sayState() {
  const [first, last] = store.empty ? [0, 0] : store.span();
  const text = !connected ? "disconnected" : playback.ended ? "ended" : playback.live ? "live" : "recorded";
  const chip = find("#state");
  chip.textContent = store.empty && connected ? "waiting" : text;
  chip.className = `chip ${!connected ? "lost" : playback.ended ? "ended" : playback.live ? "live" : ""}`;
  find("#play").textContent = playback.playing ? "Pause" : "Play";
  find("#live").ariaPressed = String(playback.live && !playback.ended);
  find("#live").disabled = playback.ended;
  find("#clock").textContent = store.empty ? "–" : `${(playback.time ?? first).toFixed(2)} / ${last.toFixed(2)} s`;
}

function flip(name, value = !show[name]) {
  show[name] = value;
  find(`#show-${name}`).ariaPressed = String(value);
  find("#panel-input").hidden = !show.input;
  find("#panel-depth").hidden = !show.depth;
  find("#tracks").hidden = !show.tracks;
  find("#stats").hidden = !show.stats;
  exact.asked = "";
  shownPicture = null;
  changed = true;
}

function lookAround(dx, dy) {
  camera.drag(dx, dy);
  changed = true;
}

function resetView() {
  camera.reset();
  changed = true;
}

const keys = {
  " ": () => playback.toggle(),
  l: () => playback.goLive(),
  r: resetView,
  ArrowLeft: () => playback.seek(Math.max(store.span()[0], playback.time - 1 / 30)),
  ArrowRight: () => playback.seek(Math.min(store.span()[1], playback.time + 1 / 30)),
  ...Object.fromEntries(Object.entries(SWITCHES).map(([name, key]) => [key, () => flip(name)])),
};
document.addEventListener("keydown", (event) => {
  const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!act || store.empty || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  act();
});
for (const name of Object.keys(SWITCHES)) find(`#show-${name}`).addEventListener("click", () => flip(name));
find("#play").addEventListener("click", () => playback.toggle());
find("#live").addEventListener("click", () => playback.goLive());
find("#reset").addEventListener("click", resetView);
find("#panel-scene").addEventListener("dblclick", resetView);
onDrag(find("#panel-scene"), lookAround);
flip("tracks", show.tracks);
requestAnimationFrame(frame);

// For tests and for the console: shows one moment from one side, at the model's own resolution.
window.streamsplat = {
  store,
  playback,
  get renderer() {
    return renderer;
  },
  show({ time, yaw = 0, pitch = 0, pivot }) {
    playback.seek(time);
    Object.assign(camera, { yaw, pitch, pivot });
    [changed, shownTime] = [false, time];
    draw(1);
    timeline.draw(store, time);
  },
};
