// This browser's camera and microphone; the video can be withheld, so that only face landmarks are sent.

import { FaceTracker } from "./face_tracker.js";

const ERROR_TEXTS = {
  NotAllowedError: "The camera is not allowed. Allow it next to the address bar, then try again.",
  NotFoundError: "No camera was found on this device.",
  NotReadableError: "The camera is in use by another program.",
};

const MAX_UNSENT = 16 * 1024; // bytes of landmark packets that may wait to be sent; beyond that they are dropped

/** Text for the user about an error of the browser. */
export const describeError = (error) => ERROR_TEXTS[error.name] ?? error.message;

/** An open camera with `videoTrack` and, with a microphone, `audioTrack`; while `withheld`, no video is sent. */
export class Camera {
  /** Open the camera, and the microphone if `withMicrophone`; without a microphone only the camera is opened. */
  static async open(withMicrophone) {
    if (!navigator.mediaDevices) throw new Error("This browser allows the camera only on pages at https or localhost.");
    const video = { width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 30 }, facingMode: "user" };
    try {
      return new Camera(await navigator.mediaDevices.getUserMedia({ video, audio: withMicrophone }));
    } catch (error) {
      if (!withMicrophone || error.name === "NotAllowedError") throw error;
      return new Camera(await navigator.mediaDevices.getUserMedia({ video }));
    }
  }

  constructor(stream) {
    this.stream = stream;
    [this.videoTrack] = stream.getVideoTracks();
    [this.audioTrack] = stream.getAudioTracks();
    this.videoTrack.contentHint = "motion";
    this.withheld = false;
    this.session = undefined; // that the camera is sent to
  }

  /** Send landmarks in place of video, once the daemon agrees (`requestWithhold`).  `video` shows the camera. */
  async withhold(video, requestWithhold) {
    const tracker = new FaceTracker((packet) => this.sendLandmarks(packet));
    try {
      await tracker.start(this.videoTrack, video);
      await requestWithhold();
    } catch (error) {
      tracker.stop();
      throw error;
    }
    this.tracker = tracker;
    this.withheld = true;
    await this.session?.video.sender.replaceTrack(null);
  }

  /** Send video again. */
  async share() {
    this.tracker?.stop();
    this.tracker = undefined;
    this.withheld = false;
    await this.session?.video.sender.replaceTrack(this.videoTrack);
  }

  sendLandmarks(packet) {
    const channel = this.session?.landmarks;
    if (this.withheld && channel?.readyState === "open" && channel.bufferedAmount < MAX_UNSENT) channel.send(packet);
  }

  stop() {
    this.tracker?.stop();
    this.stream.getTracks().forEach((track) => track.stop());
  }
}
