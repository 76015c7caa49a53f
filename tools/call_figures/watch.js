// Watches a call from within the page: finds its connections, reads the numbers in its pictures, hears its sound.
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

  const SHOWN = { x: 0, y: 0, width: 1, height: 24 / 512, columns: 32 };
  const SOURCE = { x: 0, y: 24 / 512, width: 1, height: 24 / 512, columns: 32 };
  const FILMED = { x: 0, y: 0, width: 0.1, height: 1, columns: 2 };
  const CELL = 4; // pixels of the canvas for a square of a strip

  const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  const alive = () => connections.filter((pc) => !["closed", "failed"].includes(pc.connectionState));
  const receivers = (kind) =>
    alive().flatMap((pc) => pc.getReceivers().filter(({ track }) => track.kind === kind && track.readyState === "live").map((receiver) => ({ pc, receiver })));
  /** Milliseconds of wall-clock time; finer than Date.now(). */
  const wall = () => performance.timeOrigin + performance.now();

  /** The element that shows what comes from the daemon, and the one that shows the browser's own camera. */
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

    /** The number in the picture that `video` shows, -1 where there is none. */
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

  /** Every picture that `video()` presents until `stop`: [wall-clock ms, presentedFrames, number, number ...]. */
  class Watch {
    constructor(video, strips) {
      this.seen = [];
      const readers = strips.map((strip) => new Reader(strip));
      const look = async () => {
        while (!this.stopped) {
          const element = video();
          if (!element) {
            await sleep(5);
            continue;
          }
          // An element whose stream is replaced may never call back.
          const metadata = await Promise.race([new Promise((r) => element.requestVideoFrameCallback((_, m) => r(m))), sleep(2000)]);
          if (metadata) this.seen.push([wall(), metadata.presentedFrames, ...readers.map((reader) => reader.read(element))]);
        }
      };
      look();
    }

    take() {
      return this.seen.splice(0);
    }
  }

  /** What the browser counted of the video that it receives, and of the element that shows it. */
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

  /** A viewer of our own over WHEP, with its element if `shows`; ms from just before the POST to what came of it. */
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

  /** End the viewer that came last; true if the daemon knew it. */
  async function disconnect() {
    const { pc, video, address } = viewers.pop();
    const { ok } = await fetch(address, { method: "DELETE" });
    pc.close();
    video.srcObject = null;
    video.remove();
    return ok;
  }

  /** Hears the sound that comes from the daemon: wall-clock ms at which each beep begins to be heard. */
  class Ear {
    constructor(threshold) {
      const [found] = receivers("audio");
      if (!found) throw new Error("no sound comes from the daemon");
      const stream = new MediaStream([found.receiver.track]);
      this.player = Object.assign(new Audio(), { muted: true, srcObject: stream }); // else Chromium decodes nothing
      this.player.play();
      this.context = new AudioContext({ latencyHint: "interactive" });
      this.heard = [];
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
        const now = wall() - 1000 * (this.context.currentTime - data.onset); // when the browser had it in hand
        this.heard.push([now, output]);
      };
      const silence = new GainNode(this.context, { gain: 0 });
      this.context.createMediaStreamSource(stream).connect(onset).connect(silence).connect(this.context.destination);
    }
  }

  const viewers = [];
  window.callFigures = {
    read: (video, strip) => new Reader({ SHOWN, SOURCE, FILMED }[strip]).read(video),
    watchAvatar: () => new Watch(() => elements().avatar, [SHOWN, SOURCE]),
    watchOwn: () => new Watch(() => elements().own, [FILMED]),
    listen: (threshold) => new Ear(threshold),
    counted,
    connect,
    disconnect,
    clock: () => ({ wall: wall(), date: Date.now() }),
  };
})();
