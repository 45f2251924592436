// What was received: key frames, pairs and pictures, by time. Follows the runtime's own forgetting.

import { depthPercentiles } from "./wire.js";

export class Store {
  constructor() {
    this.clear();
  }

  clear() {
    this.keyFrames = new Map();
    this.pairs = []; // by time
    this.pictures = []; // by time
    this.bytes = 0;
  }

  add(message) {
    if (message.kind === "keyFrame") {
      message.percentiles = depthPercentiles(message);
      this.keyFrames.set(message.id, message);
    } else if (message.kind === "pair") {
      insert(this.pairs, message);
    } else {
      insert(this.pictures, message);
    }
  }

  // Everything that ended before `oldest` (seconds) goes; key frames as long as a pair needs them do not.
  forget(oldest) {
    this.pairs = this.pairs.filter((pair) => pair.end > oldest);
    this.pictures = this.pictures.filter((picture) => picture.time >= oldest);
    const needed = new Set(this.pairs.flatMap((pair) => [pair.earlier, pair.later]));
    for (const [id, keyFrame] of this.keyFrames) {
      if (!needed.has(id) && keyFrame.time < oldest) this.keyFrames.delete(id);
    }
  }

  get empty() {
    return this.keyFrames.size === 0;
  }

  // [first, last] second that can be shown.
  span() {
    let first = Infinity;
    let last = -Infinity;
    for (const { time } of this.keyFrames.values()) {
      first = Math.min(first, time);
      last = Math.max(last, time);
    }
    return [first, last];
  }

  // What is shown at a time: {pair, earlier, later, t in [0, 1]}, a lone {earlier}, or null. As SceneBuffer.scene_at.
  sceneAt(time) {
    let best = null;
    for (const pair of this.pairs) {
      if (!this.complete(pair)) continue;
      if (pair.time <= time && time <= pair.end) return this.scene(pair, time);
      if (pair.time <= time && (!best || pair.end > best.end)) best = pair;
    }
    let lone = null;
    for (const keyFrame of this.keyFrames.values()) {
      if (keyFrame.time <= time && (!lone || keyFrame.time > lone.time)) lone = keyFrame;
    }
    if (best && (!lone || lone.time <= best.end)) return this.scene(best, time);
    if (!lone) {
      for (const keyFrame of this.keyFrames.values()) if (!lone || keyFrame.time < lone.time) lone = keyFrame;
    }
    return lone && { pair: null, earlier: lone, later: null, t: 0 };
  }

  complete(pair) {
    return this.keyFrames.has(pair.earlier) && this.keyFrames.has(pair.later);
  }

  scene(pair, time) {
    const t = Math.min(1, Math.max(0, (time - pair.time) / (pair.end - pair.time)));
    return { pair, earlier: this.keyFrames.get(pair.earlier), later: this.keyFrames.get(pair.later), t };
  }

  // The pair that ends where `pair` begins.
  before(pair) {
    return pair && this.pairs.find((other) => other.later === pair.earlier);
  }

  pictureAt(time) {
    let found = null;
    for (const picture of this.pictures) {
      if (picture.time > time + 1e-6) break;
      found = picture;
    }
    return found || this.pictures[0] || null;
  }
}

function insert(list, item) {
  let at = list.length;
  while (at > 0 && list[at - 1].time > item.time) at--;
  const same = at > 0 && list[at - 1].time === item.time; // sent again after a reconnect
  list.splice(same ? at - 1 : at, same ? 1 : 0, item);
}
