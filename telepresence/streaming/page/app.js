// The page of the daemon: watches the avatar over WHEP, lends it the browser's camera over WHIP, shows its state.

import { Chart } from "./chart.js";
import { Guide } from "./guide.js";
import { Question } from "./question.js";

// What each state means, and what a person before the camera can do about it.
const SENTENCES = {
  connecting: ["Looking for the daemon on this machine."],
  offline: ["The daemon does not answer. It may have been stopped; this page keeps trying."],
  waiting: ["Waiting for a face.", "Look into the camera."],
  calibrating: ["Getting to know the face.", "Look straight ahead and talk."],
  learning: ["Learning the face: the picture is getting sharper.", "Talk and turn your head."],
  live: ["This is the learned avatar, and it keeps getting better."],
  lost: ["The face is out of sight. It goes on as soon as it is back."],
  idle: ["Nobody is driving the avatar at the moment."],
};

const GUIDED = new Set(["learning", "live"]); // when somebody is there who can be asked for something

const CAMERA_WORDS = {
  NotAllowedError: "The camera was not allowed. Allow it beside the address bar, then try again.",
  NotFoundError: "No camera was found on this device.",
  NotReadableError: "The camera is in use by another program.",
};

const GATHER_MS = 1000; // for local addresses before the offer is sent
const DISCONNECTED_MS = 3000; // of "disconnected" before a new connection is made
const STALL_S = 5; // without a new picture before a new connection is made

const $ = (id) => document.getElementById(id);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** An answer of the daemon other than 201: its own line of text is fit to be shown. */
class Refused extends Error {
  constructor(status, text) {
    super(text.trim());
    this.status = status;
  }
}

// ---- one WebRTC session

/** A session with the daemon: offer out, answer in, and a promise that resolves when it is over. */
class Session {
  constructor(path) {
    this.path = path;
    this.pc = new RTCPeerConnection({ iceServers: [] });
    this.over = new Promise((resolve) => (this.end = resolve));
    let patience;
    this.pc.onconnectionstatechange = () => {
      clearTimeout(patience);
      const state = this.pc.connectionState;
      if (state === "failed" || state === "closed") this.end();
      if (state === "disconnected") patience = setTimeout(this.end, DISCONNECTED_MS);
    };
  }

  async open() {
    await this.pc.setLocalDescription();
    await Promise.race([sleep(GATHER_MS), this.gathered()]);
    const response = await fetch(this.path, {
      method: "POST",
      headers: { "Content-Type": "application/sdp" },
      body: this.pc.localDescription.sdp,
    });
    const text = await response.text();
    if (response.status !== 201) throw new Refused(response.status, text);
    this.address = response.headers.get("Location");
    await this.pc.setRemoteDescription({ type: "answer", sdp: text });
  }

  gathered() {
    return new Promise((resolve) => {
      const check = () => this.pc.iceGatheringState === "complete" && resolve();
      this.pc.onicegatheringstatechange = check;
      check();
    });
  }

  close() {
    this.pc.close();
    this.end();
    if (this.address) fetch(this.address, { method: "DELETE", keepalive: true }).catch(() => {});
    this.address = undefined;
  }
}

// ---- watching

let viewer;
let received = { fps: 0, delay: 0 }; // pictures a second, and ms from the daemon to the screen

async function watch() {
  for (let wait = 500; ; wait = Math.min(2 * wait, 8000)) {
    viewer = new Session("/whep");
    try {
      const transceiver = viewer.pc.addTransceiver("video", { direction: "recvonly" });
      preferH264(transceiver);
      if ("jitterBufferTarget" in transceiver.receiver) transceiver.receiver.jitterBufferTarget = 0;
      viewer.pc.ontrack = ({ track }) => {
        $("avatar").srcObject = new MediaStream([track]);
        $("avatar").play().catch(() => {});
      };
      await viewer.open();
      viewer.pc.addEventListener("connectionstatechange", ({ target }) => {
        if (target.connectionState === "connected") wait = 250;
      });
      await viewer.over;
    } catch (error) {
      if (error instanceof Refused) veil(`${sentence(error.message)} Trying again …`);
    } finally {
      viewer.close();
    }
    if (!$("veil").textContent) veil("Connecting again …");
    await sleep(wait);
  }
}

