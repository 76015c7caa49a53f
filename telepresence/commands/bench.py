"""`telepresence bench`: measure everything that an avatar does on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from insta_runtime.errors import UserError
from telepresence.measure.bench.timing import cycled, spread, timed_ms

if TYPE_CHECKING:
    from insta_runtime.backends import AnyRenderer, AnyTrainer, Backend
    from telepresence.config import Config
    from telepresence.measure.bench.subject import Subject

T = TypeVar("T")

DISPLAY_FPS = 60.0
KEYS = (
    *("frame_ms", "frame_while_training_ms", "step_ms", "field_inference_gpts", "field_training_gpts"),
    *("train_msamples_per_s", "nearest_triangle_gqps", "training_share", "first_frame_s", "host_frame_ms"),
    *("memory_gb", "device", "commit"),
)
"""What every answer has; null, with a reason under ``notes``, where it could not be measured."""

LEFT_OUT = "left out: not among --only"


@dataclass
class Bench:
    """One run: what is measured, with what, and the figures so far."""

    subject: Subject
    backend: Backend
    frames: int
    seconds: float
    paths: tuple[Path, Path]
    figures: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def native(self) -> bool:
        return self.backend.kernels is not None

    @property
    def on_gpu(self) -> bool:
        return self.subject.device.type == "cuda"

    def attempt(self, key: str, measure: Callable[[], T]) -> T | None:
        """``measure()``; None, noting why, if what it needs is not there."""
        try:
            return measure()
        except (UserError, ImportError, OSError) as error:
            self.notes[key] = " ".join(str(error).split())
            return None


def bench(
    *,
    avatar: Path,
    tracked: Path,
    backend: str,
    size: int,
    frames: int | None,
    seconds: float,
    only: Sequence[str],
    config: Config,
) -> dict[str, Any]:
    """Measure ``avatar``, driven by and learning on from ``tracked``, and return the figures.

    Args:
        backend: whose times the figures are; the torch twins are measured beside it.
        size: side of the pictures in pixels. frames: of the take for ``frame_ms``; None: as many as are quickly drawn.
        seconds: of training alone, and of display beside training. only: names of `PARTS`; all if empty.

    Raises UserError for what cannot be used, and for a back end that cannot be had.
    """
    from insta_runtime.backends import choose_backend
    from telepresence.measure.bench.subject import open_subject
    from telepresence.measure.bench.timing import rounded
    from telepresence.measure.machine import device_name, source_commit

    unknown = [name for name in only if name not in PARTS]
    if unknown:
        raise UserError(f"there is nothing called {unknown[0]!r} to measure: choose from {', '.join(PARTS)}")
    subject = open_subject(avatar, tracked, size, config.run.device)
    chosen = choose_backend(backend, subject.model)
    usual = {"cuda": 10_000, "host": 300}.get(chosen.kind, 20)
    run = Bench(subject, chosen, frames or usual, seconds, (avatar, tracked))
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
        run.notes["commit"] = "neither git nor TELEPRESENCE_COMMIT says it"
    chosen_parts = [name for name in PARTS if name in only or not only]
    _with_progress(run, chosen_parts)
    for key in KEYS:
        if run.figures.setdefault(key, None) is None and key not in run.notes:
            run.notes[key] = LEFT_OUT
    figures: dict[str, Any] = rounded({**{key: run.figures[key] for key in KEYS}, **run.figures, "notes": run.notes})  # type: ignore[assignment]
    _print(figures)
    return figures


def _with_progress(run: Bench, parts: Sequence[str]) -> None:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("measuring", total=len(parts))
        for name in parts:
            bar.update(task, description=PARTS[name][0])
            PARTS[name][1](run)
            bar.advance(task)


# ---- the parts, in the order in which they run


def _frame(run: Bench) -> None:
    """The whole frame, on as many different pictures as were asked for."""
    from insta_runtime.native.renderer import NativeRenderer
    from telepresence.measure.bench.frame import drawing

    subject = run.subject
    renderer = _renderer(run)
    draw = drawing(renderer, subject.camera)
    warm = max(2, min(20, run.frames // 4))
    times = timed_ms(draw, cycled(subject.states, run.frames + warm), subject.device, warm)
    run.figures.update(frame_ms=spread(times), frames=len(times))
    if isinstance(renderer, NativeRenderer):
        run.figures["counters"] = asdict(renderer.counters())


def _train(run: Bench) -> None:
    """The step, its pace alone and beside the display, what the display feels of it, and memory."""
    _release(run)
    _measure_training(run, _trainer(run))
    _release(run)


def _measure_training(run: Bench, trainer: AnyTrainer) -> None:
    from telepresence.measure.bench.pace import display_while_training, learn_alone
    from telepresence.measure.bench.subject import REPLAY_FRAMES, fill
    from telepresence.measure.machine import memory_use_gb

    subject, device = run.subject, run.subject.device
    held = fill(trainer, subject, REPLAY_FRAMES if run.backend.kind == "cuda" else 16)
    steps = 500 if run.native and run.on_gpu else 10
    times = timed_ms(lambda _: trainer.step(), range(2 * steps), device, warm=steps)
    alone = learn_alone(trainer, run.seconds, device)
    renderer = _renderer(run)
    shown, beside = display_while_training(
        renderer, trainer, subject.states, subject.camera, DISPLAY_FPS, run.seconds, device
    )
    memory, counted = memory_use_gb(device)
    run.figures.update(
        step_ms=spread(times),
        train_msamples_per_s=alone.samples_per_s / 1e6,
        frame_while_training_ms=spread(shown.ms),
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


def _scene(run: Bench) -> None:
    """How many rays and samples a picture has, and how much of space is occupied."""
    from telepresence.measure.bench.frame import scene

    subject = run.subject
    few = subject.states[:: max(1, len(subject.states) // 8)]
    run.figures["scene"] = scene(subject.model, few, subject.camera)


def _stages(run: Bench) -> None:
    """Where the time goes: of the back end by kernels, of the torch twin by stages."""
    from telepresence.measure.bench.frame import drawing
    from telepresence.measure.bench.stages import device_stages, host_stages, host_step_stages, torch_frame_stages
    from telepresence.measure.bench.subject import fill

    subject, kernels = run.subject, run.backend.kernels
    few = 10 if run.on_gpu else 3
    run.figures["torch_stages_ms"] = torch_frame_stages(subject.model, subject.states, subject.camera, few)
    if kernels is None:
        run.notes["stages_ms"] = f"the {run.backend.kind} back end has no kernels of ours"
        return
    if run.on_gpu:
        trainer, draw = _trainer(run), drawing(_renderer(run), subject.camera)
        fill(trainer, subject, 32)
        states = cycled(subject.states, 1 << 20)
        frame = device_stages(lambda: draw(next(states)), kernels, 100)
        step = device_stages(trainer.step, kernels, 100)
    else:
        frame = host_stages(subject.model, kernels, subject.states, subject.camera, 20)
        step = host_step_stages(subject, kernels, 20)
    run.figures.update(stages_ms=frame, step_stages_ms=step)
    if not frame:
        run.notes["stages_ms"] = "the driver keeps no record of kernels here"


def _field(run: Bench) -> None:
    """The hash grid with its network, beside the torch twin and tiny-cuda-nn."""
    from telepresence.measure.bench.field import field_gpts, native_fields, points_of, tcnn_field, torch_field

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
    run.figures["field_gpts"] = {"points": points_of(device), **rates}


def _nearest(run: Bench) -> None:
    """Nearest triangles of points in the band."""
    from telepresence.measure.bench.nearest import native_gqps, random_points, torch_gqps

    subject, seconds = run.subject, min(1.0, run.seconds)
    model, states, camera = subject.model, subject.states, subject.camera
    rates = {"torch": torch_gqps(model, states, camera, seconds)}
    if run.backend.kernels is not None:
        ours = partial(native_gqps, model, run.backend.kernels, states, camera, seconds)
        rates |= {"native": ours(), "native_random": ours(random_points)}
    run.figures.update(nearest_triangle_gqps=rates.get("native", rates["torch"]), nearest_gqps=rates)


def _ceilings(run: Bench) -> None:
    """What the device can do at most."""
    from telepresence.measure.bench.ceilings import ceilings

    run.figures["ceilings"] = ceilings(run.subject.device, min(0.5, run.seconds))


def _torch(run: Bench) -> None:
    """The torch twins of frame and step on the same device, and how many times as fast the back end is."""
    from insta_runtime.learn.trainer import Trainer
    from insta_runtime.render.renderer import Renderer
    from telepresence.measure.bench.frame import drawing
    from telepresence.measure.bench.subject import fill
    from telepresence.measure.bench.timing import median

    if not run.native:
        run.notes["torch"] = f"the {run.backend.kind} back end runs the twins themselves"
        return
    subject, device = run.subject, run.subject.device
    draw = drawing(Renderer(subject.model), subject.camera)
    frame = median(timed_ms(draw, cycled(subject.states, 16), device))
    trainer = Trainer(subject.untouched_model())
    fill(trainer, subject, 16)
    step = median(timed_ms(lambda _: trainer.step(), range(20), device, warm=10))
    twins = {"frame_ms": frame, "step_ms": step}
    for name in tuple(twins):
        own = run.figures.get(name)
        if own is not None:
            twins[f"{name.removesuffix('_ms')}_ratio"] = twins[name] / own["median"]
    run.figures["torch"] = twins


def _host(run: Bench) -> None:
    """A small picture and a step on two threads of the processor, in a process of its own."""
    from telepresence.measure.bench.fresh import host_figures

    name = "auto" if run.native else "torch"
    found = run.attempt("host_frame_ms", lambda: host_figures(*run.paths, name))
    if found is None:
        return
    if found["backend"] != "host":
        run.notes["host_frame_ms"] = f"measured with the {found['backend']} back end"
    found["frame_ratio"] = found["torch_frame_ms"] / found["frame_ms"]
    found["step_ratio"] = found["torch_step_ms"] / found["step_ms"]
    run.figures.update(host_frame_ms=found["frame_ms"], host=found)


def _start(run: Bench) -> None:
    """From the start of a process to its first picture, with the cache of kernels as it is, and with an empty one."""
    from telepresence.measure.bench.fresh import first_frame_s

    size, device, kind = run.subject.camera.width, run.subject.device.type, run.backend.kind
    measure = partial(first_frame_s, *run.paths, size, device, kind)
    warm = run.attempt("first_frame_s", lambda: measure(cold=False))
    cold = run.attempt("first_frame_s", lambda: measure(cold=True)) if run.native else None
    if not run.native:
        run.notes["first_frame_s"] = "the torch back end compiles no kernels: a start is never colder"
    run.figures["first_frame_s"] = {"warm": warm and warm["seconds"], "cold": cold and cold["seconds"]}
    run.figures["start"] = {"warm": warm, "cold": cold}


def _gsplat(run: Bench) -> None:
    """As many Gaussians as other head avatars have, at the same size; for the record."""
    from telepresence.measure.bench.peers import gsplat_ms

    subject = run.subject
    if not run.on_gpu:
        run.notes["gsplat"] = "needs a GPU"
        return
    few = subject.states[:: max(1, len(subject.states) // 4)]
    measure = partial(gsplat_ms, subject.model, few, subject.camera, min(1.0, run.seconds))
    run.figures["gsplat_ms"] = run.attempt("gsplat", measure)


PARTS: dict[str, tuple[str, Callable[[Bench], None]]] = {
    "frame": ("pictures", _frame),
    "train": ("training and display beside it", _train),
    "scene": ("rays and samples", _scene),
    "stages": ("stages", _stages),
    "field": ("hash grid and network", _field),
    "nearest": ("nearest triangles", _nearest),
    "torch": ("the torch twins", _torch),
    "gsplat": ("gsplat", _gsplat),
    "ceilings": ("what the device can do at most", _ceilings),
    "host": ("the processor alone", _host),
    "start": ("cold starts", _start),
}
"""Name, what is said while it runs, and what runs."""


def _renderer(run: Bench) -> AnyRenderer:
    from insta_runtime.backends import make_renderer

    return make_renderer(run.subject.model, run.backend)


def _trainer(run: Bench) -> AnyTrainer:
    from insta_runtime.backends import make_trainer

    return make_trainer(run.subject.untouched_model(), run.backend)


def _release(run: Bench) -> None:
    """Give back what torch holds of a GPU without using it: loading an avatar and the twins take more than a call."""
    import torch

    if run.on_gpu:
        torch.cuda.empty_cache()


def _print(figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    title = " · ".join((figures["device"], figures["backend"], f"{figures['size']} px", str(figures["commit"])))
    console.print(f"[bold]{title}[/]")
    table = Table(box=None, pad_edge=False)
    table.add_column("what", no_wrap=True)
    for column in ("median", "p95", "p99"):
        table.add_column(column, justify="right", no_wrap=True)
    remarks = []
    for key, name in _ROWS.items():
        value = figures.get(key)
        if value is not None:
            table.add_row(name, *([*_cells(value)] + [""] * 3)[:3])
        if figures["notes"].get(key, LEFT_OUT) != LEFT_OUT:
            remarks.append(f"{name}: {figures['notes'][key]}")
    console.print(table)
    for remark in remarks:
        console.print(remark, style="dim", markup=False)
    for key, name in _LINES.items():
        if isinstance(figures.get(key), dict) and figures[key]:
            console.print(f"[bold]{name}[/]: " + ", ".join(f"{k} {_number(v)}" for k, v in figures[key].items()))


_ROWS = {
    "frame_ms": "frame, ms",
    "frame_while_training_ms": "frame at 60 Hz while training, ms",
    "step_ms": "training step, ms",
    "train_msamples_per_s": "training, million samples a second",
    "training_share": "part of its pace that training keeps",
    "field_inference_gpts": "field, inference, billion points a second",
    "field_training_gpts": "field, forward and backward",
    "nearest_triangle_gqps": "nearest triangle, billion queries a second",
    "first_frame_s": "first frame, s: warm, cold",
    "host_frame_ms": "128 px on two threads of the processor, ms",
    "memory_gb": "memory, GB",
}
_LINES = {
    "scene": "in a picture",
    "training": "training",
    "torch": "the torch twins",
    "host": "the processor alone",
    "stages_ms": "stages of a frame, ms",
    "step_stages_ms": "stages of a step, ms",
    "torch_stages_ms": "stages of the torch twin's frame, ms",
    "gsplat_ms": "gsplat's rasteriser, ms by Gaussians",
    "ceilings": "the device at most",
}


def _cells(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [_number(value[name]) for name in value]
    return ["" if value is None else _number(value)]


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
