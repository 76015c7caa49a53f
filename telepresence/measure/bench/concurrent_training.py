"""Display at a steady rate while training goes on beside it, as in a call: two threads, two streams of the device."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from telepresence.measure.bench.frame import make_draw
from telepresence.measure.bench.timing import cycled, synchronise

if TYPE_CHECKING:
    import torch

    from insta_runtime.backends import AnyRenderer
    from insta_runtime.learn.trainer import Trainer
    from insta_runtime.types import Camera, HeadState

PUBLISH_S = 1.0
"""Learning hands its weights to the display so often, as in a call."""


@dataclass
class DisplayTimings:
    """Pictures drawn at a steady rate: milliseconds of each, and how many began after their time."""

    ms: list[float] = field(default_factory=list)
    late: int = 0


@dataclass
class TrainingTotals:
    """Training for some time."""

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


def show(
    draw: Callable[[HeadState], object],
    states: Sequence[HeadState],
    fps: float,
    seconds: float,
    refresh: Callable[[], object] = lambda: None,
    watch: Callable[[DisplayTimings], object] | None = None,
) -> DisplayTimings:
    """Draw ``states`` at ``fps`` for ``seconds``, or as fast as it goes if that is slower.

    ``draw`` returns when the picture is in host memory: its time is a picture's.  ``refresh`` takes over new weights
    while nobody waits, as the daemon does after a picture; what it takes too long makes the next picture late.
    ``watch`` sees the record after each picture.
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
        if watch is not None:
            watch(shown)
    return shown


def learn(
    trainer: Trainer, stop: Callable[[], bool], device: torch.device, publish: Callable[[], object]
) -> TrainingTotals:
    """Train on the current stream until ``stop()``, publishing now and then."""
    learned = TrainingTotals()
    began = published = time.perf_counter()
    while not stop():
        report = trainer.step()
        if report is not None:
            learned.steps += 1
            learned.rays += report.rays
            learned.samples += report.samples
        if time.perf_counter() - published >= PUBLISH_S:
            publish()
            published = time.perf_counter()
    synchronise(device)
    learned.seconds = time.perf_counter() - began
    return learned


def train_alone(trainer: Trainer, seconds: float, device: torch.device) -> TrainingTotals:
    """Train for ``seconds`` with nothing beside it."""
    end = time.perf_counter() + seconds
    with _stream(device, low=True):
        return learn(trainer, lambda: time.perf_counter() >= end, device, trainer.snapshot)


@contextmanager
def learning(trainer: Trainer, device: torch.device, publish: Callable[[], object]) -> Iterator[TrainingTotals]:
    """Training in a thread and on a stream of its own; what is yielded is filled in at the end.

    What goes wrong in the thread is raised at the end.
    """
    done = threading.Event()
    record, errors = TrainingTotals(), list[BaseException]()

    def body() -> None:
        try:
            with _stream(device, low=True):
                record.__dict__.update(learn(trainer, done.is_set, device, publish).__dict__)
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
    watch: Callable[[DisplayTimings], object] | None = None,
) -> tuple[DisplayTimings, TrainingTotals]:
    """Both at once, the weights going from one to the other as in a call."""
    from insta_runtime.learn.weight_exchange import WeightExchange

    exchange = WeightExchange()

    def refresh() -> None:
        snapshot = exchange.take()
        if snapshot is not None:
            renderer.load(snapshot)

    with _stream(device, low=False):
        draw = make_draw(renderer, camera)
        draw(states[0])
        with learning(trainer, device, lambda: exchange.publish(trainer.snapshot())) as beside:
            shown = show(draw, states, fps, seconds, refresh, watch)
    return shown, beside


def _stream(device: torch.device, *, low: bool) -> AbstractContextManager[object]:
    if device.type != "cuda":
        return nullcontext()
    import torch

    return torch.cuda.stream(torch.cuda.Stream(device, priority=0 if low else -1))
