"""Time of each stage of a frame or a training step."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from insta_runtime.native.kernels import BoundLaunch, Kernels
from telepresence.measure.bench.benchmark_avatar import BenchmarkAvatar, fill_replay
from telepresence.measure.bench.frame import WHITE, i420, make_draw
from telepresence.measure.bench.timing import cycled, median, synchronise

if TYPE_CHECKING:
    import torch

    from insta_runtime.render.model import AvatarModel
    from insta_runtime.types import Camera, HeadState

Stages = dict[str, float]
"""Milliseconds by stage, in the order in which they run."""


class StageTimer:
    """Times named stages, which may run several times a round, until the device has finished each.

    On a GPU each stage is also an NVTX range for profilers.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._round: dict[str, float] = defaultdict(float)
        self._rounds: list[dict[str, float]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Context manager that times one stage of the current round."""
        import torch

        on_gpu = self._device.type == "cuda"
        synchronise(self._device)
        if on_gpu:
            torch.cuda.nvtx.range_push(name)
        began = time.perf_counter()
        yield
        synchronise(self._device)
        self._round[name] += 1000.0 * (time.perf_counter() - began)
        if on_gpu:
            torch.cuda.nvtx.range_pop()

    def end_round(self) -> None:
        """End the current round and start the next one."""
        self._rounds.append(dict(self._round))
        self._round.clear()

    def medians(self, warm: int = 1) -> Stages:
        """Median milliseconds of each stage, without the first ``warm`` rounds if there are more."""
        rounds = self._rounds[warm:] or self._rounds
        return {name: median([each.get(name, 0.0) for each in rounds]) for name in rounds[-1]}


def torch_frame_stages(model: AvatarModel, states: Sequence[HeadState], camera: Camera, count: int) -> Stages:
    """Stages of the torch reference (`Renderer.render`) and of the conversion to I420, medians of ``count`` frames."""
    timer = StageTimer(model.device)
    for state in cycled(states, count):
        draw_in_stages(model, state, camera, timer)
        timer.end_round()
    return timer.medians()


def draw_in_stages(model: AvatarModel, state: HeadState, camera: Camera, timer: StageTimer) -> None:
    """Render one frame with the torch reference and time each stage."""
    import torch

    from insta_runtime.geometry import camera_vertices
    from insta_runtime.render.compositing import composite
    from insta_runtime.render.raster import rasterise
    from insta_runtime.render.rays import farthest_around, pixel_rays
    from insta_runtime.render.renderer import RAYS_AT_ONCE
    from insta_runtime.types import RenderedFrame

    with torch.no_grad():
        with timer.stage("pose"):
            head = model.pose(state)
            code = model.code_of(state)
        with timer.stage("raster"):
            depth = farthest_around(
                rasterise(camera_vertices(head.vertices, state), model.rig.faces, camera).depth
            ).view(-1)
        with timer.stage("band"):
            cells = model.occupancy.posed(head)
        with timer.stage("candidates"):
            head.prepare(cells)
        parts = []
        for chunk in torch.arange(camera.width * camera.height, device=model.device).split(RAYS_AT_ONCE):
            with timer.stage("march and warp"):
                rays = pixel_rays(state, camera, chunk, depth[chunk], model.config.sampling.behind)
                samples = model.march(rays, head)
            with timer.stage("field"):
                codes = model.condition(code.expand(len(samples.ray), -1), samples.masks)
                density, colour = model.field(samples.position, samples.direction, codes)
            with timer.stage("composite"):
                step = model.config.sampling.step
                seen = composite(density, colour, samples.distance, samples.ray, len(chunk), step)
                parts.append(torch.cat([seen.colour, seen.opacity[:, None]], dim=-1))
        with timer.stage("picture"):
            rgba = torch.cat(parts).view(camera.height, camera.width, 4).clamp(0.0, 1.0).cpu().numpy()
            i420(RenderedFrame(0, 0, rgba).over(WHITE))


class TimedKernels(Kernels):
    """Kernels of the host backend that time each launch: ``ms`` is the total by name of the kernel's module."""

    def __init__(self, kernels: Kernels) -> None:
        super().__init__(kernels.device, kernels.constants, kernels.sources)
        self.ms: dict[str, float] = defaultdict(float)

    def bind(self, name: str, *arguments: Any, items: int) -> BoundLaunch:
        """As `Kernels.bind`, with a call that times itself."""
        call, module = super().bind(name, *arguments, items=items), self.sources.kernels[name].module

        def timed() -> None:
            began = time.perf_counter()
            call()
            self.ms[module] += 1000.0 * (time.perf_counter() - began)

        return BoundLaunch(timed, arguments)


def host_stages(
    model: AvatarModel, kernels: Kernels, states: Sequence[HeadState], camera: Camera, rounds: int
) -> Stages:
    """Milliseconds of one frame of the host backend by module of ``cuda/``, mean over ``rounds`` frames."""
    from insta_runtime.native.renderer import NativeRenderer

    timed = TimedKernels(kernels)
    draw = make_draw(NativeRenderer(model, timed), camera)
    draw(states[0])
    timed.ms.clear()
    for state in cycled(states, rounds):
        draw(state)
    return {name: ms / rounds for name, ms in timed.ms.items()}


def host_step_stages(subject: BenchmarkAvatar, kernels: Kernels, rounds: int) -> Stages:
    """Milliseconds of one training step of the host backend by module of ``cuda/``, mean over ``rounds`` steps."""
    from insta_runtime.native.trainer import NativeTrainer

    timed = TimedKernels(kernels)
    trainer = NativeTrainer(subject.untouched_model(), timed)
    fill_replay(trainer, subject, 16)
    for _ in range(rounds):
        trainer.step()
    timed.ms.clear()
    for _ in range(rounds):
        trainer.step()
    return {name: ms / rounds for name, ms in timed.ms.items()}


def device_stages(work: Callable[[], object], kernels: Kernels, rounds: int) -> Stages:
    """Milliseconds of the GPU in one call of ``work`` by module of ``cuda/``, mean over ``rounds`` calls.

    Kernels of torch count as ``torch``, memory copies as ``copies``.  Read from the driver's record of kernels, which
    includes those of replayed CUDA graphs; empty where the driver keeps no record.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    work()
    torch.cuda.synchronize(kernels.device)
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as recorded:
        for _ in range(rounds):
            work()
        torch.cuda.synchronize(kernels.device)
    stages: dict[str, float] = defaultdict(float)
    for event in recorded.key_averages():
        if event.device_type.name != "CUDA":  # calls on the host, which are listed with the same time again
            continue
        microseconds = float(event.self_device_time_total)
        signature = kernels.sources.kernels.get(event.key)
        name = signature.module if signature else "copies" if event.key.startswith("Mem") else "torch"
        if microseconds > 0.0:
            stages[name] += microseconds / 1000.0 / rounds
    return dict(stages)
