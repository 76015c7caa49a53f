"""Benchmark of rendering and training an avatar on this machine: the parts of `telepresence bench`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from insta_runtime.errors import UserError
from telepresence.measure.bench.timing import cycled, percentiles, timed_ms

if TYPE_CHECKING:
    from insta_runtime.backends import AnyRenderer, Backend
    from insta_runtime.learn.trainer_interface import Trainer
    from telepresence.measure.bench.benchmark_avatar import BenchmarkAvatar

T = TypeVar("T")

DISPLAY_FPS: Final = 60.0
"""Frames per second of the display while training is measured beside it."""
DEFAULT_FRAMES: Final = {"cuda": 10_000, "host": 300}
"""Number of frames that are timed by default, by backend; 20 for any other."""
KEYS: Final = (
    *("frame_ms", "frame_while_training_ms", "step_ms", "field_inference_gpts", "field_training_gpts"),
    *("train_msamples_per_s", "nearest_triangle_gqps", "training_share", "first_frame_s", "host_frame_ms"),
    *("memory_gb", "device", "commit"),
)
"""Keys that the figures of every benchmark have; null, with a reason under ``notes``, where it was not measured."""

LEFT_OUT: Final = "not measured: not among --only"
"""Note of a figure whose part was not selected."""


@dataclass
class BenchmarkRun:
    """One run of the benchmark: the avatar, the backend, the amount of work, and the figures so far.

    Attributes:
        subject: the avatar with the take that moves it.
        backend: the backend whose times are measured.
        frames: number of frames to time.
        seconds: duration of training alone, and of display beside training.
        paths: paths of the avatar and of the tracked folder.
        figures: figures by key.
        notes: reasons for figures that could not be measured, by key.
    """

    subject: BenchmarkAvatar
    backend: Backend
    frames: int
    seconds: float
    paths: tuple[Path, Path]
    figures: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def native(self) -> bool:
        """Whether the backend has native kernels."""
        return self.backend.kernels is not None

    @property
    def on_gpu(self) -> bool:
        """Whether the avatar is on a CUDA device."""
        return self.subject.device.type == "cuda"

    def attempt(self, key: str, measure: Callable[[], T]) -> T | None:
        """Return ``measure()``; None, with the reason in the notes, if something that it needs is not available."""
        try:
            return measure()
        except (UserError, ImportError, OSError) as error:
            self.notes[key] = " ".join(str(error).split())
            return None


def run_benchmark(
    avatar: Path,
    tracked: Path,
    *,
    backend: str,
    size: int,
    frames: int | None,
    seconds: float,
    only: Sequence[str],
    device: str,
) -> dict[str, Any]:
    """Measure rendering and training of an avatar, with a progress bar on standard error.

    Args:
        avatar: the avatar's folder or file.
        tracked: tracked folder of the same person, which moves the avatar and which it is trained on.
        backend: backend that is measured; the torch reference is measured beside it.
        size: side of rendered frames in pixels.
        frames: number of frames to time; None for the default of the backend.
        seconds: duration of training alone, and of display beside training.
        only: names of `PARTS` to measure; empty for all.
        device: ``cpu`` or ``cuda``.

    Returns the figures, with all of `KEYS`.  Raises UserError for unknown parts, for files that cannot be used, and for
    a backend that is not available.
    """
    from insta_runtime.backends import choose_backend
    from telepresence.measure.bench.benchmark_avatar import open_benchmark_avatar
    from telepresence.measure.bench.timing import rounded
    from telepresence.measure.machine import device_name, source_commit

    unknown = [name for name in only if name not in PARTS]
    if unknown:
        raise UserError(f"--only does not know {unknown[0]!r}: choose from {', '.join(PARTS)}")
    subject = open_benchmark_avatar(avatar, tracked, size, device)
    chosen = choose_backend(backend, subject.model)
    run = BenchmarkRun(subject, chosen, frames or DEFAULT_FRAMES.get(chosen.kind, 20), seconds, (avatar, tracked))
    run.figures.update(
        avatar=str(avatar),
        tracked=tracked.name,
        size=size,
        backend=chosen.kind,
        backend_reason=chosen.reason,
        device=device_name(subject.device),
        commit=source_commit(),
    )
    if run.figures["commit"] is None:
        run.notes["commit"] = "not in a git checkout, and TELEPRESENCE_COMMIT is not set"
    _run_parts(run, [name for name in PARTS if name in only or not only])
    for key in KEYS:
        if run.figures.setdefault(key, None) is None and key not in run.notes:
            run.notes[key] = LEFT_OUT
    figures: dict[str, Any] = rounded({**{key: run.figures[key] for key in KEYS}, **run.figures, "notes": run.notes})  # type: ignore[assignment]
    return figures


def _run_parts(run: BenchmarkRun, parts: Sequence[str]) -> None:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("measuring", total=len(parts))
        for name in parts:
            bar.update(task, description=PARTS[name][0])
            PARTS[name][1](run)
            bar.advance(task)


# ---- the parts, in the order in which they are measured


def _frame(run: BenchmarkRun) -> None:
    """Time from a head state to a finished frame in host memory."""
    from insta_runtime.native.renderer import NativeRenderer
    from telepresence.measure.bench.frame import make_draw

    subject = run.subject
    renderer = _renderer(run)
    draw = make_draw(renderer, subject.camera)
    warm = max(2, min(20, run.frames // 4))
    times = timed_ms(draw, cycled(subject.states, run.frames + warm), subject.device, warm)
    run.figures.update(frame_ms=percentiles(times), frames=len(times))
    if isinstance(renderer, NativeRenderer):
        run.figures["counters"] = asdict(renderer.counters())


def _train(run: BenchmarkRun) -> None:
    """Training step, training rate alone and beside the display, frame time beside training, and memory."""
    _release(run)
    _measure_training(run, _trainer(run))
    _release(run)


def _measure_training(run: BenchmarkRun, trainer: Trainer) -> None:
    from telepresence.measure.bench.benchmark_avatar import REPLAY_FRAMES, fill_replay
    from telepresence.measure.bench.concurrent_training import draw_while_training, train_alone
    from telepresence.measure.machine import memory_use_gb

    subject, device = run.subject, run.subject.device
    held = fill_replay(trainer, subject, REPLAY_FRAMES if run.backend.kind == "cuda" else 16)
    steps = 500 if run.native and run.on_gpu else 10
    times = timed_ms(lambda _: trainer.step(), range(2 * steps), device, warm=steps)
    alone = train_alone(trainer, run.seconds, device)
    renderer = _renderer(run)
    shown, beside = draw_while_training(
        renderer, trainer, subject.states, subject.camera, DISPLAY_FPS, run.seconds, device
    )
    memory, counted = memory_use_gb(device)
    run.figures.update(
        step_ms=percentiles(times),
        train_msamples_per_s=alone.samples_per_s / 1e6,
        frame_while_training_ms=percentiles(shown.ms),
        training_share=beside.rays_per_s / alone.rays_per_s,
        memory_gb=memory,
        training={
            "replay_frames": held,
            "rays_a_step": alone.rays / max(1, alone.steps),
            "samples_a_step": alone.samples / max(1, alone.steps),
            "steps_per_s": alone.steps / alone.seconds,
            "steps_per_s_while_displaying": beside.steps / beside.seconds,
            "frames_while_training": len(shown.ms),
            "late_frames": shown.late,
            "worst_frame_ms": max(shown.ms),
            "memory_counted": counted,
        },
    )


def _scene(run: BenchmarkRun) -> None:
    """Number of rays and samples in a frame, and the occupied fraction of space."""
    from telepresence.measure.bench.frame import scene

    subject = run.subject
    few = subject.states[:: max(1, len(subject.states) // 8)]
    run.figures["scene"] = scene(subject.model, few, subject.camera)


def _stages(run: BenchmarkRun) -> None:
    """Time of each stage of frame and step: by kernels for the backend, by functions for the torch reference."""
    from telepresence.measure.bench.benchmark_avatar import fill_replay
    from telepresence.measure.bench.frame import make_draw
    from telepresence.measure.bench.stages import device_stages, host_stages, host_step_stages, torch_frame_stages

    subject, kernels = run.subject, run.backend.kernels
    few = 10 if run.on_gpu else 3
    run.figures["torch_stages_ms"] = torch_frame_stages(subject.model, subject.states, subject.camera, few)
    if kernels is None:
        run.notes["stages_ms"] = f"the {run.backend.kind} backend has no native kernels"
        return
    if run.on_gpu:
        trainer, draw = _trainer(run), make_draw(_renderer(run), subject.camera)
        fill_replay(trainer, subject, 32)
        states = cycled(subject.states, 1 << 20)
        frame = device_stages(lambda: draw(next(states)), kernels, 100)
        step = device_stages(trainer.step, kernels, 100)
    else:
        frame = host_stages(subject.model, kernels, subject.states, subject.camera, 20)
        step = host_step_stages(subject, kernels, 20)
    run.figures.update(stages_ms=frame, step_stages_ms=step)
    if not frame:
        run.notes["stages_ms"] = "the driver records no kernels on this machine"


def _field(run: BenchmarkRun) -> None:
    """Throughput of the hash grid with its network, of the torch reference, and of tiny-cuda-nn."""
    from telepresence.measure.bench.field import field_gpts, native_fields, point_count, tcnn_field, torch_field

    device, seconds = run.subject.device, min(1.0, run.seconds)
    rates: dict[str, Any] = {}
    if run.native:
        rates = {name: field_gpts(field, device, seconds) for name, field in native_fields(device).items()}
    own = list(rates.values())
    rates["torch"] = field_gpts(torch_field(device), device, seconds)
    if run.on_gpu:
        rates["tinycudann"] = run.attempt("tinycudann", lambda: field_gpts(tcnn_field(), device, seconds))
    else:
        run.notes["tinycudann"] = "needs a GPU"
    if run.backend.kind == "tcnn" and rates["tinycudann"]:
        own = [rates["tinycudann"]]
    for what in ("inference", "training"):
        run.figures[f"field_{what}_gpts"] = max(rate[what] for rate in own or [rates["torch"]])
    run.figures["field_gpts"] = {"points": point_count(device), **rates}


def _nearest(run: BenchmarkRun) -> None:
    """Throughput of nearest-triangle queries near the posed head."""
    from telepresence.measure.bench.nearest import native_gqps, random_points, torch_gqps

    subject, seconds = run.subject, min(1.0, run.seconds)
    model, states, camera = subject.model, subject.states, subject.camera
    rates = {"torch": torch_gqps(model, states, camera, seconds)}
    if run.backend.kernels is not None:
        ours = partial(native_gqps, model, run.backend.kernels, states, camera, seconds)
        rates |= {"native": ours(), "native_random": ours(random_points)}
    run.figures.update(nearest_triangle_gqps=rates.get("native", rates["torch"]), nearest_gqps=rates)


def _ceilings(run: BenchmarkRun) -> None:
    """Highest rates of the device: memory, matrix units, copies to the host, kernel starts."""
    from telepresence.measure.bench.ceilings import ceilings

    run.figures["ceilings"] = ceilings(run.subject.device, min(0.5, run.seconds))


def _torch(run: BenchmarkRun) -> None:
    """Frame and step of the torch reference on the same device, and how many times faster the backend is."""
    from insta_runtime.learn.torch_trainer import TorchTrainer
    from insta_runtime.render.renderer import Renderer
    from telepresence.measure.bench.benchmark_avatar import fill_replay
    from telepresence.measure.bench.frame import make_draw
    from telepresence.measure.bench.timing import median

    if not run.native:
        run.notes["torch"] = f"the {run.backend.kind} backend is the torch reference itself"
        return
    subject, device = run.subject, run.subject.device
    draw = make_draw(Renderer(subject.model), subject.camera)
    frame = median(timed_ms(draw, cycled(subject.states, 16), device))
    trainer = TorchTrainer(subject.untouched_model())
    fill_replay(trainer, subject, 16)
    step = median(timed_ms(lambda _: trainer.step(), range(20), device, warm=10))
    twins = {"frame_ms": frame, "step_ms": step}
    for name in tuple(twins):
        own = run.figures.get(name)
        if own is not None:
            twins[f"{name.removesuffix('_ms')}_ratio"] = twins[name] / own["median"]
    run.figures["torch"] = twins


def _host(run: BenchmarkRun) -> None:
    """Small frame and training step on two threads of the processor, in a separate process."""
    from telepresence.measure.bench.child_process import host_figures

    name = "auto" if run.native else "torch"
    found = run.attempt("host_frame_ms", lambda: host_figures(*run.paths, name))
    if found is None:
        return
    if found["backend"] != "host":
        run.notes["host_frame_ms"] = f"measured with the {found['backend']} backend"
    found["frame_ratio"] = found["torch_frame_ms"] / found["frame_ms"]
    found["step_ratio"] = found["torch_step_ms"] / found["step_ms"]
    run.figures.update(host_frame_ms=found["frame_ms"], host=found)


def _start(run: BenchmarkRun) -> None:
    """Time from the start of a process to its first frame, with the present and with an empty kernel cache."""
    from telepresence.measure.bench.child_process import first_frame_s

    size, device, kind = run.subject.camera.width, run.subject.device.type, run.backend.kind
    measure = partial(first_frame_s, *run.paths, size, device, kind)
    warm = run.attempt("first_frame_s", lambda: measure(cold=False))
    cold = run.attempt("first_frame_s", lambda: measure(cold=True)) if run.native else None
    if not run.native:
        run.notes["first_frame_s"] = "the torch backend compiles no kernels: there is no cold start"
    run.figures["first_frame_s"] = {"warm": warm and warm["seconds"], "cold": cold and cold["seconds"]}
    run.figures["start"] = {"warm": warm, "cold": cold}


def _gsplat(run: BenchmarkRun) -> None:
    """Rasterisation of as many Gaussians as other head avatars have, at the same size, for comparison."""
    from telepresence.measure.bench.gsplat_baseline import gsplat_ms

    subject = run.subject
    if not run.on_gpu:
        run.notes["gsplat"] = "needs a GPU"
        return
    few = subject.states[:: max(1, len(subject.states) // 4)]
    measure = partial(gsplat_ms, subject.model, few, subject.camera, min(1.0, run.seconds))
    run.figures["gsplat_ms"] = run.attempt("gsplat", measure)


PARTS: Final[dict[str, tuple[str, Callable[[BenchmarkRun], None]]]] = {
    "frame": ("frame", _frame),
    "train": ("training, and display beside it", _train),
    "scene": ("rays and samples", _scene),
    "stages": ("stages", _stages),
    "field": ("hash grid and network", _field),
    "nearest": ("nearest triangles", _nearest),
    "torch": ("torch reference", _torch),
    "gsplat": ("gsplat", _gsplat),
    "ceilings": ("highest rates of the device", _ceilings),
    "host": ("processor alone", _host),
    "start": ("cold start", _start),
}
"""Parts of the benchmark in their order: name, title in the progress bar, and the function that measures it."""


def _renderer(run: BenchmarkRun) -> AnyRenderer:
    from insta_runtime.backends import make_renderer

    return make_renderer(run.subject.model, run.backend)


def _trainer(run: BenchmarkRun) -> Trainer:
    from insta_runtime.backends import make_trainer

    return make_trainer(run.subject.untouched_model(), run.backend)


def _release(run: BenchmarkRun) -> None:
    """Free GPU memory that torch caches but does not use, so that it does not count as memory of the training."""
    import torch

    if run.on_gpu:
        torch.cuda.empty_cache()
