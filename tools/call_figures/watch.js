// Observes a call from inside the page: its peer connections, the numbers in its frames, the beeps in its audio.
// Runs before the page's own scripts.

(() => {
  const connections = [];
  const Original = window.RTCPeerConnection;
  window.RTCPeerConnection = class extends Original {
    constructor(...rest) {
      super(...rest);
      connections.push(this);
    }
  };

  const SENT_TIME = { x: 0, y: 0, width: 1, height: 24 / 512, columns: 32 };
  const SOURCE_FRAME = { x: 0, y: 24 / 512, width: 1, height: 24 / 512, columns: 32 };
  const CAMERA_FRAME = { x: 0, y: 0, width: 0.1, height: 1, columns: 2 };
  const CELL = 4; // pixels of the canvas for a square of a strip

  const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  const alive = () => connections.filter((pc) => !["closed", "failed"].includes(pc.connectionState));
  const receivers = (kind) =>
    alive().flatMap((pc) => pc.getReceivers().filter(({ track }) => track.kind === kind && track.readyState === "live").map((receiver) => ({ pc, receiver })));
  /** Wall-clock time in ms, of finer resolution than Date.now(). */
  const wall = () => performance.timeOrigin + performance.now();

  /** The video element of the daemon's stream, and that of the browser's own camera. */
  function elements() {
    const received = new Set(receivers("video").map(({ receiver }) => receiver.track));
    const videos = [...document.querySelectorAll("video")].filter((video) => video.srcObject?.getVideoTracks().length);
    const isAvatar = (video) => video.srcObject.getVideoTracks().some((track) => received.has(track));
    return { avatar: videos.find(isAvatar), own: videos.find((video) => !isAvatar(video)) };
  }

  class Reader {
    constructor(strip) {
      this.strip = strip;
      this.canvas = new OffscreenCanvas(CELL * strip.columns, (CELL * 32) / strip.columns);
      this.context = this.canvas.getContext("2d", { willReadFrequently: true });
    }

    /** The number in the frame that `video` shows; -1 if the checksum does not match. */
    read(video) {
      const { x, y, width, height, columns } = this.strip;
      const [w, h] = [video.videoWidth, video.videoHeight];
      const { canvas, context } = this;
      context.drawImage(video, x * w, y * h, width * w, height * h, 0, 0, canvas.width, canvas.height);
      const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
      let number = 0;
      let sum = 0;
      for (let square = 0; square < 32; square++) {
        const row = CELL * Math.floor(square / columns) + CELL / 2;
        const column = CELL * (square % columns) + CELL / 2;
        const bit = data[4 * (row * canvas.width + column) + 1] > 127 ? 1 : 0;
        if (square < 24) number = 2 * number + bit;
        else sum = 2 * sum + bit;
      }
      const wanted = (31 * (number >> 16) + 17 * ((number >> 8) & 255) + 7 * (number & 255) + 90) & 255;
      return sum === wanted ? number : -1;
    }
  }

  /** Collects the frames that the element `video()` presents: [wall-clock ms, presentedFrames, number, number ...]. */
  class Watch {
    constructor(video, strips) {
      this.seen = [];
      const readers = strips.map((strip) => new Reader(strip));
      const collect = async () => {
        while (!this.stopped) {
          const element = video();
          if (!element) {
            await sleep(5);
            continue;
          }
          // The callback never comes if the stream of the element is replaced.
          const metadata = await Promise.race([new Promise((r) => element.requestVideoFrameCallback((_, m) => r(m))), sleep(2000)]);
          if (metadata) this.seen.push([wall(), metadata.presentedFrames, ...readers.map((reader) => reader.read(element))]);
        }
      };
      collect();
    }

    take() {
      return this.seen.splice(0);
    }
  }

  /** Counters of the received video and of the element that shows it; null without video. */
  async function counted() {
    const [found] = receivers("video");
    if (!found) return null;
    const reports = [...(await found.pc.getStats(found.receiver.track)).values()];
    const inbound = reports.find(({ type }) => type === "inbound-rtp");
    if (!inbound) return null;
    const codec = reports.find(({ id }) => id === inbound.codecId)?.mimeType;
    const quality = elements().avatar?.getVideoPlaybackQuality();
    const keys = ["timestamp", "framesReceived", "framesDecoded", "framesDropped", "freezeCount", "totalFreezesDuration", "keyFramesDecoded", "packetsLost", "nackCount", "pliCount", "bytesReceived", "frameWidth", "frameHeight", "jitterBufferDelay", "jitterBufferEmittedCount", "totalDecodeTime"];
    return { ...Object.fromEntries(keys.map((key) => [key, inbound[key] ?? 0])), codec, painted: quality?.totalVideoFrames ?? 0, unpainted: quality?.droppedVideoFrames ?? 0 };
  }

  /** Connect one more viewer over WHEP, with a video element if `shows`; ms from the POST to its answer and to the first frame. */
  async function connect(shows) {
    const pc = new RTCPeerConnection({ iceServers: [] });
    const transceiver = pc.addTransceiver("video", { direction: "recvonly" });
    const rank = ({ mimeType }) => (mimeType === "video/H264" ? 0 : 1);
    transceiver.setCodecPreferences([...RTCRtpReceiver.getCapabilities("video").codecs].sort((a, b) => rank(a) - rank(b)));
    if ("jitterBufferTarget" in transceiver.receiver) transceiver.receiver.jitterBufferTarget = 0;
    await pc.setLocalDescription();
    while (pc.iceGatheringState !== "complete") await sleep(1);
    const video = Object.assign(document.createElement("video"), { muted: true, autoplay: true });
    const painted = new Promise((resolve) => shows && video.requestVideoFrameCallback(() => resolve(performance.now())));
    if (shows) {
      document.body.append(video);
      video.srcObject = new MediaStream([transceiver.receiver.track]);
    }
    const began = performance.now();
    const response = await fetch("/whep", { method: "POST", headers: { "Content-Type": "application/sdp" }, body: pc.localDescription.sdp });
    const answer = await response.text();
    if (response.status !== 201) throw new Error(`${response.status} ${answer}`);
    const answered = performance.now() - began;
    await pc.setRemoteDescription({ type: "answer", sdp: answer });
    const viewer = { pc, video, address: response.headers.get("Location"), answered };
    viewer.first = shows ? (await Promise.race([painted, sleep(20_000)])) - began : null;
    viewers.push(viewer);
    return { answered, first: viewer.first };
  }

  /** Disconnect the viewer that connected last; true if the daemon confirms. */
  async function disconnect() {
    const { pc, video, address } = viewers.pop();
    const { ok } = await fetch(address, { method: "DELETE" });
    pc.close();
    video.srcObject = null;
    video.remove();
    return ok;
  }

  /** Detects beeps in the received audio: wall-clock ms at which the start of each was received and played. */
  class BeepDetector {
    constructor(threshold) {
      const [found] = receivers("audio");
      if (!found) throw new Error("the page receives no audio");
      const stream = new MediaStream([found.receiver.track]);
      this.player = Object.assign(new Audio(), { muted: true, srcObject: stream }); // without a player Chromium decodes no audio
      this.player.play();
      this.context = new AudioContext({ latencyHint: "interactive" });
      this.beeps = [];
      this.loudest = 0;
      this.ready = this.listen(stream, threshold);
    }

    async listen(stream, threshold) {
      await this.context.resume();
      const code = `registerProcessor("onset", class extends AudioWorkletProcessor {
        quiet = 0; loudest = 0; blocks = 0;
        process([[channel]]) {
          for (let i = 0; channel && i < channel.length; i++) {
            const level = Math.abs(channel[i]);
            this.loudest = Math.max(this.loudest, level);
            if (level > ${threshold}) {
              if (this.quiet > sampleRate / 4) this.port.postMessage({ onset: currentTime + i / sampleRate });
              this.quiet = 0;
            } else this.quiet++;
          }
          if (++this.blocks % 100 === 0) this.port.postMessage({ loudest: this.loudest });
          return true;
        }
      })`;
      await this.context.audioWorklet.addModule(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
      const onset = new AudioWorkletNode(this.context, "onset");
      onset.port.onmessage = ({ data }) => {
        this.loudest = data.loudest ?? this.loudest;
        if (data.onset === undefined) return;
        const { contextTime, performanceTime } = this.context.getOutputTimestamp();
        const output = performance.timeOrigin + performanceTime + 1000 * (data.onset - contextTime);
        const now = wall() - 1000 * (this.context.currentTime - data.onset); // when the browser had received it
        this.beeps.push([now, output]);
      };
      const silence = new GainNode(this.context, { gain: 0 });
      this.context.createMediaStreamSource(stream).connect(onset).connect(silence).connect(this.context.destination);
    }
  }

  const viewers = [];
  window.callFigures = {
    read: (video, strip) => new Reader({ SENT_TIME, SOURCE_FRAME, CAMERA_FRAME }[strip]).read(video),
    watchAvatar: () => new Watch(() => elements().avatar, [SENT_TIME, SOURCE_FRAME]),
    watchOwn: () => new Watch(() => elements().own, [CAMERA_FRAME]),
    listen: (threshold) => new BeepDetector(threshold),
    counted,
    connect,
    disconnect,
    clock: () => ({ wall: wall(), date: Date.now() }),
  };
})();
