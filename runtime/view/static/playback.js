// Which moment is shown. Live: a little behind the newest key frame, at the pace at which pairs come in. Otherwise at
// the pace of the recording, round and round once the stream has ended.

const JUMP_PAIRS = 8; // further behind than this, live jumps

export class Playback {
  constructor() {
    this.time = null;
    this.live = true;
    this.playing = true;
    this.ended = false;
  }

  // Scrubbing: shows a moment and stays there.
  seek(time) {
    this.time = time;
    this.live = false;
    this.playing = false;
  }

  goLive() {
    this.live = true;
    this.playing = true;
  }

  toggle() {
    this.playing = !this.playing;
    if (!this.playing) this.live = false;
  }

  // `seconds` went by; `span` can be shown, in pairs of `pair` seconds.
  step(seconds, [first, last], pair) {
    if (this.time === null || this.time < first) this.time = this.live ? Math.max(first, last - pair) : first;
    if (!this.playing) return;
    if (this.live && !this.ended) {
      // Proportional control: the further behind, the faster; one pair behind is the pace of the recording.
      const behind = last - this.time;
      if (behind > JUMP_PAIRS * pair) this.time = last - pair;
      else this.time = Math.min(last, this.time + seconds * Math.min(4, behind / pair));
      return;
    }
    this.time += seconds;
    if (this.time <= last) return;
    if (this.ended) this.time = first;
    else this.goLive();
  }
}
