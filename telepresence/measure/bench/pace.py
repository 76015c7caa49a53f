"""Display at a steady rate while training goes on beside it, as in a call: two threads, two streams of the device."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from telepresence.measure.bench.frame import drawing
from telepresence.measure.bench.timing import cycled, finish

if TYPE_CHECKING:
    import torch

    from insta_runtime.backends import AnyRenderer, AnyTrainer
    from insta_runtime.types import Camera, HeadState

PUBLISH_S = 1.0
"""Learning hands its weights to the display so often, as in a call."""


@dataclass
class Shown:
    """Pictures drawn at a steady rate: milliseconds of each, and how many began after their time."""

    ms: list[float] = field(default_factory=list)
    late: int = 0


@dataclass
class Learned:
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
    watch: Callable[[Shown], object] | None = None,
) -> Shown:
    """Draw ``states`` at ``fps`` for ``seconds``, or as fast as it goes if that is slower.

    ``draw`` returns when the picture is in host memory: its time is a picture's.  ``refresh`` takes over new weights
    while nobody waits, as the daemon does after a picture; what it takes too long makes the next picture late.
    ``watch`` sees the record after each picture.
    """
    shown = Shown()
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
    trainer: AnyTrainer, stop: Callable[[], bool], device: torch.device, publish: Callable[[], object]
) -> Learned:
    """Train on the current stream until ``stop()``, publishing now and then."""
    learned = Learned()
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
    finish(device)
    learned.seconds = time.perf_counter() - began
    return learned


def learn_alone(trainer: AnyTrainer, seconds: float, device: torch.device) -> Learned:
    """Train for ``seconds`` with nothing beside it."""
    end = time.perf_counter() + seconds
    with _stream(device, low=True):
        return learn(trainer, lambda: time.perf_counter() >= end, device, trainer.snapshot)


@contextmanager
def learning(trainer: AnyTrainer, device: torch.device, publish: Callable[[], object]) -> Iterator[Learned]:
    """Training in a thread and on a stream of its own; what is yielded is filled in at the end.

    What goes wrong in the thread is raised at the end.
    """
    done = threading.Event()
    record, errors = Learned(), list[BaseException]()

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


def display_while_training(
    renderer: AnyRenderer,
    trainer: AnyTrainer,
    states: Sequence[HeadState],
    camera: Camera,
    fps: float,
    seconds: float,
    device: torch.device,
    watch: Callable[[Shown], object] | None = None,
) -> tuple[Shown, Learned]:
    """Both at once, the weights going from one to the other as in a call."""
    from insta_runtime.learn.weight_exchange import WeightExchange

    exchange = WeightExchange()

    def refresh() -> None:
        snapshot = exchange.take()
        if snapshot is not None:
            renderer.load(snapshot)

    with _stream(device, low=False):
        draw = drawing(renderer, camera)
        draw(states[0])
        with learning(trainer, device, lambda: exchange.publish(trainer.snapshot())) as beside:
            shown = show(draw, states, fps, seconds, refresh, watch)
    return shown, beside


def _stream(device: torch.device, *, low: bool) -> AbstractContextManager[object]:
    if device.type != "cuda":
        return nullcontext()
    import torch

    return torch.cuda.stream(torch.cuda.Stream(device, priority=0 if low else -1))
