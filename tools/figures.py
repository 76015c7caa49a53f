"""Measure this project on this machine, into docs/figures.json: ``python tools/figures.py [--only NAME]``.

Each entry names the command that repeats it.  Entries that need the test material are skipped where it is absent.
Temporary files go to ``out/figures``, which git ignores.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from call_figures.browser import chromium
from call_figures.daemon import DaemonProcess, daemon_process

from telepresence.measure.machine import describe_machine, source_commit

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "figures.json"
SCRATCH = Path("out/figures")  # relative to ROOT, where every command runs
CLIPS = Path(os.environ.get("TELEPRESENCE_SHARED", "../shared")) / "clips"
MODELS = CLIPS.parent / "models"

TELEPRESENCE = (sys.executable, "-m", "telepresence")
LIVE_WITHIN = 240.0  # seconds to wait for the state `live`
WATCH = 20.0  # seconds over which rates are counted
ADDRESS_WITHIN = 60.0  # seconds within which the daemon must serve
FPS = 30

Figures = dict[str, Any]


# ---- commands that write a JSON file


def run_for_json(*arguments: str) -> Figures:
    """Run ``telepresence`` with ``--json``: its figures, the command to repeat it, and the seconds that it took."""
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
    """Figures of `telepresence track` on a clip of the test material."""
    return run_for_json("track", f"{CLIPS}/{clip}.mp4", "--out", f"{SCRATCH}/{clip}", "--models", str(MODELS))


def fit(source: str) -> Figures:
    """Figures of `telepresence fit` on a clip, or on the synthetic actor."""
    if source != "synthetic" and not (SCRATCH / source / "meta.json").exists():
        track(source)
    recording = source if source == "synthetic" else f"{SCRATCH}/{source}"
    where = ("--out", f"{SCRATCH}/{source}.avatar")
    figures = run_for_json("fit", recording, *where, "--seconds", "60", "--size", "128", "--holdout", "0.125")
    del figures["each"]  # for every frame: too long for a document
    return figures


def rehearse(clip: str) -> Figures:
    """Figures of `telepresence rehearse` on a clip."""
    if not (SCRATCH / clip / "meta.json").exists():
        track(clip)
    figures = run_for_json("rehearse", f"{SCRATCH}/{clip}", "--seconds", "60")
    for lengthy in ("held_back", "status", "showing"):
        del figures[lengthy]
    del figures["resources"]["curve"]
    return figures


# ---- the daemon


@contextmanager
def daemon(*arguments: str) -> Iterator[DaemonProcess]:
    """Run ``telepresence run`` on a free port with a new avatar until the block ends; it may fail to serve."""
    shutil.rmtree(SCRATCH / "run.avatar", ignore_errors=True)
    avatar = ("--avatar", f"{SCRATCH}/run.avatar")
    with daemon_process(SCRATCH, [*TELEPRESENCE, "run", "--port", "0", *arguments, *avatar]) as running:
        yield running


RECEIVED = """() => {
  const video = document.querySelector("video");
  if (!video || video.videoWidth === 0) return null;
  return [video.videoWidth, video.videoHeight, video.getVideoPlaybackQuality().totalVideoFrames];
}"""


def demo() -> Figures:
    """Measure `make demo`: seconds to the address, the first frame and `live`, and the rates while it learns."""
    figures: Figures = {"command": "make demo"}
    with daemon("--source", "synthetic") as running:
        address = running.wait_for_address(ADDRESS_WITHIN)
        if address is None:
            raise RuntimeError(running.output())
        figures["seconds_to_address"] = round(running.age(), 1)
        with chromium() as browser:
            page = browser.new_page()
            page.goto(address)
            page.wait_for_function(RECEIVED, timeout=60_000)
            figures["seconds_to_first_picture"] = round(running.age(), 1)
            figures["live_within_seconds"] = None
            while running.age() < LIVE_WITHIN:
                if running.status()["state"] == "live":
                    figures["live_within_seconds"] = round(running.age(), 1)
                    break
                page.wait_for_timeout(500)
            width, height, before = page.evaluate(RECEIVED)
            started, avatar_fps = time.monotonic(), []
            while time.monotonic() < started + WATCH:
                page.wait_for_timeout(1000)
                avatar_fps.append(running.status()["avatar_fps"])
            frames = page.evaluate(RECEIVED)[2] - before
            figures["received_fps"] = round(frames / (time.monotonic() - started), 1)
            figures["received_size"] = [width, height]
            figures["avatar_fps"] = round(statistics.median(avatar_fps), 1)
            figures["status"] = running.status()
    return figures


# ---- inputs that must end with one line instead of a traceback


def write_video(path: Path, frames: Iterator[np.ndarray]) -> None:
    """Write frames (H, W, 3) uint8 as an H.264 video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.pix_fmt = "yuv420p"
        for index, picture in enumerate(frames):
            if index == 0:
                stream.height, stream.width = picture.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def no_face() -> Iterator[np.ndarray]:
    """Frames of ten seconds of a moving gradient."""
    ramp = np.linspace(0, 255, 480, dtype=np.uint8)
    for index in range(10 * FPS):
        yield np.repeat(np.roll(np.tile(ramp, (480, 1)), 3 * index, axis=1)[..., None], 3, axis=2)