function preferH264(transceiver) {
  const codecs = RTCRtpReceiver.getCapabilities?.("video")?.codecs;
  if (!codecs || !transceiver.setCodecPreferences) return;
  const rank = ({ mimeType }) => (mimeType === "video/H264" ? 0 : 1);
  transceiver.setCodecPreferences([...codecs].sort((a, b) => rank(a) - rank(b)));
}

/** Once a second: how many pictures arrive, how late, and whether they have stopped. */
async function measure() {
  let last = {};
  let still = 0;
  for (;;) {
    await sleep(1000);
    const reports = viewer ? [...(await viewer.pc.getStats()).values()] : [];
    const now = reports.find(({ type }) => type === "inbound-rtp") ?? {};
    const pair = reports.find(({ type, nominated }) => type === "candidate-pair" && nominated) ?? {};
    const frames = now.framesDecoded - last.framesDecoded;
    if (now.id === last.id && frames > 0) {
      const seconds = (now.timestamp - last.timestamp) / 1000;
      const buffered = (now.jitterBufferDelay - last.jitterBufferDelay) / (now.jitterBufferEmittedCount - last.jitterBufferEmittedCount || 1);
      const decoding = (now.totalDecodeTime - last.totalDecodeTime) / frames;
      received = { fps: frames / seconds, delay: 1000 * (buffered + decoding + (pair.currentRoundTripTime ?? 0) / 2) };
    }
    still = frames === 0 ? still + 1 : 0;
    if (frames > 0) veil("");
    if (frames === 0 || !now.id) received = { fps: 0, delay: 0 };
    if (still >= STALL_S) {
      still = 0;
      viewer.end();
    }
    last = now;
    window.__stats = {
      ...received,
      frames: now.framesDecoded ?? 0,
      freezes: now.freezeCount ?? 0,
      codec: reports.find(({ id }) => id === now.codecId)?.mimeType,
    };
  }
}

function veil(text) {
  $("veil").textContent = text;
  $("veil").hidden = !text;
}

// ---- lending the camera

let camera; // { stream, session } while it is lent

async function useCamera() {
  trouble("");
  $("camera").disabled = true;
  let stream;
  try {
    if (!navigator.mediaDevices) throw new Error("This browser gives its camera only to pages on https or localhost.");
    stream = await navigator.mediaDevices.getUserMedia({
      video: { width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 30 }, facingMode: "user" },
    });
  } catch (error) {
    trouble(CAMERA_WORDS[error.name] ?? error.message);
    return;
  } finally {
    $("camera").disabled = false;
  }
  const [track] = stream.getVideoTracks();
  track.contentHint = "motion";
  track.onended = () => returnCamera("The camera was disconnected.");
  camera = { stream };
  $("own").srcObject = stream;
  showCamera();
  await lend(camera, track);
}

/** Keep the camera with the daemon, over as many connections as that takes, until it is taken back. */
async function lend(mine, track) {
  for (let failures = 0; mine === camera; failures++) {
    mine.session = new Session("/whip");
    try {
      const { sender } = mine.session.pc.addTransceiver(track, { direction: "sendonly" });
      await mine.session.open();
      const parameters = sender.getParameters();
      parameters.degradationPreference = "maintain-framerate";
      if (parameters.encodings?.[0]) parameters.encodings[0].maxBitrate = 1_500_000;
      await sender.setParameters(parameters).catch(() => {});
      failures = 0;
      await mine.session.over;
    } catch (error) {
      // A session that died without a word is in the way for some seconds.
      if (failures >= 4 && mine === camera) returnCamera(sentence(error instanceof Refused ? error.message : "the daemon does not answer"));
    } finally {
      mine.session.close();
    }
    await sleep(2000);
  }
}

function returnCamera(reason = "") {
  const mine = camera;
  camera = undefined;
  mine.stream.getTracks().forEach((track) => track.stop());
  mine.session?.close();
  $("own").srcObject = null;
  trouble(reason);
  showCamera();
}

function showCamera() {
  $("own").hidden = !camera;
  $("camera").textContent = camera ? "Stop using my camera" : "Use my camera";
  $("camera").setAttribute("aria-pressed", String(Boolean(camera)));
  explain();
}

