"""Eight minutes as in a call: display at 60 Hz while the avatar goes on learning from new pictures.

    python tools/soak.py AVATAR TRACKED --json soak.json

Leaves with 1 if memory grows, or a frame takes longer than two of the camera's after the first second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from insta_runtime.avatar import choose_device
from insta_runtime.backends import NAMES, choose_backend, make_renderer, make_trainer
from insta_runtime.errors import UserError
from insta_runtime.learn.trainer import Trainer
from telepresence.measure.bench.benchmark_avatar import (
    REPLAY_FRAMES,
    BenchmarkAvatar,
    fill_replay,
    open_benchmark_avatar,
)
from telepresence.measure.bench.concurrent_training import draw_while_training
from telepresence.measure.bench.timing import percentiles, rounded
from telepresence.measure.machine import device_name, resident_bytes

FPS = 60.0
WORST_MS = 33.0  # a frame after the first second
DEVICE_GROWTH_GB = 0.032  # an allocator's segment or two; a leak of a picture a second would make 0.5 in eight minutes
HOST_GROWTH_GB = 0.064  # the same for Python's and the C library's heaps
OFFER_S = 0.2  # seconds between new pictures, as in a call
SAMPLE_S = 2.0


@dataclass
class Memory:
    """GB of the device and of this process in RAM, every `SAMPLE_S`."""

    device: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)

    def sample(self, device: torch.device) -> None:
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            self.device.append((total - free) / 1e9)
        self.host.append(resident_bytes() / 1e9)


def growth(samples: list[float]) -> float | None:
    """From the second quarter of the time to its last; None of too few samples."""
    quarter = len(samples) // 4
    if quarter == 0:
        return None
    return statistics.median(samples[-quarter:]) - statistics.median(samples[quarter : 2 * quarter])


def beside(subject: BenchmarkAvatar, trainer: Trainer, memory: Memory, done: threading.Event, offer: bool) -> None:
    """Look at memory, and ``offer`` new pictures, until ``done``."""
    observations = list(subject.observations(len(subject.folder.frames)))
    number, sampled = 0, 0.0
    while not done.wait(OFFER_S):
        if offer:
            trainer.add(observations[number % len(observations)])
            number += 1
        if time.perf_counter() - sampled >= SAMPLE_S:
            memory.sample(subject.device)
            sampled = time.perf_counter()


def soak(avatar: Path, tracked: Path, minutes: float, size: int, device: str, backend: str, fill_to: int) -> Any:
    """Run it; the figures, with what was broken under ``broken``."""
    subject = open_benchmark_avatar(avatar, tracked, size, choose_device(device).type)
    chosen = choose_backend(backend, subject.model)
    renderer = make_renderer(subject.model, chosen)
    trainer = make_trainer(subject.untouched_model(), chosen)
    held = fill_replay(trainer, subject, fill_to)
    full = held < fill_to  # only then do new pictures take the place of old ones, and no memory of their own
    for _ in range(20):  # what is allocated once is allocated now
        trainer.step()
    memory, done = Memory(), threading.Event()
    thread = threading.Thread(target=beside, args=(subject, trainer, memory, done, full))
    thread.start()
    try:
        shown, learned = draw_while_training(
            renderer, trainer, subject.states, subject.camera, FPS, 60.0 * minutes, subject.device
        )
    finally:
        done.set()
        thread.join()
    settled = shown.ms[round(FPS) :] or shown.ms
    figures: dict[str, Any] = {
        "device": device_name(subject.device),
        "backend": chosen.kind,
        "size": size,
        "minutes": minutes,
        "replay_frames": held,
        "new_pictures": full,
        "frames": len(shown.ms),
        "late_frames": shown.late,
        "frame_ms": percentiles(settled),
        "worst_frame_ms": max(settled),
        "frames_over_33_ms": sum(ms > WORST_MS for ms in settled),
        "steps": learned.steps,
        "train_msamples_per_s": learned.samples_per_s / 1e6,
        "device_gb": memory.device[-1] if memory.device else None,
        "device_growth_gb": growth(memory.device),
        "host_gb": memory.host[-1] if memory.host else None,
        "host_growth_gb": growth(memory.host),
    }
    bounds = {"worst_frame_ms": WORST_MS, "device_growth_gb": DEVICE_GROWTH_GB, "host_growth_gb": HOST_GROWTH_GB}
    over = {name: bound for name, bound in bounds.items() if figures[name] is not None and figures[name] > bound}
    broken = [f"{name} {figures[name]:.3g} > {bound:.3g}" for name, bound in over.items()]
    return rounded({**figures, "broken": broken})


def main() -> None:
    """Parse, run, print, write, leave."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("avatar", type=Path)
    parser.add_argument("tracked", type=Path)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--backend", default="auto", choices=NAMES)
    parser.add_argument("--replay", dest="fill_to", type=int, default=2 * REPLAY_FRAMES, help="pictures to begin with")
    parser.add_argument("--json", type=Path)
    arguments = vars(parser.parse_args())
    target = arguments.pop("json")
    try:
        figures = soak(**arguments)
    except UserError as error:
        sys.exit(str(error))
    text = json.dumps(figures, indent=2)
    print(text)
    if target is not None:
        target.write_text(text + "\n", encoding="utf-8")
    sys.exit(1 if figures["broken"] else 0)


if __name__ == "__main__":
    main()