def face_that_leaves(clip: Path) -> Iterator[np.ndarray]:
    """Frames of eight seconds of a face, three seconds of an empty room, and the face again."""
    with av.open(str(clip)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][: 8 * FPS]
    height, width = (side // 2 * 2 for side in pictures[0].shape[:2])
    empty = np.full((height, width, 3), 120, dtype=np.uint8)
    yield from (picture[:height, :width] for picture in pictures)
    yield from (empty for _ in range(3 * FPS))
    yield from (picture[:height, :width] for picture in pictures)


def watch_source(source: str, seconds: float, *arguments: str) -> Figures:
    """Run the daemon with an input: its exit status and last line, or the states that the session goes through."""
    figures: Figures = {"command": shlex.join(["telepresence", "run", "--source", source, *arguments])}
    with daemon("--source", source, *arguments) as running:
        address = running.wait_for_address(ADDRESS_WITHIN)
        states: list[str] = []
        while address and running.age() < seconds and running.process.poll() is None:
            state = running.status()["state"]
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
    """What the daemon does with inputs that are damaged, absent or without a face."""
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
    """Kill fifty processes that learn and save at random moments (`tools/kill_saving.py`)."""
    written = SCRATCH / "killed.json"
    subprocess.run([sys.executable, "tools/kill_saving.py", "--kills", "50", "--json", str(written)], check=True)
    found: Figures = json.loads(written.read_text())
    return found


def call(row: str, *more: str) -> Figures:
    """Figures of one row of `tools/measure_call.py`, which names its own command."""
    answer = SCRATCH / "answer.json"
    answer.unlink(missing_ok=True)
    subprocess.run([sys.executable, "tools/measure_call.py", row, *more, "--json", str(answer)], check=True)
    found: Figures = json.loads(answer.read_text())
    return {key: value for key, value in found.items() if key not in ("commit", "machine")}


# ---- the list

# For each name: whether the test material is needed, and the function that measures it.
FIGURES: dict[str, tuple[bool, Callable[[], Figures]]] = {
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
    "call-audio": (False, partial(call, "audio", "--freeze")),
    "call-killed-tab": (False, partial(call, "killed-tab", "--freeze")),
    "call-reconnects": (False, partial(call, "reconnects", "--freeze")),
    "call-zeromq": (False, partial(call, "zeromq", "--freeze")),
    "call-gaps": (False, partial(call, "gaps")),
}


def main() -> None:
    """Measure the figures that are wanted, and write each into the file as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=FIGURES, help="measure only this; repeatable")
    wanted = parser.parse_args().only or list(FIGURES)
    os.chdir(ROOT)
    SCRATCH.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    measured = source_commit()  # read before the results change the tree
    failed = []
    for name in wanted:
        needs_clips, measure = FIGURES[name]
        if needs_clips and not CLIPS.is_dir():
            print(f"{name}: skipped: needs {CLIPS} (set TELEPRESENCE_SHARED)")
            continue
        print(f"{name} ...", flush=True)
        try:
            figures = measure()
        except Exception as error:  # the other figures can still be measured
            print(f"{name}: failed: {error}")
            failed.append(name)
            continue
        results[name] = {"commit": measured, "machine": describe_machine(), **figures}
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
        print(json.dumps({key: value for key, value in figures.items() if key != "curve"}, indent=2), flush=True)
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
