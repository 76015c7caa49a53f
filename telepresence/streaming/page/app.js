// Main module of the page: shows the avatar and the state of the call, sends this browser's camera, handles all buttons.

import { BackgroundControls } from "./background.js";
import { Camera, describeError } from "./camera.js";
import { Chart } from "./chart.js";
import { Guidance } from "./guidance.js";
import { IdentityQuestion } from "./identity_question.js";
import { Orbit } from "./orbit.js";
import { RequestError, Session } from "./session.js";

// For each state of the call: what it means, and what the person in front of the camera can do.
const STATE_TEXTS = {
  connecting: ["Connecting to the daemon."],
  offline: ["The daemon does not answer. It may have been stopped; this page keeps trying to reconnect."],
  waiting: ["Waiting for a face.", "Look into the camera."],
  calibrating: ["Calibrating: measuring the face.", "Look straight ahead and talk."],
  learning: ["Learning the face: the image is getting sharper.", "Talk and turn your head."],
  live: ["This is the learned avatar; it keeps improving."],
  lost: ["The face is out of sight. The avatar moves again as soon as it is back."],
  idle: ["Nothing moves the avatar at the moment."],
};
const FROZEN_TEXT = "Learning is paused: the avatar stays as it is.";

const GUIDED_STATES = new Set(["learning", "live"]); // in which the person can be asked for a pose or an expression
const KNOWN_STATES = new Set(["learning", "live", "lost", "idle"]); // in which landmarks can replace camera frames

const STALL_S = 5; // without a new frame, before a new connection is made
const LANDMARKS_MS = 1000; // for the daemon's answer whether landmarks are enough
const FIRST_FRAME_MS = 5000; // for the first frame of a new session, while the old one is still shown
const MAX_FAILURES = 4; // in a row, before the camera is stopped; a lost session blocks the camera for some seconds

