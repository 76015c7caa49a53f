"""Rendering at a constant frame rate while training runs beside it, as in a call: two threads, two CUDA streams."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from telepresence.measure.bench.frame import make_draw
from telepresence.measure.bench.timing import cycled, synchronise

if TYPE_CHECKING:
    import torch

    from insta_runtime.backends import AnyRenderer
    from insta_runtime.learn.trainer_interface import Trainer
    from insta_runtime.types import Camera, HeadState

PUBLISH_INTERVAL_S: Final = 1.0
"""Seconds between two publications of the weights by the training, as in a call."""


@dataclass
class DisplayTimings:
    """Milliseconds of each frame rendered at a constant rate, and the number of frames that started late."""

    ms: list[float] = field(default_factory=list)
    late: int = 0


@dataclass
class TrainingTotals:
    """Steps, rays, samples and seconds of a training."""

    steps: int = 0
    rays: int = 0
    samples: int = 0
    seconds: float = 0.0

    @property
    def rays_per_s(self) -> float:
        return self.rays / self.seconds

    @property
    def samples_per_s(self) -> float:
        return self.samples / self.seconds


def draw_at_rate(
    draw: Callable[[HeadState], object],
    states: Sequence[HeadState],
    fps: float,
    seconds: float,
    refresh: Callable[[], object] = lambda: None,
    on_frame: Callable[[DisplayTimings], object] | None = None,
) -> DisplayTimings:
    """Render frames at ``fps`` for ``seconds``, or at the highest rate possible if that is lower.

    Args:
        draw: renders a head state and returns when the frame is in host memory; its time is the frame's.
        states: head states to render, forwards and backwards in turn.
        fps: frames per second.
        seconds: duration.
        refresh: called after each frame to load new weights, as in the daemon; a slow one delays the next frame.
        on_frame: called with the timings so far after each frame.
    """
    shown = DisplayTimings()
    began = due = time.perf_counter()
    for state in cycled(states, round(seconds * fps)):
        now = time.perf_counter()
        if now - began >= seconds:
            break
        if now < due:
            time.sleep(due - now)
        elif now - due > 0.5 / fps and shown.ms:
            shown.late += 1
            due = now
        start = time.perf_counter()
        draw(state)
        shown.ms.append(1000.0 * (time.perf_counter() - start))
        refresh()
        due += 1.0 / fps
        if on_frame is not None:
            on_frame(shown)
    return shown


def train_until(
    trainer: Trainer, stop: Callable[[], bool], device: torch.device, publish: Callable[[], object]
) -> TrainingTotals:
    """Train on the current stream until ``stop()`` is true, at least one step; publish every `PUBLISH_INTERVAL_S`."""
    totals = TrainingTotals()
    began = published = time.perf_counter()
    running = True
    while running:
        report = trainer.step()
        if report is not None:
            totals.steps += 1
            totals.rays += report.rays
            totals.samples += report.samples
        if time.perf_counter() - published >= PUBLISH_INTERVAL_S:
            publish()
            published = time.perf_counter()
        running = not stop()
    synchronise(device)
    totals.seconds = time.perf_counter() - began
    return totals


def train_alone(trainer: Trainer, seconds: float, device: torch.device) -> TrainingTotals:
    """Train for ``seconds`` without rendering beside it."""
    end = time.perf_counter() + seconds
    with _stream(device, low=True):
        return train_until(trainer, lambda: time.perf_counter() >= end, device, trainer.snapshot)


@contextmanager
def training_thread(trainer: Trainer, device: torch.device, publish: Callable[[], object]) -> Iterator[TrainingTotals]:
    """Context manager that trains in a separate thread and CUDA stream while the block runs.

    The totals that it yields are filled in when the block ends; an error of the thread is raised then.
    """
    done = threading.Event()
    record, errors = TrainingTotals(), list[BaseException]()

    def body() -> None:
        try:
            with _stream(device, low=True):
                record.__dict__.update(train_until(trainer, done.is_set, device, publish).__dict__)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body, name="train")
    thread.start()
    try:
        yield record
    finally:
        done.set()
        thread.join()
    if errors:
        raise errors[0]


def draw_while_training(
    renderer: AnyRenderer,
    trainer: Trainer,
    states: Sequence[HeadState],
    camera: Camera,
    fps: float,
    seconds: float,
    device: torch.device,
    on_frame: Callable[[DisplayTimings], object] | None = None,
) -> tuple[DisplayTimings, TrainingTotals]:
    """Render at ``fps`` while training, for ``seconds``; the renderer loads each publication, as in a call."""
    from insta_runtime.learn.weight_exchange import WeightExchange

    exchange = WeightExchange()

    def refresh() -> None:
        snapshot = exchange.take()
        if snapshot is not None:
            renderer.load(snapshot)

    with _stream(device, low=False):
        draw = make_draw(renderer, camera)
        draw(states[0])
        with training_thread(trainer, device, lambda: exchange.publish(trainer.snapshot())) as beside:
            shown = draw_at_rate(draw, states, fps, seconds, refresh, on_frame)
    return shown, beside


def _stream(device: torch.device, *, low: bool) -> AbstractContextManager[object]:
    if device.type != "cuda":
        return nullcontext()
    import torch

    return torch.cuda.stream(torch.cuda.Stream(device, priority=0 if low else -1))
