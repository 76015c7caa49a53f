"""Trainer of the native backends: training steps by kernels, on a GPU as one CUDA graph.

Reference: `learn.torch_trainer.TorchTrainer`.  The images, pixels and sample offsets that a step draws repeat bit for
bit, given seed and step number.  Sums to which many threads add (gradients, loss) do not, as their order differs from
run to run; weights of two runs therefore differ by rounding errors.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from insta_runtime.learn.adam import BETA1, BETA2
from insta_runtime.learn.pose_refinement import INTERVAL
from insta_runtime.learn.schedule import MIN_RAY_SHARE, TrainingSchedule
from insta_runtime.learn.trainer_interface import StepReport
from insta_runtime.learn.training_state import TrainingState
from insta_runtime.native.device_replay import DeviceReplay
from insta_runtime.native.field import PackedField, flatten, table_size, unflatten
from insta_runtime.native.kernels import BoundLaunch, Graph, Kernels
from insta_runtime.native.occupancy import occupancy_struct
from insta_runtime.native.pose_refinement import SlotPoseMotions
from insta_runtime.native.posing import head_struct
from insta_runtime.native.ray_batch import RayBatch
from insta_runtime.native.step_context import StepContext
from insta_runtime.native.step_io import StepInputs, StepResults
from insta_runtime.native.training_poses import CachedPoses, PerStepPoses, cached_pose_bytes
from insta_runtime.render.occupancy import UPDATE_CELLS
from insta_runtime.render.renderer import POSE_REFINEMENT, Snapshot, take_snapshot
from insta_runtime.types import HeadState, Observation

if TYPE_CHECKING:
    from insta_runtime.render.model import AvatarModel


class NativeTrainer:
    """Trains an avatar model with kernels; implements `learn.trainer.Trainer`.

    On a GPU a step is one CUDA graph on a stream of low priority, and `StepReport` has the loss and the sample count of
    a step some steps ago.
    """

    def __init__(self, model: AvatarModel, kernels: Kernels) -> None:
        config, device = model.config.learn, model.device
        self.model, self.kernels, self.config = model, kernels, config
        self.schedule = TrainingSchedule(model.config)
        self.steps, self._updates = 0, 0
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._seed = config.seed & 0x7FFFFFFF
        self._rays_per_frame = max(1, config.rays // config.frames)
        self._drawn_rays = self._rays_per_frame  # fewer if the display needs the GPU
        self.field = PackedField(kernels, model.config.radiance)
        self._parameters = flatten(model.field.state_dict(), model.config.radiance)
        self.field.load(self._parameters)
        self._averaged = self._parameters.clone()
        self._gradients, self._first, self._second = (torch.zeros_like(self._parameters) for _ in range(3))
        self._inputs = StepInputs(device)
        self.pose_motions = SlotPoseMotions(model, kernels)
        self._occupancy = occupancy_struct(kernels, model.occupancy, model.occupancy.state())
        overhead = self._slot_overhead if self._stream is None else None
        self.replay = DeviceReplay(model, kernels, config.size, config.replay_mb, config.seed, overhead, self._stream)
        self._head = head_struct(kernels, model)
        self._context: StepContext | None = None
        words, threshold = len(self._occupancy.tensor("dense")), model.config.occupancy.threshold
        self._threshold_occupancy = kernels.bind("threshold_occupancy", self._occupancy, threshold, items=words)
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(device))
        with self.on_stream():
            self._threshold_occupancy()

    def add(self, observation: Observation) -> None:
        """Queue an observation for training.  Thread-safe; never waits."""
        self.replay.add(observation)

    def take_in(self) -> None:
        """Store the queued observations in the replay buffer and prepare their slots for drawing."""
        self._prepare_slots(self.replay.take_in())

    def lacks(self, state: HeadState) -> bool:
        """Whether a frame rendered by the avatar in ``state`` would be stored."""
        return self.replay.lacks(state)

    def add_recalled(self, observation: Observation) -> None:
        """Store a frame that the avatar rendered, and prepare its slot for drawing."""
        self._prepare_slots(self.replay.add_recalled(observation))

    def set_replay_budget(self, budget: int) -> None:
        """Set the memory budget of the replay buffer, in bytes, and evict frames beyond it; no effect on a GPU."""
        if self._stream is not None or not len(self.replay):
            return
        before = len(self.replay)
        for source, target in self.replay.set_budget(budget).items():
            self.pose_motions.move(source, target)
            self._poses.invalidate(target)
        if len(self.replay) < before:
            self._poses.release(len(self.replay), before)

    def step(self) -> StepReport | None:
        """Run one Adam step on rays of a few replay frames; None if the replay buffer is empty.

        On a GPU the step is queued, and the call returns when at most `STEPS_IN_FLIGHT` steps are unfinished.
        """
        self.take_in()
        if not len(self.replay):
            return None
        with self.kernels.range("step"), self.on_stream():
            counters = [self.steps, len(self.replay), self._drawn_rays, *self.replay.pool_sizes]
            self._inputs.send(self._control_values(), counters)
            self._graph()
            self._results.on_step_queued(self._drawn_rays / self._rays_per_frame)
            self.steps += 1
            self._updates += 1
            if self.steps % INTERVAL == 0 and self.model.config.pose_refinement.rate > 0.0:
                self.pose_motions.fit(len(self.replay))
            if self.steps % self.schedule.occupancy_interval(self.steps) == 0:
                self.update_occupancy()
        loss, samples = self._results.newest()
        return StepReport(self.steps, loss, self._drawn_rays * self.config.frames, samples)

    def update_occupancy(self) -> None:
        """Update the canonical occupancy grid from the field's density, with expression codes of replay frames."""
        with self.kernels.range("occupancy"), self.on_stream():
            self._occupancy_graph()
        self._poses.on_occupancy_update()

    def set_ray_share(self, share: float) -> None:
        """Draw only ``share`` of the configured rays in later steps; at least `MIN_RAY_SHARE` of them."""
        self._drawn_rays = max(1, round(self._rays_per_frame * min(1.0, max(MIN_RAY_SHARE, share))))

    def snapshot(self) -> Snapshot:
        """A copy of the averaged weights, occupancy and pose refinement, for display or for saving.

        On a GPU it is copied on the caller's current stream, after the queued steps and before later ones.
        """
        with self._between_steps():
            weights = unflatten(self._averaged, self.model.config.radiance)
            return take_snapshot(self.model, weights, self.pose_motions.table)

    def state(self) -> TrainingState:
        """A copy of the complete training state except for the replay buffer; on a GPU copied as by `snapshot`."""
        with self._between_steps():

            def copy(vector: torch.Tensor) -> Snapshot:
                return unflatten(vector.clone(), self.model.config.radiance)

            return TrainingState(
                self.steps,
                self._updates,
                self.snapshot(),
                weights=copy(self._parameters),
                first=copy(self._first),
                second=copy(self._second),
            )

    def resume(self, state: TrainingState) -> None:
        """Continue from ``state``; the replay buffer is kept.  ValueError if it belongs to another model."""
        if not state.fits(self.state()):
            raise ValueError("the training state belongs to another avatar model")
        config = self.model.config.radiance
        with self._between_steps():
            vectors = self._parameters, self._averaged, self._first, self._second
            for vector, part in zip(vectors, (state.weights, state.averaged, state.first, state.second), strict=True):
                vector.copy_(flatten(part, config))
            self._gradients.zero_()
            self.field.load(self._parameters)
            for name, tensor in self.model.occupancy.state().items():
                tensor.copy_(state.shown[f"occupancy.{name}"])
            self._threshold_occupancy()
            self.pose_motions.table.copy_(state.shown[POSE_REFINEMENT])
        self.steps, self._updates = state.steps, state.updates
        if self._context is not None:
            self._poses.on_occupancy_update()
            self._results.discard()

    @contextlib.contextmanager
    def _between_steps(self) -> Iterator[None]:
        """Order the work of the caller's current stream after the queued steps and before later ones."""
        if self._stream is None:
            yield
            return
        current = torch.cuda.current_stream(self.model.device)
        current.wait_stream(self._stream)
        yield
        self._stream.wait_stream(current)

    def on_stream(self) -> contextlib.AbstractContextManager[object]:
        """Context in which the training's CUDA stream is the current one; without effect on a CPU.

        Take and publish snapshots within it, so that no stream of the display waits for a training step.
        """
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _slot_overhead(self, side: int) -> int:
        return cached_pose_bytes(self.model, side)

    def _prepare_slots(self, new: dict[int, HeadState]) -> None:
        """Prepare slots with new images, by tracked head state, for drawing."""
        if not new:
            return
        with self.on_stream():
            if self._context is None:
                self._prepare_steps()
            for slot, state in new.items():
                self.pose_motions.add(slot, state, fixed=slot in self.replay.recalled)
                self._poses.invalidate(slot)
                if not self._poses.in_place:
                    self._pose_slot(slot)

    def _prepare_steps(self) -> None:
        """Allocate the buffers of a step and bind its kernels, once the size of the images is known."""
        model, kernels, replay, frames = self.model, self.kernels, self.replay, self.config.frames
        shared = model, kernels, replay, self._occupancy
        self._poses: PerStepPoses | CachedPoses
        if self._stream is None:
            self._poses = CachedPoses(*shared, replay.side, self.pose_motions.has_moved)
        else:
            self._poses = PerStepPoses(*shared, frames, replay.side)
        slots, pose_index = (torch.zeros(frames, dtype=torch.int32, device=model.device) for _ in range(2))
        self._context = context = StepContext(
            model,
            kernels,
            self.field,
            replay,
            self._poses,
            self._occupancy,
            self._inputs,
            slots,
            pose_index,
            self._gradients,
            frames,
            self._rays_per_frame,
        )
        self._drawn_slots = slots
        self._batch = RayBatch(context)
        self.pose_motions.prepare(context, self._batch)
        self._sample_frames = self._bind_sample_frames(context)
        self._adam_step = self._bind_adam_step()
        self._update_density = self._bind_update_density()
        self._graph = Graph(self._launch_step, self._stream)
        self._occupancy_graph = Graph(self._launch_occupancy_update, self._stream)
        self._results = StepResults(self._inputs.control, self._batch.totals, self._stream)

    def _bind_sample_frames(self, context: StepContext) -> BoundLaunch:
        poses, frames, replay = context.poses, context.frames, context.replay
        settings = self._seed, frames, int(poses.in_place), self.config.code_jitter
        outputs = context.slots, context.pose_index, poses.states, poses.codes
        items = frames * replay.states.shape[1]
        return self.kernels.bind(
            "sample_frames", replay.frames, self._inputs.counters, *settings, *outputs, items=items
        )

    def _bind_adam_step(self) -> BoundLaunch:
        size = len(self._parameters)
        moments = self._first, self._second, self._averaged
        # On a CPU the field reads the parameters themselves.
        table = None if self._stream is None else self.field.table, table_size(self.model.config.radiance)
        return self.kernels.bind(
            "adam_step",
            self._parameters,
            self._gradients,
            *moments,
            *table,
            size,
            self._inputs.control,
            items=-(-size // 4),
        )

    def _bind_update_density(self) -> BoundLaunch:
        states, config = self.replay.states, self.model.config
        state_size = states.shape[1]
        codes = states.view(-1)[state_size - self._poses.codes.shape[1] :], state_size
        settings = self._inputs.counters, self._seed, UPDATE_CELLS, config.occupancy.decay, config.sampling.step
        items = 32 * -(-min(UPDATE_CELLS, len(self.model.occupancy.cells)) // 32)
        return self.kernels.bind(
            "update_occupancy", self._occupancy, self.field.weights, *codes, *settings, items=items
        )

    def _pose_slot(self, slot: int) -> None:
        """Rasterise the head of a slot: list the tiles of its image and carve the occupancy with its silhouette."""
        poses, index, depth = self._poses.pose_slot(slot)
        self.replay.list_tiles(slot, depth)
        if slot in self.replay.recalled:  # the avatar's own outline is no evidence
            return
        alpha = self.replay.image(slot)[..., 3].contiguous()
        height, width = alpha.shape
        view = alpha, depth[:height, :width].contiguous(), width, height
        cells = len(self.model.occupancy.cells)
        self.kernels.launch("carve_cells", self._head, poses, self._occupancy, index, *view, items=cells)

    def _launch_step(self) -> None:
        self._sample_frames()
        self.pose_motions.apply()
        for slot in self._poses.outdated(self._drawn_slots):
            self._pose_slot(slot)
        self._poses.pose(self._drawn_slots)
        for launch in self._batch.march:
            launch()
        self._poses.choose_candidates(self._batch.rays, self._batch.samples)
        for launch in self._batch.shade:
            launch()
        if self.model.config.pose_refinement.rate > 0.0:
            self.pose_motions.gradients()
            self.pose_motions.step()
        self._adam_step()
        self.field.pack(self._parameters)

    def _launch_occupancy_update(self) -> None:
        self._update_density()
        self._threshold_occupancy()

    def _control_values(self) -> list[float]:
        """``StepInputs.control`` of the next step; the sixth element is the loss, which starts at zero."""
        rates, update = self.schedule.rates(self.steps), self._updates + 1
        bias_first, bias_second = 1.0 - BETA1**update, math.sqrt(1.0 - BETA2**update)
        return [rates.table, rates.networks, bias_first, bias_second, rates.averaging_decay, 0.0, rates.poses]