const $ = (id) => document.getElementById(id);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const asSentence = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?…]$/.test(text) ? "" : "."}`;

// ---- connection

let session; // the session whose video is shown
let camera; // the camera that is sent, if any
let cameraChanges = 0; // counts starts and stops of the camera
let cameraChanged = Promise.withResolvers(); // resolves at the next start or stop of the camera
let received = {}; // fps, delay (ms from the daemon to the screen), side (px), rate (Mb/s)

/** Keep one session after another open; a start or stop of the camera ends the current one. */
async function keepConnected() {
  let failures = 0;
  for (let wait = 500; ; wait = Math.min(2 * wait, 8000)) {
    const ownCamera = camera;
    const previous = session;
    const next = new Session(ownCamera);
    if (ownCamera) ownCamera.session = next;
    const changes = cameraChanges;
    cameraChanged = Promise.withResolvers();
    try {
      const firstTrack = Promise.withResolvers();
      await next.open((stream) => firstTrack.resolve(stream));
      const stream = await firstTrack.promise;
      if (previous) await Promise.race([firstFrame(stream), next.over, sleep(FIRST_FRAME_MS)]);
      $("avatar").srcObject = stream;
      $("avatar").play().catch(() => {});
      session = next;
      previous?.close();
      next.opened.then(() => ([wait, failures] = [250, 0]));
      if (ownCamera?.withheld) await next.request({ type: "withhold" });
      await Promise.race([next.over, cameraChanged.promise]);
    } catch (error) {
      if (error instanceof RequestError) showOverlay(`${asSentence(error.message)} Trying again …`);
      if (ownCamera && ownCamera === camera && (++failures >= MAX_FAILURES || ownCamera.withheld)) {
        stopCamera(error instanceof RequestError ? error.message : "the daemon does not answer");
      }
    }
    if (changes !== cameraChanges) { // connect again at once, and show the old session until then
      wait = 250;
      if (session !== next) next.close();
      continue;
    }
    next.close();
    if (session === next) session = undefined;
    if (!$("veil").textContent) showOverlay("Connecting again …");
    await sleep(wait);
  }
}

/** Resolves when `stream` has delivered a frame. */
function firstFrame(stream) {
  const video = Object.assign(document.createElement("video"), { muted: true, srcObject: stream });
  video.play().catch(() => {});
  return new Promise((resolve) => (video.onloadeddata = resolve));
}

/** Once a second: measure frame rate, delay and bitrate of the video, and reconnect if it has stalled. */
async function measureVideo() {
  let last = {};
  let stalledSeconds = 0;
  for (;;) {
    await sleep(1000);
    session?.probe();
    const reports = session?.pc ? [...(await session.pc.getStats()).values()] : [];
    const now = reports.find(({ type, kind }) => type === "inbound-rtp" && kind === "video") ?? {};
    const pair = reports.find(({ type, nominated }) => type === "candidate-pair" && nominated) ?? {};
    const frames = now.framesDecoded - last.framesDecoded;
    const sameStream = now.id === last.id && now.ssrc === last.ssrc;
    if (sameStream && frames > 0) {
      const seconds = (now.timestamp - last.timestamp) / 1000;
      const emitted = now.jitterBufferEmittedCount - last.jitterBufferEmittedCount || 1;
      const buffered = (now.jitterBufferDelay - last.jitterBufferDelay) / emitted;
      const decoding = (now.totalDecodeTime - last.totalDecodeTime) / frames;
      const roundTrip = session?.rtt ?? 1000 * (pair.currentRoundTripTime ?? 0);
      received = {
        fps: frames / seconds,
        delay: 1000 * (buffered + decoding) + roundTrip / 2,
        side: now.frameHeight,
        rate: (8e-6 * (now.bytesReceived - last.bytesReceived)) / seconds,
      };
    }
    stalledSeconds = frames === 0 ? stalledSeconds + 1 : 0;
    if (frames > 0) showOverlay("");
    if (frames === 0 || !now.id) received = { fps: 0, delay: 0 };
    if (stalledSeconds >= STALL_S) {
      stalledSeconds = 0;
      session?.end();
    }
    last = now;
    window.__stats = {
      ...received,
      rtt: session?.rtt,
      frames: now.framesDecoded ?? 0,
      freezes: now.freezeCount ?? 0,
      codec: reports.find(({ id }) => id === now.codecId)?.mimeType,
    };
  }
}

/** Show `text` over the video; an empty text hides it. */
function showOverlay(text) {
  $("veil").textContent = text;
  $("veil").hidden = !text;
}

// ---- this browser's camera

let consented = false; // whether the user has agreed on this page to the use of the camera
let withholdFromStart = false; // whether no frame is sent from the start

/** Show what happens to the camera's video; resolves to whether the user agrees. */
async function askConsent() {
  const dialog = $("consent");
  const enough = session?.request({ type: "withhold" }).then(() => true, () => false);
  $("keep").hidden = !(await Promise.race([enough, sleep(LANDMARKS_MS)]));
  const local = location.hostname === "localhost" || location.hostname.startsWith("127.");
  $("where").textContent = local ? "on this machine" : `on ${location.hostname}`;
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => {
      withholdFromStart = !$("keep").hidden && $("keeps").checked;
      resolve(dialog.returnValue === "yes");
    };
    dialog.returnValue = "no";
  });
}

async function startCamera() {
  showError("");
  if (!consented && !(await askConsent())) return;
  consented = true;
  $("camera").disabled = true;
  let opened;
  try {
    opened = await Camera.open($("speaks").checked);
    $("own").srcObject = opened.stream;
    $("mine").hidden = false;
    if (withholdFromStart) await opened.withhold($("own"), () => session.request({ type: "withhold" }));
  } catch (error) {
    opened?.stop();
    $("own").srcObject = null;
    consented = false; // what the user can agree to may differ the next time
    updateCameraButtons();
    showError(asSentence(describeError(error)));
    return;
  } finally {
    $("camera").disabled = false;
  }
  camera = opened;
  camera.videoTrack.onended = () => stopCamera("The camera was disconnected.");
  changeSession();
}

function stopCamera(reason = "") {
  if (!camera) return;
  withholdFromStart = camera.withheld;
  camera.stop();
  camera = undefined;
  $("own").srcObject = null;
  showError(reason && asSentence(reason));
  changeSession();
}

/** Open a new session after the camera was started or stopped. */
function changeSession() {
  cameraChanges++;
  if (camera?.audioTrack) camera.audioTrack.enabled = !muted;
  cameraChanged.resolve();
  updateCameraButtons();
}

async function toggleWithhold() {
  showError("");
  const current = camera;
  $("withhold").classList.add("busy");
  $("withhold").disabled = true;
  try {
    if (current.withheld) await current.share();
    else await current.withhold($("own"), () => session.request({ type: "withhold" }));
  } catch (error) {
    showError(asSentence(error.message));
  } finally {
    $("withhold").classList.remove("busy");
    updateCameraButtons();
  }
}

function updateCameraButtons() {
  $("mine").hidden = !camera;
  $("kept").hidden = !camera?.withheld;
  setPressed("camera", Boolean(camera), camera ? "Stop using my camera" : "Use my camera");
  $("camera").querySelector("span").textContent = camera ? "Stop" : "Camera";
  setPressed("withhold", Boolean(camera?.withheld));
  $("withhold").disabled = !camera || !(camera.withheld || KNOWN_STATES.has(state));
  $("audio").disabled = Boolean(camera);
  explainCamera();
}

/** Say below the settings where the camera's video goes. */
function explainCamera() {
  const withheldText = "Your video stays in this browser: only the position and expression of your face are sent. The avatar learns nothing new meanwhile.";
  const sharedText = "Your video is sent to the daemon, which learns from it; viewers see the avatar.";
  const before = isSynthetic ? "A synthetic actor is shown. Your camera starts a new avatar." : "Your camera starts a new avatar.";
  if (camera) $("note").textContent = camera.withheld ? withheldText : sharedText;
  else $("note").textContent = `${before} Your video is sent to the daemon only.`;
}

// ---- audio, learning, calibration

let muted = false;
let frozen = false;

function setPressed(id, pressed, name) {
  $(id).setAttribute("aria-pressed", String(pressed));
  if (name) $(id).setAttribute("aria-label", name);
}

/** Send a request to the daemon, and show the reason if it fails; resolves to whether it succeeded. */
async function request(message) {
  try {
    if (!session) throw new RequestError(0, "there is no connection to the daemon at the moment");
    await session.request(message);
    showError("");
    return true;
  } catch (error) {
    showError(asSentence(error.message));
    return false;
  }
}

function setMuted(on) {
  muted = on;
  if (camera?.audioTrack) camera.audioTrack.enabled = !muted;
  setPressed("mute", muted, muted ? "Unmute" : "Mute");
}

async function toggleMute() {
  const on = !muted;
  setMuted(on); // at once, before the daemon's answer: from now on nothing must be heard
  if (!(await request({ type: "mute", on })) && !camera?.audioTrack) setMuted(!on);
}

function togglePlayback() {
  const video = $("avatar");
  video.muted = !video.muted;
  setPressed("audio", !video.muted);
}

function setFrozen(on) {
  frozen = on;
  setPressed("freeze", on, on ? "Resume learning" : "Pause learning");
}

async function toggleFreeze() {
  const on = !frozen;
  if (await request({ type: "freeze", on })) setFrozen(on);
}

// ---- state of the call

const background = new BackgroundControls($("scene"), showError);
const chart = new Chart($("chart"));
const question = new IdentityQuestion($("question"), $("notice"), showError);
const guidance = new Guidance($("guide"), $("ring"), $("hint"));
const orbit = new Orbit($("avatar"), $("straight"), (view) => session?.send({ type: "orbit", ...view }));
let isSynthetic = false; // whether the source is the synthetic actor
let state = "connecting";

/** Once a second: read the daemon's status and show it. */
async function pollStatus() {
  for (let misses = 0; ; await sleep(1000)) {
    try {
      const requested = performance.now();
      const response = await fetch("/status", { signal: AbortSignal.timeout(3000) });
      if (response.status === 401) location.reload(); // the token has changed: the daemon answers with the login page
      showStatus(await response.json(), requested);
      misses = 0;
    } catch {
      if (++misses >= 2) showStatus({ state: "offline" });
    }
  }
}

function showStatus(status, requested) {
  state = status.state ?? "connecting";
  isSynthetic = status.source === "synthetic";
  const [meaning, advice] = STATE_TEXTS[state] ?? [""];
  if (status.training) setFrozen(status.training.state === "frozen");
  if (typeof status.audio?.muted === "boolean" && status.audio.muted !== muted) setMuted(status.audio.muted);
  const canLearn = !isSynthetic && !frozen && !camera?.withheld;
  const guided = canLearn && GUIDED_STATES.has(state) && Boolean(status.guidance?.hint);
  let text = advice && !isSynthetic && !guided ? `${meaning} ${advice}` : meaning;
  if (frozen && GUIDED_STATES.has(state)) text = FROZEN_TEXT;
  if ($("sentence").textContent !== text) $("sentence").textContent = text; // set only if new: it is read out
  $("state").textContent = state;
  document.body.dataset.state = state;
  document.title = state === "live" ? "Telepresence" : `Telepresence – ${state}`;
  if (!$("withhold").classList.contains("busy")) updateCameraButtons();
  background.update(status.background, requested);
  orbit.update(status.orbit);
  showNumber("fps", received.fps, 0);
  showNumber("side", received.side, 0);
  showNumber("rate", received.rate, 1);
  showNumber("avatar-fps", status.avatar_fps, status.avatar_fps > 0 && status.avatar_fps < 10 ? 1 : 0);
  const latency = status.latency_ms > 0 && received.fps ? status.latency_ms + received.delay : undefined;
  showNumber("latency", latency, 0);
  showNumber("viewers", status.viewers, 0);
  showProblems(Array.isArray(status.errors) ? status.errors : []);
  showNumber("psnr", status.psnr_db, 1);
  chart.add(status.psnr_db, latency);
  question.update(status.subject, status.events);
  guidance.update(guided ? status.guidance : null);
}

function showNumber(id, value, digits) {
  $(id).textContent = Number.isFinite(value) ? value.toFixed(digits) : "–";
}

/** Show an error message; an empty text hides it. */
function showError(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = !text;
}

/** List the daemon's errors behind a summary that can be opened. */
function showProblems(problems) {
  $("problems").hidden = problems.length === 0;
  $("problems").querySelector("summary").textContent = problems.length === 1 ? "One problem so far" : `${problems.length} problems so far`;
  $("problems").querySelector("ul").replaceChildren(
    ...problems.map((text) => Object.assign(document.createElement("li"), { textContent: String(text) })),
  );
}

// ---- start

const ACTIONS = {
  camera: () => (camera ? stopCamera() : startCamera()),
  mute: toggleMute,
  audio: togglePlayback,
  withhold: toggleWithhold,
  freeze: toggleFreeze,
  recalibrate: () => request({ type: "recalibrate" }),
};
const KEYS = { v: "camera", m: "mute", s: "audio", k: "withhold", f: "freeze", c: "recalibrate" };

for (const [id, action] of Object.entries(ACTIONS)) $(id).onclick = action;
addEventListener("keydown", (event) => {
  const button = $(KEYS[event.key] ?? "");
  const typing = event.target.matches("input:not([type=checkbox]), select, dialog *");
  if (!button || button.disabled || typing || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if ($("shortcuts").checked) button.click();
});
$("full").onclick = () => (document.fullscreenElement ? document.exitFullscreen() : $("stage").requestFullscreen());
$("full").hidden = !document.fullscreenEnabled;
addEventListener("pagehide", () => session?.close());

keepConnected();
measureVideo();
pollStatus();
