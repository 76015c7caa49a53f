"""Measure this project on this machine, into docs/figures.json: ``python tools/figures.py [--only NAME]``.

Each figure is a command with its answer, so that anybody can repeat it.  What needs the test material is left
out where that is absent.  Scratch files go to ``out/figures``, which git ignores.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from call_figures.background_load import commit, machine
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "figures.json"
SCRATCH = Path("out/figures")  # below ROOT, where every command runs
CLIPS = Path(os.environ.get("TELEPRESENCE_SHARED", "../shared")) / "clips"
MODELS = CLIPS.parent / "models"

TELEPRESENCE = (sys.executable, "-m", "telepresence")
LIVE_WITHIN = 240.0  # seconds to wait for the state `live`
WATCH = 20.0  # seconds over which rates are counted
FPS = 30

Figures = dict[str, Any]


# ---- commands that answer with a JSON file


def run_for_json(*arguments: str) -> Figures:
    """Run ``telepresence`` with ``--json``: its answer, the command as a person types it, and the time it took."""
    answer = SCRATCH / "answer.json"
    answer.unlink(missing_ok=True)
    started = time.monotonic()
    subprocess.run([*TELEPRESENCE, *arguments, "--json", str(answer)], check=True)
    return {
        "command": shlex.join(["telepresence", *arguments, "--json", "F"]),
        "wall_seconds": round(time.monotonic() - started, 1),
        **json.loads(answer.read_text()),
    }


def track(clip: str) -> Figures:
    return run_for_json("track", f"{CLIPS}/{clip}.mp4", "--out", f"{SCRATCH}/{clip}", "--models", str(MODELS))


def fit(source: str) -> Figures:
    if source != "synthetic" and not (SCRATCH / source / "meta.json").exists():
        track(source)
    recording = source if source == "synthetic" else f"{SCRATCH}/{source}"
    where = ("--out", f"{SCRATCH}/{source}.avatar")
    figures = run_for_json("fit", recording, *where, "--seconds", "60", "--size", "128", "--holdout", "0.125")
    del figures["each"]  # of every picture: too long for a document
    return figures


def rehearse(clip: str) -> Figures:
    if not (SCRATCH / clip / "meta.json").exists():
        track(clip)
    figures = run_for_json("rehearse", f"{SCRATCH}/{clip}", "--seconds", "60")
    for lengthy in ("held_back", "status", "showing"):
        del figures[lengthy]
    del figures["resources"]["curve"]
    return figures


# ---- the daemon


@dataclass
class Daemon:
    """A running ``telepresence run`` and all that it has printed."""

    process: subprocess.Popen[bytes]
    log: Path
    started: float

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def address(self, seconds: float = 60.0) -> str | None:
        """The address of the page once ``/healthz`` answers; None if the process ended without serving."""
        while time.monotonic() < self.started + seconds and self.process.poll() is None:
            found = re.search(r"http://127\.0\.0\.1:\d+", self.output())
            if found:
                try:
                    urllib.request.urlopen(f"{found.group()}/healthz", timeout=5).close()
                except OSError:
                    pass
                else:
                    return found.group()
            time.sleep(0.05)
        return None

    def age(self) -> float:
        return time.monotonic() - self.started


@contextmanager
def daemon(*arguments: str) -> Iterator[Daemon]:
    log = SCRATCH / "daemon.log"
    with log.open("wb") as file:
        command = [*TELEPRESENCE, "run", "--port", "0", *arguments, "--avatar", f"{SCRATCH}/run.avatar"]
        shutil.rmtree(SCRATCH / "run.avatar", ignore_errors=True)
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        yield Daemon(process, log, time.monotonic())
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()


def status(address: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{address}/status", timeout=10) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


@contextmanager
def browser_page(address: str) -> Iterator[Page]:
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        flags += ["--allow-loopback-in-peer-connection", "--disable-features=WebRtcHideLocalIpsWithMdns"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), headless=True, args=flags)
        page = browser.new_page()
        page.goto(address)
        yield page
        browser.close()


RECEIVED = """() => {
  const video = document.querySelector("video");
  if (!video || video.videoWidth === 0) return null;
  return [video.videoWidth, video.videoHeight, video.getVideoPlaybackQuality().totalVideoFrames];
}"""


def demo() -> Figures:
    """What a newcomer sees: time to the address, to the first picture, to `live`, and the rates while it learns."""
    figures: Figures = {"command": "make demo"}
    with daemon("--source", "synthetic") as running:
        address = running.address()
        if address is None:
            raise RuntimeError(running.output())
        figures["seconds_to_address"] = round(running.age(), 1)
        with browser_page(address) as page:
            page.wait_for_function(RECEIVED, timeout=60_000)
            figures["seconds_to_first_picture"] = round(running.age(), 1)
            figures["live_within_seconds"] = None
            while running.age() < LIVE_WITHIN:
                if status(address)["state"] == "live":
                    figures["live_within_seconds"] = round(running.age(), 1)
                    break
                page.wait_for_timeout(500)
            width, height, before = page.evaluate(RECEIVED)
            started, avatar_fps = time.monotonic(), []
            while time.monotonic() < started + WATCH:
                page.wait_for_timeout(1000)
                avatar_fps.append(status(address)["avatar_fps"])
            frames = page.evaluate(RECEIVED)[2] - before
            figures["received_fps"] = round(frames / (time.monotonic() - started), 1)
            figures["received_size"] = [width, height]
            figures["avatar_fps"] = round(statistics.median(avatar_fps), 1)
            figures["status"] = status(address)
    return figures


# ---- inputs that must fail gently


def write_video(path: Path, frames: Iterator[np.ndarray]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.pix_fmt = "yuv420p"
        for index, picture in enumerate(frames):
            if index == 0:
                stream.height, stream.width = picture.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def no_face() -> Iterator[np.ndarray]:
    """Ten seconds of a moving gradient."""
    ramp = np.linspace(0, 255, 480, dtype=np.uint8)
    for index in range(10 * FPS):
        yield np.repeat(np.roll(np.tile(ramp, (480, 1)), 3 * index, axis=1)[..., None], 3, axis=2)


def face_that_leaves(clip: Path) -> Iterator[np.ndarray]:
    """Eight seconds of a face, three of an empty room, and the face again."""
    with av.open(str(clip)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][: 8 * FPS]
    height, width = (side // 2 * 2 for side in pictures[0].shape[:2])
    empty = np.full((height, width, 3), 120, dtype=np.uint8)
    yield from (picture[:height, :width] for picture in pictures)
    yield from (empty for _ in range(3 * FPS))
    yield from (picture[:height, :width] for picture in pictures)


def watch_source(source: str, seconds: float, *arguments: str) -> Figures:
    """What ``run --source`` does with an input: its exit and last line, or the states it goes through."""
    figures: Figures = {"command": shlex.join(["telepresence", "run", "--source", source, *arguments])}
    with daemon("--source", source, *arguments) as running:
        address = running.address()
        states: list[str] = []
        while address and running.age() < seconds and running.process.poll() is None:
            state = status(address)["state"]
            if not states or states[-1] != state:
                states.append(state)
            time.sleep(0.25)
        if address is None:
            figures["exit"] = running.process.wait(timeout=60)
            figures["line"] = running.output().strip().splitlines()[-1]
        figures["states"] = states
    figures["traceback"] = "Traceback" in running.output()
    return figures


def failures() -> Figures:
    empty, text, faceless = SCRATCH / "empty.mp4", SCRATCH / "text.mp4", SCRATCH / "no-face.mp4"
    empty.write_bytes(b"")
    text.write_text("This is no video.\n" * 100)
    write_video(faceless, no_face())
    models = ("--models", str(MODELS))
    figures = {
        "empty_file": watch_source(f"file:{empty}", 20, *models),
        "text_file": watch_source(f"file:{text}", 20, *models),
        "missing_file": watch_source(f"file:{SCRATCH}/absent.mp4", 20, *models),
        "missing_webcam": watch_source("webcam:9", 20, *models),
    }
    if CLIPS.is_dir():
        leaving = SCRATCH / "leaves.mp4"
        write_video(leaving, face_that_leaves(CLIPS / "d9.mp4"))
        figures["no_face"] = watch_source(f"file:{faceless}", 25, *models)
        figures["face_leaves_and_returns"] = watch_source(f"file:{leaving}", 50, *models)
    return figures


def kills() -> Figures:
    """Fifty processes that learn and save, killed at random moments."""
    written = SCRATCH / "killed.json"
    subprocess.run([sys.executable, "tools/kill_saving.py", "--kills", "50", "--json", str(written)], check=True)
    found: Figures = json.loads(written.read_text())
    return found


def call(row: str, *more: str) -> Figures:
    """What `tools/measure_call.py` finds; it names its own command."""
    answer = SCRATCH / "answer.json"
    answer.unlink(missing_ok=True)
    subprocess.run([sys.executable, "tools/measure_call.py", row, *more, "--json", str(answer)], check=True)
    found: Figures = json.loads(answer.read_text())
    return {key: value for key, value in found.items() if key not in ("commit", "machine")}


# ---- all of them

FIGURES: dict[str, tuple[bool, Callable[[], Figures]]] = {  # whether the test material is needed, and how
    **{f"track-{clip}": (True, partial(track, clip)) for clip in ("d6", "d9", "d10", "d18")},
    "fit-d9": (True, partial(fit, "d9")),
    "fit-d18": (True, partial(fit, "d18")),
    "fit-synthetic": (False, partial(fit, "synthetic")),
    "rehearse-d9": (True, partial(rehearse, "d9")),
    "rehearse-d6": (True, partial(rehearse, "d6")),
    "demo": (False, demo),
    "failures": (False, failures),
    "kill-saving": (False, kills),
    "call-received": (False, partial(call, "received")),
    "call-latency": (False, partial(call, "latency", "--freeze")),
    "call-latency-learning": (False, partial(call, "latency")),
    "call-round-trip": (False, partial(call, "round-trip", "--freeze")),
    "call-viewers": (False, partial(call, "viewers", "--freeze")),
    "call-first-frame": (False, partial(call, "first-frame")),
    "call-links": (False, partial(call, "links", "--freeze")),
    "call-sound": (False, partial(call, "sound", "--freeze")),
    "call-killed-tab": (False, partial(call, "killed-tab", "--freeze")),
    "call-reconnects": (False, partial(call, "reconnects", "--freeze")),
    "call-zeromq": (False, partial(call, "zeromq", "--freeze")),
    "call-gaps": (False, partial(call, "gaps")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=FIGURES, help="measure this one; repeatable")
    wanted = parser.parse_args().only or list(FIGURES)
    os.chdir(ROOT)
    SCRATCH.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    measured = commit()  # before the results themselves change the tree
    failed = []
    for name in wanted:
        needs_clips, measure = FIGURES[name]
        if needs_clips and not CLIPS.is_dir():
            print(f"{name}: left out, needs {CLIPS} (TELEPRESENCE_SHARED)")
            continue
        print(f"{name} ...", flush=True)
        try:
            figures = measure()
        except Exception as error:  # the other figures are still worth having
            print(f"{name}: failed: {error}")
            failed.append(name)
            continue
        results[name] = {"commit": measured, "machine": machine(), **figures}
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
        print(json.dumps({key: value for key, value in figures.items() if key != "curve"}, indent=2), flush=True)
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
