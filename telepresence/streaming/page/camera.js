// One's own camera and microphone: asked for, lent, and kept to oneself where the daemon can do without pictures.

import { FaceFinder } from "./faces.js";

const WORDS = {
  NotAllowedError: "The camera was not allowed. Allow it beside the address bar, then try again.",
  NotFoundError: "No camera was found on this device.",
  NotReadableError: "The camera is in use by another program.",
};

const UNSENT = 16 * 1024; // bytes of landmarks that may wait; more would only be late

/** What the browser's error means for a person. */
export const words = (error) => WORDS[error.name] ?? error.message;

/** A camera that is lent.  `picture` and `voice` are its tracks; while `withheld` no picture leaves this browser. */
export class Camera {
  /** Ask the browser for a camera, and for a microphone if `speaks`; a device without one gives its camera alone. */
  static async open(speaks) {
    if (!navigator.mediaDevices) throw new Error("This browser gives its camera only to pages on https or localhost.");
    const video = { width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 30 }, facingMode: "user" };
    try {
      return new Camera(await navigator.mediaDevices.getUserMedia({ video, audio: speaks }));
    } catch (error) {
      if (!speaks || error.name === "NotAllowedError") throw error;
      return new Camera(await navigator.mediaDevices.getUserMedia({ video }));
    }
  }

  constructor(stream) {
    this.stream = stream;
    [this.picture] = stream.getVideoTracks();
    [this.voice] = stream.getAudioTracks();
    this.picture.contentHint = "motion";
    this.withheld = false;
    this.session = undefined; // that it is lent to
  }

  /** Keep the pictures: find faces here from now on, once the daemon (`ask`) agrees.  `shown` is a video of it. */
  async withhold(shown, ask) {
    const finder = new FaceFinder((packet) => this.send(packet));
    try {
      await finder.start(this.picture, shown);
      await ask();
    } catch (error) {
      finder.stop();
      throw error;
    }
    this.finder = finder;
    this.withheld = true;
    await this.session?.video.sender.replaceTrack(null);
  }

  /** Send pictures again. */
  async share() {
    this.finder?.stop();
    this.finder = undefined;
    this.withheld = false;
    await this.session?.video.sender.replaceTrack(this.picture);
  }

  send(packet) {
    const channel = this.session?.landmarks;
    if (this.withheld && channel?.readyState === "open" && channel.bufferedAmount < UNSENT) channel.send(packet);
  }

  stop() {
    this.finder?.stop();
    this.stream.getTracks().forEach((track) => track.stop());
  }
}
