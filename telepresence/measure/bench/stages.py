"""Where the time of a picture or a step goes, stage by stage."""

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
    """Times stages that may run several times a round, each to the end of the device's work; profilers see them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._round: dict[str, float] = defaultdict(float)
        self._rounds: list[dict[str, float]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """One stage of the current round, as an NVTX range."""
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
        """What was timed since the last call is one round."""
        self._rounds.append(dict(self._round))
        self._round.clear()

    def medians(self, warm: int = 1) -> Stages:
        """The median of each stage, without the first ``warm`` rounds if there are more."""
        rounds = self._rounds[warm:] or self._rounds
        return {name: median([each.get(name, 0.0) for each in rounds]) for name in rounds[-1]}


def torch_frame_stages(model: AvatarModel, states: Sequence[HeadState], camera: Camera, count: int) -> Stages:
    """The stages of `Renderer.render` on ``count`` pictures of the take, then the picture's way to I420."""
    clock = StageTimer(model.device)
    for state in cycled(states, count):
        draw_in_stages(model, state, camera, clock)
        clock.end_round()
    return clock.medians()


def draw_in_stages(model: AvatarModel, state: HeadState, camera: Camera, clock: StageTimer) -> None:
    """One picture by the torch reference, each stage timed."""
    import torch

    from insta_runtime.geometry import camera_vertices
    from insta_runtime.render.compositing import composite
    from insta_runtime.render.raster import rasterise
    from insta_runtime.render.rays import farthest_around, pixel_rays
    from insta_runtime.render.renderer import RAYS_AT_ONCE
    from insta_runtime.types import RenderedFrame

    with torch.no_grad():
        with clock.stage("pose"):
            head = model.pose(state)
            code = model.code_of(state)
        with clock.stage("raster"):
            depth = farthest_around(
                rasterise(camera_vertices(head.vertices, state), model.rig.faces, camera).depth
            ).view(-1)
        with clock.stage("band"):
            cells = model.occupancy.posed(head)
        with clock.stage("candidates"):
            head.prepare(cells)
        parts = []
        for chunk in torch.arange(camera.width * camera.height, device=model.device).split(RAYS_AT_ONCE):
            with clock.stage("march and warp"):
                rays = pixel_rays(state, camera, chunk, depth[chunk], model.config.sampling.behind)
                samples = model.march(rays, head)
            with clock.stage("field"):
                codes = model.condition(code.expand(len(samples.ray), -1), samples.masks)
                density, colour = model.field(samples.position, samples.direction, codes)
            with clock.stage("composite"):
                step = model.config.sampling.step
                seen = composite(density, colour, samples.distance, samples.ray, len(chunk), step)
                parts.append(torch.cat([seen.colour, seen.opacity[:, None]], dim=-1))
        with clock.stage("picture"):
            rgba = torch.cat(parts).view(camera.height, camera.width, 4).clamp(0.0, 1.0).cpu().numpy()
            i420(RenderedFrame(0, 0, rgba).over(WHITE))


class TimedKernels(Kernels):
    """Kernels of the host that keep a record of each launch: ``ms`` by the name of its module, summed."""

    def __init__(self, kernels: Kernels) -> None:
        super().__init__(kernels.device, kernels.constants, kernels.sources)
        self.ms: dict[str, float] = defaultdict(float)

    def bind(self, name: str, *arguments: Any, items: int) -> BoundLaunch:
        """As `Kernels.bind`; what it returns times itself."""
        call, module = super().bind(name, *arguments, items=items), self.sources.kernels[name].module

        def timed() -> None:
            began = time.perf_counter()
            call()
            self.ms[module] += 1000.0 * (time.perf_counter() - began)

        return BoundLaunch(timed, arguments)


def host_stages(
    model: AvatarModel, kernels: Kernels, states: Sequence[HeadState], camera: Camera, rounds: int
) -> Stages:
    """Milliseconds of the CPU in each of ``rounds`` pictures, by module of ``cuda/``."""
    from insta_runtime.native.renderer import NativeRenderer

    clock = TimedKernels(kernels)
    draw = make_draw(NativeRenderer(model, clock), camera)
    draw(states[0])
    clock.ms.clear()
    for state in cycled(states, rounds):
        draw(state)
    return {name: ms / rounds for name, ms in clock.ms.items()}


def host_step_stages(subject: BenchmarkAvatar, kernels: Kernels, rounds: int) -> Stages:
    """Milliseconds of the CPU in each of ``rounds`` training steps, by module of ``cuda/``."""
    from insta_runtime.native.trainer import NativeTrainer

    clock = TimedKernels(kernels)
    trainer = NativeTrainer(subject.untouched_model(), clock)
    fill_replay(trainer, subject, 16)
    for _ in range(rounds):
        trainer.step()
    clock.ms.clear()
    for _ in range(rounds):
        trainer.step()
    return {name: ms / rounds for name, ms in clock.ms.items()}


def device_stages(work: Callable[[], object], kernels: Kernels, rounds: int) -> Stages:
    """Milliseconds of the GPU in each round of ``work``, by module of ``cuda/``; what torch itself runs is `torch`.

    From the driver's own record of kernels, so that graphs are seen as they are replayed.  Empty where the driver keeps
    none.
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
        if event.device_type.name != "CUDA":  # the host's calls, to which the same time is ascribed again
            continue
        microseconds = float(event.self_device_time_total)
        signature = kernels.sources.kernels.get(event.key)
        name = signature.module if signature else "copies" if event.key.startswith("Mem") else "torch"
        if microseconds > 0.0:
            stages[name] += microseconds / 1000.0 / rounds
    return dict(stages)