function explain() {
  $("note").textContent = camera
    ? "The daemon sees your camera; viewers see what it makes of it."
    : `${acted ? "A synthetic actor is before the camera. With yours a new avatar begins." : "A new avatar begins with it."} Your pictures stay on this machine.`;
}

function trouble(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = !text;
}

const sentence = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;

// ---- what the head is put over

let choosing = 0; // wishes on their way: until they are answered, the daemon's state does not move the controls

/** Show what the daemon shows: "torso", "room", "#203040", "torso+room" ... */
function showScene(background) {
  if (typeof background !== "string" || choosing) return;
  const [first, rest] = background.split("+");
  const behind = first === "torso" ? (rest ?? "calm") : first;
  $("torso").checked = first === "torso";
  if (behind.startsWith("#")) $("colour").value = behind;
  if (behind === "picture") $("behind").querySelector("[value=picture]").hidden = false;
  $("behind").value = behind.startsWith("#") ? "colour" : behind;
  $("colour").hidden = $("behind").value !== "colour";
  $("scene").disabled = false;
}

async function chooseScene() {
  const behind = $("behind").value === "colour" ? $("colour").value : $("behind").value;
  $("colour").hidden = $("behind").value !== "colour";
  choosing++;
  try {
    const response = await fetch("/background", {
      method: "PUT",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ background: $("torso").checked ? `torso+${behind}` : behind }),
    });
    if (!response.ok) throw new Refused(response.status, await response.text());
    trouble("");
  } catch (error) {
    trouble(sentence(error instanceof Refused ? error.message : "the daemon does not answer"));
  } finally {
    choosing--;
  }
}

// ---- state

const chart = new Chart($("chart"));
const question = new Question($("question"), $("notice"), trouble);
const guide = new Guide($("guide"), $("ring"), $("hint"));
let acted = false; // whether the synthetic actor is before the camera

async function follow() {
  for (let misses = 0; ; await sleep(1000)) {
    try {
      const response = await fetch("/status", { signal: AbortSignal.timeout(3000) });
      show(await response.json());
      misses = 0;
    } catch {
      if (++misses >= 2) show({ state: "offline" });
    }
  }
}

function show(status) {
  const state = status.state ?? "connecting";
  acted = status.source === "synthetic";
  const [meaning, advice] = SENTENCES[state] ?? [""];
  const guided = !acted && GUIDED.has(state) && Boolean(status.guidance?.hint);
  const words = advice && !acted && !guided ? `${meaning} ${advice}` : meaning;
  if ($("sentence").textContent !== words) $("sentence").textContent = words; // else a screen reader would repeat it
  $("state").textContent = state;
  document.body.dataset.state = state;
  document.title = state === "live" ? "Telepresence" : `Telepresence – ${state}`;
  explain();
  showScene(status.background);
  number("fps", received.fps, 0);
  number("avatar-fps", status.avatar_fps, status.avatar_fps > 0 && status.avatar_fps < 10 ? 1 : 0);
  const latency = status.latency_ms > 0 && received.fps ? status.latency_ms + received.delay : undefined;
  number("latency", latency, 0);
  number("viewers", status.viewers, 0);
  list(Array.isArray(status.errors) ? status.errors : []);
  number("psnr", status.psnr_db, 1);
  chart.add(status.psnr_db, latency);
  question.show(status.person, status.events);
  guide.show(guided ? status.guidance : null);
}

function number(id, value, digits) {
  $(id).textContent = Number.isFinite(value) ? value.toFixed(digits) : "–";
}

/** What the daemon dropped or could not do, behind a line that can be opened. */
function list(problems) {
  $("problems").hidden = problems.length === 0;
  $("problems").querySelector("summary").textContent = problems.length === 1 ? "One problem so far" : `${problems.length} problems so far`;
  $("problems").querySelector("ul").replaceChildren(
    ...problems.map((text) => Object.assign(document.createElement("li"), { textContent: String(text) })),
  );
}

// ---- start

$("camera").onclick = () => (camera ? returnCamera() : useCamera());
for (const id of ["torso", "behind", "colour"]) $(id).onchange = chooseScene;
$("full").onclick = () => (document.fullscreenElement ? document.exitFullscreen() : $("stage").requestFullscreen());
$("full").hidden = !document.fullscreenEnabled;
addEventListener("pagehide", () => {
  camera?.session?.close();
  viewer?.close();
});

watch();
measure();
follow();
