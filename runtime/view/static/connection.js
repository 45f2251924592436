// The WebSocket to the runtime: decodes, and connects again where it was lost.

import { decode } from "./wire.js";

const RETRY_MS = 1500;

export class Connection {
  // `on` has a function per kind of message, and for "open", "closed" (with a reason) and "failed" (with an error).
  constructor(on) {
    this.on = on;
    this.bytes = 0;
    this.open();
  }

  open() {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    this.socket = new WebSocket(`${scheme}://${location.host}/stream`);
    this.socket.binaryType = "arraybuffer";
    this.socket.onopen = () => this.on.open();
    this.socket.onmessage = ({ data }) => this.receive(data);
    this.socket.onclose = ({ code, reason }) => {
      this.on.closed(reason);
      if (code !== 1008) setTimeout(() => this.open(), RETRY_MS); // 1008: we said something that is refused
    };
  }

  receive(data) {
    try {
      if (typeof data === "string") {
        const message = JSON.parse(data);
        this.on[message.type]?.(message);
      } else {
        this.bytes += data.byteLength;
        const message = decode(data);
        this.on[message.kind](message);
      }
    } catch (error) {
      this.on.failed(error);
    }
  }

  send(message) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }
}
