// One WebRTC session with the daemon: video, audio and data channels.

const GATHER_MS = 1000; // for local ICE candidates, before the offer is sent
const DISCONNECTED_MS = 3000; // in the state "disconnected", before a session is given up
const ANSWER_MS = 10_000; // for the daemon's answer to a request
const MAX_CAMERA_RATE = 1_500_000; // bit/s

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** A request that the daemon refused or did not answer; the message can be shown to the user. */
export class RequestError extends Error {
  constructor(status, text) {
    super(text.trim());
    this.status = status;
  }
}

/** STUN and TURN servers of the daemon; an empty list unless some are configured. */
async function iceServers() {
  try {
    const response = await fetch("/ice", { signal: AbortSignal.timeout(2000) });
    return response.ok ? (await response.json()).iceServers : [];
  } catch {
    return [];
  }
}

/** Receives the avatar's video and audio, and sends a camera and a microphone if given.  `over` resolves at the end. */
export class Session {
  constructor(camera) {
    this.camera = camera;
    this.over = new Promise((resolve) => (this.end = resolve));
    this.pending = []; // unanswered requests: { of, resolve, reject }; the daemon answers in their order
    this.rtt = undefined; // ms, newest round trip through the data channel
  }

  /** Connect; `ontrack` is called with the stream of the avatar. */
  async open(ontrack) {
    this.pc = new RTCPeerConnection({ iceServers: await iceServers() });
    let timer;
    this.pc.onconnectionstatechange = () => {
      clearTimeout(timer);
      const state = this.pc.connectionState;
      if (state === "failed" || state === "closed") this.end();
      if (state === "disconnected") timer = setTimeout(this.end, DISCONNECTED_MS);
    };
    const stream = new MediaStream();
    this.pc.ontrack = ({ track }) => {
      stream.addTrack(track);
      ontrack(stream);
    };
    this.addMedia();
    this.control = this.pc.createDataChannel("control");
    this.control.onmessage = ({ data }) => this.onMessage(JSON.parse(data));
    if (this.camera) this.landmarks = this.pc.createDataChannel("landmarks", { ordered: false, maxRetransmits: 0 });
    this.opened = new Promise((resolve) => (this.control.onopen = resolve));
    await this.pc.setLocalDescription();
    await Promise.race([sleep(GATHER_MS), this.gathered()]);
    const response = await fetch("/call", {
      method: "POST",
      headers: { "Content-Type": "application/sdp" },
      body: this.pc.localDescription.sdp,
    });
    const text = await response.text();
    if (response.status !== 201) throw new RequestError(response.status, text);
    this.path = response.headers.get("Location");
    await this.pc.setRemoteDescription({ type: "answer", sdp: text });
    if (this.camera) await this.tuneSender();
  }

  addMedia() {
    const { videoTrack, audioTrack, withheld } = this.camera ?? {};
    const direction = this.camera ? "sendrecv" : "recvonly";
    this.video = this.pc.addTransceiver(videoTrack && !withheld ? videoTrack : "video", { direction });
    preferH264(this.video);
    if ("jitterBufferTarget" in this.video.receiver) this.video.receiver.jitterBufferTarget = 0;
    if (!this.camera) this.pc.addTransceiver("audio", { direction: "recvonly" });
    else if (audioTrack) this.pc.addTransceiver(audioTrack, { direction: "sendonly" });
  }

  async tuneSender() {
    const parameters = this.video.sender.getParameters();
    parameters.degradationPreference = "maintain-framerate";
    if (parameters.encodings?.[0]) parameters.encodings[0].maxBitrate = MAX_CAMERA_RATE;
    await this.video.sender.setParameters(parameters).catch(() => {});
  }

  gathered() {
    return new Promise((resolve) => {
      const check = () => this.pc.iceGatheringState === "complete" && resolve();
      this.pc.onicegatheringstatechange = check;
      check();
    });
  }

  /** Send a message without waiting for an answer; it is dropped while the channel is closed. */
  send(message) {
    if (this.control?.readyState === "open") this.control.send(JSON.stringify(message));
  }

  /** Send a request; resolves when the daemon has carried it out, throws `RequestError` with the reason if not. */
  async request(message) {
    await Promise.race([this.opened, sleep(ANSWER_MS)]);
    if (this.control?.readyState !== "open") throw new RequestError(0, "there is no connection to the daemon at the moment");
    const request = { of: message.type, ...Promise.withResolvers() };
    this.pending.push(request);
    this.send(message);
    setTimeout(() => request.reject(new RequestError(0, "the daemon does not answer")), ANSWER_MS);
    try {
      await request.promise;
    } finally {
      this.pending.splice(this.pending.indexOf(request), 1);
    }
  }

  onMessage(message) {
    if (message.type === "pong") {
      this.rtt = performance.now() - message.t;
      return;
    }
    const request = this.pending.find(({ of }) => of === message.of);
    if (message.type === "done") request?.resolve();
    if (message.type === "refused") request?.reject(new RequestError(0, message.text));
  }

  /** Measure the round trip; the result is stored in `rtt` when the answer arrives. */
  probe() {
    this.send({ type: "ping", t: performance.now() });
  }

  close() {
    this.end();
    const { path, pc } = this;
    this.path = undefined;
    if (!path) pc?.close();
    else fetch(path, { method: "DELETE", keepalive: true }).catch(() => {}).finally(() => pc.close());
  }
}

function preferH264(transceiver) {
  const codecs = RTCRtpReceiver.getCapabilities?.("video")?.codecs;
  if (!codecs || !transceiver.setCodecPreferences) return;
  const rank = ({ mimeType }) => (mimeType === "video/H264" ? 0 : 1);
  transceiver.setCodecPreferences([...codecs].sort((a, b) => rank(a) - rank(b)));
}
