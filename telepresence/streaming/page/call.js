// One WebRTC session with the daemon, and the data channels that come with it.

const GATHER_MS = 1000; // for local addresses before the offer is sent
const DISCONNECTED_MS = 3000; // of "disconnected" before a session is given up
const ANSWER_MS = 10_000; // for the daemon's answer to a request
const CAMERA_RATE = 1_500_000; // bit/s at most

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** An answer of the daemon other than what was hoped for: its own line of text is fit to be shown. */
export class Refused extends Error {
  constructor(status, text) {
    super(text.trim());
    this.status = status;
  }
}

/** What the daemon's addresses are to be found with; none on most networks. */
async function iceServers() {
  try {
    const response = await fetch("/ice", { signal: AbortSignal.timeout(2000) });
    return response.ok ? (await response.json()).iceServers : [];
  } catch {
    return [];
  }
}

/** Takes the avatar, and gives a camera and a microphone if there are any.  `over` resolves when it has ended. */
export class Session {
  constructor(camera) {
    this.camera = camera;
    this.over = new Promise((resolve) => (this.end = resolve));
    this.waiting = []; // requests in their order, in which they are answered: { of, resolve, reject }
    this.rtt = undefined; // ms, of the newest round trip through the data channel
  }

  /** Connect; `ontrack` gets the avatar's stream. */
  async open(ontrack) {
    this.pc = new RTCPeerConnection({ iceServers: await iceServers() });
    let patience;
    this.pc.onconnectionstatechange = () => {
      clearTimeout(patience);
      const state = this.pc.connectionState;
      if (state === "failed" || state === "closed") this.end();
      if (state === "disconnected") patience = setTimeout(this.end, DISCONNECTED_MS);
    };
    const stream = new MediaStream();
    this.pc.ontrack = ({ track }) => {
      stream.addTrack(track);
      ontrack(stream);
    };
    this.addMedia();
    this.control = this.pc.createDataChannel("control");
    this.control.onmessage = ({ data }) => this.answered(JSON.parse(data));
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
    if (response.status !== 201) throw new Refused(response.status, text);
    this.address = response.headers.get("Location");
    await this.pc.setRemoteDescription({ type: "answer", sdp: text });
    if (this.camera) await this.tuneSender();
  }

  addMedia() {
    const { picture, voice, withheld } = this.camera ?? {};
    const direction = this.camera ? "sendrecv" : "recvonly";
    this.video = this.pc.addTransceiver(picture && !withheld ? picture : "video", { direction });
    preferH264(this.video);
    if ("jitterBufferTarget" in this.video.receiver) this.video.receiver.jitterBufferTarget = 0;
    if (!this.camera) this.pc.addTransceiver("audio", { direction: "recvonly" });
    else if (voice) this.pc.addTransceiver(voice, { direction: "sendonly" });
  }

  async tuneSender() {
    const parameters = this.video.sender.getParameters();
    parameters.degradationPreference = "maintain-framerate";
    if (parameters.encodings?.[0]) parameters.encodings[0].maxBitrate = CAMERA_RATE;
    await this.video.sender.setParameters(parameters).catch(() => {});
  }

  gathered() {
    return new Promise((resolve) => {
      const check = () => this.pc.iceGatheringState === "complete" && resolve();
      this.pc.onicegatheringstatechange = check;
      check();
    });
  }

  /** Send without waiting for an answer; what cannot be sent now is not sent. */
  send(message) {
    if (this.control?.readyState === "open") this.control.send(JSON.stringify(message));
  }

  /** Ask the daemon for something; resolves when it is done, throws `Refused` with the reason if it is not. */
  async ask(message) {
    await Promise.race([this.opened, sleep(ANSWER_MS)]);
    if (this.control?.readyState !== "open") throw new Refused(0, "there is no connection to the daemon now");
    const request = { of: message.type, ...Promise.withResolvers() };
    this.waiting.push(request);
    this.send(message);
    setTimeout(() => request.reject(new Refused(0, "the daemon does not answer")), ANSWER_MS);
    try {
      await request.promise;
    } finally {
      this.waiting.splice(this.waiting.indexOf(request), 1);
    }
  }

  answered(message) {
    if (message.type === "pong") {
      this.rtt = performance.now() - message.t;
      return;
    }
    const asked = this.waiting.find(({ of }) => of === message.of);
    if (message.type === "done") asked?.resolve();
    if (message.type === "refused") asked?.reject(new Refused(0, message.text));
  }

  /** Measure the round trip: `rtt` has it soon. */
  probe() {
    this.send({ type: "ping", t: performance.now() });
  }

  close() {
    this.end();
    const { address, pc } = this;
    this.address = undefined;
    if (!address) pc?.close();
    else fetch(address, { method: "DELETE", keepalive: true }).catch(() => {}).finally(() => pc.close());
  }
}

function preferH264(transceiver) {
  const codecs = RTCRtpReceiver.getCapabilities?.("video")?.codecs;
  if (!codecs || !transceiver.setCodecPreferences) return;
  const rank = ({ mimeType }) => (mimeType === "video/H264" ? 0 : 1);
  transceiver.setCodecPreferences([...codecs].sort((a, b) => rank(a) - rank(b)));
}
