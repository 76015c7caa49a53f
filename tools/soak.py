"""Soak test: eight minutes of rendering at 60 frames a second while the avatar learns from new frames.

    python tools/soak.py AVATAR TRACKED --json soak.json

Exit status 1 if memory grows, or if a frame after the first second takes longer than `WORST_MS`.
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
from insta_runtime.learn.trainer_interface import Trainer
from telepresence.measure.bench.benchmark_avatar import (
    REPLAY_FRAMES,
    BenchmarkAvatar,
    fill_replay,
    open_benchmark_avatar,
)
from telepresence.measure.bench.concurrent_training import draw_while_training
from telepresence.measure.bench.timing import percentiles, rounded
from telepresence.measure.machine import device_name, resident_bytes

FPS = 60.0  # frames rendered a second
WORST_MS = 33.0  # longest time of a frame after the first second
DEVICE_GROWTH_GB = 0.032  # one or two segments of the allocator; a leak of one frame a second would make 0.5
HOST_GROWTH_GB = 0.064  # the same for the heaps of Python and the C library
OFFER_S = 0.2  # seconds between new observations, as in a call
SAMPLE_S = 2.0  # seconds between two samples of memory


@dataclass
class MemorySamples:
    """Memory in GB of the device and of this process, sampled every `SAMPLE_S` seconds."""

    device: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)

    def sample(self, device: torch.device) -> None:
        """Append the memory in use now."""
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            self.device.append((total - free) / 1e9)
        self.host.append(resident_bytes() / 1e9)


def growth(samples: list[float]) -> float | None:
    """Growth of the median from the second quarter of the samples to the last; None if there are fewer than four."""
    quarter = len(samples) // 4
    if quarter == 0:
        return None
    return statistics.median(samples[-quarter:]) - statistics.median(samples[quarter : 2 * quarter])


def add_observations(
    subject: BenchmarkAvatar, trainer: Trainer, memory: MemorySamples, done: threading.Event, offer: bool
) -> None:
    """Sample memory, and add observations to the replay if ``offer``, until ``done`` is set."""
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
    """Run the soak test and return its figures; ``broken`` lists the bounds that were exceeded."""
    subject = open_benchmark_avatar(avatar, tracked, size, choose_device(device).type)
    chosen = choose_backend(backend, subject.model)
    renderer = make_renderer(subject.model, chosen)
    trainer = make_trainer(subject.untouched_model(), chosen)
    held = fill_replay(trainer, subject, fill_to)
    full = held < fill_to  # a full replay replaces observations; one that is not full grows
    for _ in range(20):  # so that one-time allocations are done
        trainer.step()
    memory, done = MemorySamples(), threading.Event()
    thread = threading.Thread(target=add_observations, args=(subject, trainer, memory, done, full))
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
    """Parse the arguments, run, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("avatar", type=Path)
    parser.add_argument("tracked", type=Path)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--backend", default="auto", choices=NAMES)
    parser.add_argument(
        "--replay", dest="fill_to", type=int, default=2 * REPLAY_FRAMES, help="observations at the start"
    )
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
