// Finds the face in a camera's pictures, in a thread of its own, and packs its landmarks for the daemon.

/** `onpacket` gets an ArrayBuffer for each picture (docs/protocols-page.md). */
export class FaceFinder {
  constructor(onpacket) {
    this.onpacket = onpacket;
  }

  /** Resolves when the first picture of `track` was looked at; `shown` is a video element that shows it. */
  async start(track, shown) {
    this.worker = new Worker("/finder.js", { type: "module" });
    const ready = new Promise((resolve, reject) => {
      this.worker.onerror = () => reject(new Error("The face finder could not be started."));
      this.worker.onmessage = ({ data }) => {
        if (data.trouble) reject(new Error(data.trouble));
        if (!data.packet) return;
        resolve();
        this.onpacket(data.packet);
        this.next?.();
      };
    });
    this.track = track.clone();
    if ("MediaStreamTrackProcessor" in window) {
      // Goes on while the page is in the background.
      const { readable } = new MediaStreamTrackProcessor({ track: this.track });
      this.worker.postMessage({ readable }, [readable]);
    } else {
      this.worker.postMessage({});
      this.copy(shown);
    }
    await ready;
  }

  /** Hand over one picture of `shown` after the other, each when the last was looked at. */
  async copy(shown) {
    while (this.worker) {
      await new Promise((resolve) => shown.requestVideoFrameCallback(resolve));
      const picture = await createImageBitmap(shown);
      const done = new Promise((resolve) => (this.next = resolve));
      this.worker?.postMessage({ picture }, [picture]);
      await done;
    }
  }

  stop() {
    this.worker?.terminate();
    this.worker = undefined;
    this.track?.stop();
    this.next?.();
  }
}
