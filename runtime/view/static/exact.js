// Asks the runtime for its own pixels, one image at a time, always of the moment and the view that are shown now.

export class Exact {
  constructor(connection) {
    this.connection = connection;
    this.count = 0;
    this.reset();
  }

  // After a connection was lost, nothing will be answered any more.
  reset() {
    this.waiting = false;
    this.asked = "";
  }

  ask(time, camera, pivot) {
    const key = [time, camera.yaw, camera.pitch, pivot].join();
    if (this.waiting || key === this.asked) return;
    this.waiting = true;
    this.asked = key;
    const { yaw, pitch } = camera;
    this.connection.send({ type: "render", id: ++this.count, time, yaw, pitch, pivot });
  }

  answered() {
    this.waiting = false;
  }
}
