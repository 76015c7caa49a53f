// Tracks the face in the camera's frames in a worker thread, and passes on packets of landmarks for the daemon.

/** `onpacket` is called with an ArrayBuffer for each frame (docs/protocols-page.md). */
export class FaceTracker {
  constructor(onpacket) {
    this.onpacket = onpacket;
  }

  /** Resolves when the first frame of `track` was processed; `video` is an element that shows the same track. */
  async start(track, video) {
    this.worker = new Worker("/face_tracker_worker.js", { type: "module" });
    const ready = new Promise((resolve, reject) => {
      this.worker.onerror = () => reject(new Error("Face tracking could not be started in this browser."));
      this.worker.onmessage = ({ data }) => {
        if (data.error) reject(new Error(data.error));
        if (!data.packet) return;
        resolve();
        this.onpacket(data.packet);
        this.frameDone?.();
      };
    });
    this.track = track.clone();
    if ("MediaStreamTrackProcessor" in window) {
      // This also works while the page is in the background.
      const { readable } = new MediaStreamTrackProcessor({ track: this.track });
      this.worker.postMessage({ readable }, [readable]);
    } else {
      this.worker.postMessage({});
      this.copyFrames(video);
    }
    await ready;
  }

  /** Send frames of `video` to the worker, each after the previous one was processed. */
  async copyFrames(video) {
    while (this.worker) {
      await new Promise((resolve) => video.requestVideoFrameCallback(resolve));
      const frame = await createImageBitmap(video);
      const done = new Promise((resolve) => (this.frameDone = resolve));
      this.worker?.postMessage({ frame }, [frame]);
      await done;
    }
  }

  stop() {
    this.worker?.terminate();
    this.worker = undefined;
    this.track?.stop();
    this.frameDone?.();
  }
}
