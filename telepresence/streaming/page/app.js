// The page of the daemon: watches the avatar, lends it this browser's camera, shows its state, and says what is wished.

import { Refused, Session } from "./call.js";
import { Camera, words } from "./camera.js";
import { Chart } from "./chart.js";
import { Guide } from "./guide.js";
import { Orbit } from "./orbit.js";
import { Question } from "./question.js";
import { Scene } from "./scene.js";

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
const STILL = "This is the avatar as it is: nothing is learned.";

const GUIDED = new Set(["learning", "live"]); // when somebody is there who can be asked for something
const KNOWN = new Set(["learning", "live", "lost", "idle"]); // when landmarks can be enough

const STALL_S = 5; // without a new picture before a new connection is made
const KNOWN_MS = 1000; // for the daemon to say whether landmarks would be enough
const FIRST_MS = 5000; // for the first picture of a connection that takes over
const FAILURES = 4; // in a row before a camera is given back: a session that died without a word is in the way for some seconds

const $ = (id) => document.getElementById(id);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const sentence = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?…]$/.test(text) ? "" : "."}`;

// ---- the connection

let call; // the session that is shown
let camera; // lent, while it is
let lending = 0; // counts cameras that came and went
let received = {}; // fps, delay (ms from the daemon to the screen), side (px), rate (Mb/s)

/** Keep one session after the other; a camera that comes or goes is the end of one. */
async function keep() {
  let failures = 0;
  for (let wait = 500; ; wait = Math.min(2 * wait, 8000)) {
    const mine = camera;
    const before = call;
    const session = new Session(mine);
    if (mine) mine.session = session;
    const turn = lending;
    changed = Promise.withResolvers();
    try {
      const first = Promise.withResolvers();
      await session.open((stream) => first.resolve(stream));
      const stream = await first.promise;
      if (before) await Promise.race([picture(stream), session.over, sleep(FIRST_MS)]); // the old one is shown until then
      $("avatar").srcObject = stream;
      $("avatar").play().catch(() => {});
      call = session;
      before?.close();
      session.opened.then(() => ([wait, failures] = [250, 0]));
      if (mine?.withheld) await session.ask({ type: "withhold" });
      await Promise.race([session.over, changed.promise]);
    } catch (error) {
      if (error instanceof Refused) veil(`${sentence(error.message)} Trying again …`);
      if (mine && mine === camera && (++failures >= FAILURES || mine.withheld)) {
        returnCamera(error instanceof Refused ? error.message : "the daemon does not answer");
      }
    }
    if (turn !== lending) { // a camera came or went: go over to it at once, and show the old session until then
      wait = 250;
      if (call !== session) session.close();
      continue;
    }
    session.close();
    if (call === session) call = undefined;
    if (!$("veil").textContent) veil("Connecting again …");
    await sleep(wait);
  }
}

let changed = Promise.withResolvers(); // resolves when a camera comes or goes

/** Resolves when `stream` has given a picture. */
function picture(stream) {
  const video = Object.assign(document.createElement("video"), { muted: true, srcObject: stream });
  video.play().catch(() => {});
  return new Promise((resolve) => (video.onloadeddata = resolve));
}

/** Once a second: how many pictures arrive, how late, and whether they have stopped. */
async function measure() {
  let last = {};
  let still = 0;
  for (;;) {
    await sleep(1000);
    call?.probe();
    const reports = call?.pc ? [...(await call.pc.getStats()).values()] : [];
    const now = reports.find(({ type, kind }) => type === "inbound-rtp" && kind === "video") ?? {};
    const pair = reports.find(({ type, nominated }) => type === "candidate-pair" && nominated) ?? {};
    const frames = now.framesDecoded - last.framesDecoded;
    const same = now.id === last.id && now.ssrc === last.ssrc;
    if (same && frames > 0) {
      const seconds = (now.timestamp - last.timestamp) / 1000;
      const emitted = now.jitterBufferEmittedCount - last.jitterBufferEmittedCount || 1;
      const buffered = (now.jitterBufferDelay - last.jitterBufferDelay) / emitted;
      const decoding = (now.totalDecodeTime - last.totalDecodeTime) / frames;
      const trip = call?.rtt ?? 1000 * (pair.currentRoundTripTime ?? 0);
      received = {
        fps: frames / seconds,
        delay: 1000 * (buffered + decoding) + trip / 2,
        side: now.frameHeight,
        rate: (8e-6 * (now.bytesReceived - last.bytesReceived)) / seconds,
      };
    }
    still = frames === 0 ? still + 1 : 0;
    if (frames > 0) veil("");
    if (frames === 0 || !now.id) received = { fps: 0, delay: 0 };
    if (still >= STALL_S) {
      still = 0;
      call?.end();
    }
    last = now;
    window.__stats = {
      ...received,
      rtt: call?.rtt,
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

// ---- one's own camera

let agreed = false; // on this page, to what the dialog says
let discreet = false; // whether pictures are to be withheld from the start

/** Say what happens to a camera's pictures; resolves to whether that is agreed to. */
async function agree() {
  const dialog = $("consent");
  const known = call?.ask({ type: "withhold" }).then(() => true, () => false);
  $("keep").hidden = !(await Promise.race([known, sleep(KNOWN_MS)]));
  $("where").textContent = location.hostname === "localhost" || location.hostname.startsWith("127.") ? "on this machine" : `on ${location.hostname}`;
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => {
      discreet = !$("keep").hidden && $("keeps").checked;
      resolve(dialog.returnValue === "yes");
    };
    dialog.returnValue = "no";
  });
}

async function useCamera() {
  trouble("");
  if (!agreed && !(await agree())) return;
  agreed = true;
  $("camera").disabled = true;
  let mine;
  try {
    mine = await Camera.open($("speaks").checked);
    $("own").srcObject = mine.stream;
    $("mine").hidden = false;
    if (discreet) await mine.withhold($("own"), () => call.ask({ type: "withhold" }));
  } catch (error) {
    mine?.stop();
    $("own").srcObject = null;
    agreed = false; // to whatever is possible next
    showCamera();
    trouble(sentence(words(error)));
    return;
  } finally {
    $("camera").disabled = false;
  }
  camera = mine;
  camera.picture.onended = () => returnCamera("The camera was disconnected.");
  swap();
}

function returnCamera(reason = "") {
  if (!camera) return;
  discreet = camera.withheld;
  camera.stop();
  camera = undefined;
  $("own").srcObject = null;
  trouble(reason && sentence(reason));
  swap();
}

/** A camera came or went: go on with another session. */
function swap() {
  lending++;
  if (camera?.voice) camera.voice.enabled = !muted;
  changed.resolve();
  showCamera();
}

async function withhold() {
  trouble("");
  const mine = camera;
  $("withhold").classList.add("busy");
  $("withhold").disabled = true;
  try {
    if (mine.withheld) await mine.share();
    else await mine.withhold($("own"), () => call.ask({ type: "withhold" }));
  } catch (error) {
    trouble(sentence(error.message));
  } finally {
    $("withhold").classList.remove("busy");
    showCamera();
  }
}

function showCamera() {
  $("mine").hidden = !camera;
  $("kept").hidden = !camera?.withheld;
  toggle("camera", Boolean(camera), camera ? "Stop using my camera" : "Use my camera");
  $("camera").querySelector("span").textContent = camera ? "Stop" : "Camera";
  toggle("withhold", Boolean(camera?.withheld));
  $("withhold").disabled = !camera || !(camera.withheld || KNOWN.has(state));
  $("sound").disabled = Boolean(camera);
  explain();
}

function explain() {
  const lent = camera?.withheld
    ? "Your pictures stay in this browser: only where your face is, and what it does, goes to the daemon. It learns from the pictures that it has."
    : "The daemon sees your camera; viewers see what it makes of it.";
  $("note").textContent = camera
    ? lent
    : `${acted ? "A synthetic actor is before the camera. With yours a new avatar begins." : "A new avatar begins with your camera."} Your pictures stay on this machine.`;
}

// ---- sound, learning, calibration

let muted = false;
let frozen = false;

function toggle(id, pressed, name) {
  $(id).setAttribute("aria-pressed", String(pressed));
  if (name) $(id).setAttribute("aria-label", name);
}

/** Ask the daemon, and say what is in the way. */
async function ask(message) {
  try {
    if (!call) throw new Refused(0, "there is no connection to the daemon now");
    await call.ask(message);
    trouble("");
    return true;
  } catch (error) {
    trouble(sentence(error.message));
    return false;
  }
}

function showMute(on) {
  muted = on;
  if (camera?.voice) camera.voice.enabled = !muted;
  toggle("mute", muted, muted ? "Unmute" : "Mute");
}

async function mute() {
  const on = !muted;
  showMute(on); // at once: whoever mutes may already be talking of something else
  if (!(await ask({ type: "mute", on })) && !camera?.voice) showMute(!on);
}

function playSound() {
  const video = $("avatar");
  video.muted = !video.muted;
  toggle("sound", !video.muted);
}

function showFrozen(on) {
  frozen = on;
  toggle("freeze", on, on ? "Go on learning" : "Pause learning");
}

async function freeze() {
  const on = !frozen;
  if (await ask({ type: "freeze", on })) showFrozen(on);
}

// ---- state

const scene = new Scene($("scene"), trouble);
const chart = new Chart($("chart"));
const question = new Question($("question"), $("notice"), trouble);
const guide = new Guide($("guide"), $("ring"), $("hint"));
const orbit = new Orbit($("avatar"), $("straight"), (view) => call?.send({ type: "orbit", ...view }));
let acted = false; // whether the synthetic actor is before the camera
let state = "connecting";

async function follow() {
  for (let misses = 0; ; await sleep(1000)) {
    try {
      const response = await fetch("/status", { signal: AbortSignal.timeout(3000) });
      if (response.status === 401) location.reload(); // the token has changed: it is asked for at the door
      show(await response.json());
      misses = 0;
    } catch {
      if (++misses >= 2) show({ state: "offline" });
    }
  }
}

function show(status) {
  state = status.state ?? "connecting";
  acted = status.source === "synthetic";
  const [meaning, advice] = SENTENCES[state] ?? [""];
  if (status.training) showFrozen(status.training.state === "frozen");
  if (typeof status.sound?.muted === "boolean" && status.sound.muted !== muted) showMute(status.sound.muted);
  const asks = !acted && !frozen && !camera?.withheld; // else nobody would see what is asked for
  const guided = asks && GUIDED.has(state) && Boolean(status.guidance?.hint);
  const words = frozen && GUIDED.has(state) ? STILL : advice && !acted && !guided ? `${meaning} ${advice}` : meaning;
  if ($("sentence").textContent !== words) $("sentence").textContent = words; // else a screen reader would repeat it
  $("state").textContent = state;
  document.body.dataset.state = state;
  document.title = state === "live" ? "Telepresence" : `Telepresence – ${state}`;
  if (!$("withhold").classList.contains("busy")) showCamera();
  scene.show(status.background);
  orbit.show(status.orbit);
  number("fps", received.fps, 0);
  number("side", received.side, 0);
  number("rate", received.rate, 1);
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

function trouble(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = !text;
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

const ACTIONS = {
  camera: () => (camera ? returnCamera() : useCamera()),
  mute,
  sound: playSound,
  withhold,
  freeze,
  recalibrate: () => ask({ type: "recalibrate" }),
};
const KEYS = { v: "camera", m: "mute", s: "sound", k: "withhold", f: "freeze", c: "recalibrate" };

for (const [id, act] of Object.entries(ACTIONS)) $(id).onclick = act;
addEventListener("keydown", (event) => {
  const button = $(KEYS[event.key] ?? "");
  const typing = event.target.matches("input:not([type=checkbox]), select, dialog *");
  if (!button || button.disabled || typing || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if ($("shortcuts").checked) button.click();
});
$("full").onclick = () => (document.fullscreenElement ? document.exitFullscreen() : $("stage").requestFullscreen());
$("full").hidden = !document.fullscreenEnabled;
addEventListener("pagehide", () => call?.close());

keep();
measure();
follow();
