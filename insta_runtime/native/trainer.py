"""Learning by kernels: a step that never returns to Python on a GPU, and the same step on a CPU.

Twin: `learn.trainer.Trainer`.  What repeats bit for bit: which pictures, pixels and offsets a step draws, given seed
and step.  What does not: sums that many threads add to (gradients, the loss), whose order differs from run to run; the
weights of two runs drift apart as rounding does.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from insta_runtime.learn.adam import BETA1, BETA2
from insta_runtime.learn.pose_refinement import INTERVAL, rate
from insta_runtime.learn.trainer import StepReport
from insta_runtime.learn.training_state import TrainingState
from insta_runtime.native.field import PackedField, flatten, table_size, unflatten
from insta_runtime.native.kernels import Graph, Kernels
from insta_runtime.native.pose_refinement import HeadRegistration
from insta_runtime.native.posed_frames import GraphFrames, HostFrames, host_bytes
from insta_runtime.native.posing import head_struct
from insta_runtime.native.ray_batch import RayBatch
from insta_runtime.native.replay import DeviceReplay
from insta_runtime.render.occupancy import UPDATE_CELLS, space_struct
from insta_runtime.render.renderer import REGISTRATION, Snapshot, take_snapshot
from insta_runtime.types import HeadState, Observation

if TYPE_CHECKING:
    from insta_runtime.render.model import AvatarModel

LEAST_PART = 1 / 8  # of the rays that learning keeps, however busy the display is
AHEAD = 2  # steps that may be under way on a GPU when Python goes on; more would only delay new weights
FIGURES_EVERY = 8  # steps between looks at the loss on a GPU
POLL_S = 1e-4


class NativeTrainer:
    """Trains a model from observations, by kernels.  All but `add` belongs to one thread.

    On a GPU a step is one graph on a stream of low priority, and `StepReport` tells the loss and the samples of a step
    some steps ago.  `set_budget` draws fewer rays where the display needs the GPU.

    Attributes:
        progress: where the learning rate stands between its first value (0) and its last (1); None lets the
            number of steps decide (`LearnConfig.decay_steps`).
        steps: done so far; may be set, to go on with an earlier training.
        pace: what the rate of the schedule is multiplied by.
    """

    def __init__(self, model: AvatarModel, kernels: Kernels) -> None:
        config, device = model.config.learn, model.device
        self.model, self.kernels, self.config = model, kernels, config
        self.steps, self._updates = 0, 0
        self.progress: float | None = None
        self.pace = 1.0
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._seed = config.seed & 0x7FFFFFFF
        self._frames = config.frames
        self._each = max(1, config.rays // config.frames)
        self._wanted = self._each
        self.field = PackedField(kernels, model.config.radiance)
        self._parameters = flatten(model.field.state_dict(), model.config.radiance)
        self.field.load(self._parameters)
        self._averaged = self._parameters.clone()
        self._gradients, self._first, self._second = (torch.zeros_like(self._parameters) for _ in range(3))
        self._inputs = _Inputs(device)
        self.registration = HeadRegistration(model, kernels)
        self._space = space_struct(kernels, model.occupancy, model.occupancy.state())
        self.replay = DeviceReplay(model, kernels, config.size, config.replay_mb, config.seed, self, self._stream)
        self._publish = kernels.bind(
            "publish_occupancy",
            self._space,
            model.config.occupancy.threshold,
            items=len(self._space.tensor("dense")),
        )
        self._head = head_struct(kernels, model)
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(device))
        with self.on_stream():
            self._publish()

    def add(self, observation: Observation) -> None:
        """Offer an observation to learn from; safe from any thread, never waits."""
        self.replay.add(observation)

    def step(self) -> StepReport | None:
        """One step of Adam on rays of a few observations; None while there is nothing to learn from.

        On a GPU it is queued, and returns when at most `AHEAD` steps are still to be done.
        """
        self.replay.take_in()
        if not len(self.replay):
            return None
        with self.kernels.range("step"), self.on_stream():
            self._inputs.send(self._controls(), [self.steps, len(self.replay), self._wanted, *self.replay.drawn_from])
            self._graph()
            self._figures.note(self._wanted / self._each)
            self.steps += 1
            self._updates += 1
            if self.steps % INTERVAL == 0 and self.model.config.registration.rate > 0.0:
                self.registration.regress(len(self.replay))
            if self.steps % self._occupancy_interval() == 0:
                self.update_occupancy()
        loss, samples = self._figures.newest()
        return StepReport(self.steps, loss, self._wanted * self._frames, samples)

    def update_occupancy(self) -> None:
        """Refresh the canonical occupancy with expression codes from replay."""
        with self.kernels.range("occupancy"), self.on_stream():
            self._occupancy_graph()
        self._posed.expire()

    def set_budget(self, part: float) -> None:
        """Draw ``part`` of the configured rays from now on, an eighth at least."""
        self._wanted = max(1, round(self._each * min(1.0, max(LEAST_PART, part))))

    def snapshot(self) -> Snapshot:
        """A copy of the averaged weights and the occupancy, for display or for saving.

        On a GPU the caller's current stream copies them, after the steps that were queued and before later ones.
        """
        with self._between_steps():
            weights = unflatten(self._averaged, self.model.config.radiance)
            return take_snapshot(self.model, weights, self.registration.table)

    def state(self) -> TrainingState:
        """A copy of all that is learned, but for the pictures.  On a GPU it is made as `snapshot` makes its own."""
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
        """Go on from ``state``, of this run or an earlier one; pictures stay.  ValueError if it is of another model."""
        if not state.fits(self.state()):
            raise ValueError("the training does not fit the model")
        config = self.model.config.radiance
        with self._between_steps():
            vectors = self._parameters, self._averaged, self._first, self._second
            for vector, part in zip(vectors, (state.weights, state.averaged, state.first, state.second), strict=True):
                vector.copy_(flatten(part, config))
            self._gradients.zero_()
            self.field.load(self._parameters)
            for name, tensor in self.model.occupancy.state().items():
                tensor.copy_(state.shown[f"occupancy.{name}"])
            self._publish()
            self.registration.table.copy_(state.shown[REGISTRATION])
        self.steps, self._updates = state.steps, state.updates
        if self.replay.side:  # else nothing was prepared yet
            self._posed.expire()
            self._figures.forget()

    @contextlib.contextmanager
    def _between_steps(self) -> Iterator[None]:
        """What the caller's current stream does within comes after steps that were queued, and before later ones."""
        if self._stream is None:
            yield
            return
        current = torch.cuda.current_stream(self.model.device)
        current.wait_stream(self._stream)
        yield
        self._stream.wait_stream(current)

    def on_stream(self) -> contextlib.AbstractContextManager[object]:
        """Makes the stream of training the caller's current one; on a CPU nothing.

        Take and publish snapshots within, so that no stream that the display uses waits for a step.
        """
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    # What the replay tells its viewer.

    def slot_bytes(self, side: int) -> int:
        return host_bytes(self.model, side) if self._stream is None else 0

    def prepare(self, side: int, slots: int) -> None:  # noqa: ARG002
        model, kernels, replay = self.model, self.kernels, self.replay
        self._posed: GraphFrames | HostFrames
        if self._stream is None:
            self._posed = HostFrames(model, kernels, replay, self._space, side)
        else:
            self._posed = GraphFrames(model, kernels, replay, self._space, self._frames, side)
        drawn, pose = (torch.zeros(self._frames, dtype=torch.int32, device=model.device) for _ in range(2))
        state_size, count = replay.states.shape[1], self._frames * self._each
        self._drawn = drawn
        self._begin = kernels.bind(
            "begin_step",
            replay.memories,
            self._inputs.counters,
            self._seed,
            self._frames,
            int(self._posed.in_place),
            self.config.code_jitter,
            drawn,
            pose,
            self._posed.states,
            self._posed.codes,
            items=self._frames * state_size,
        )
        self._batch = RayBatch(
            model,
            kernels,
            self.field,
            replay,
            self._posed,
            self._space,
            count=count,
            frames=self._frames,
            slots=drawn,
            pose=pose,
            counters=self._inputs.counters,
            gradients=self._gradients,
            loss=self._inputs.loss,
        )
        self.registration.prepare(
            replay,
            self.field,
            self._batch,
            frames=self._frames,
            slots=drawn,
            posed=None if self._posed.in_place else self._posed.states,
            control=self._inputs.control,
        )
        if isinstance(self._posed, HostFrames):
            self._posed.strayed = self.registration.strayed
        size = len(self._parameters)
        self._adam = kernels.bind(
            "adam_step",
            self._parameters,
            self._gradients,
            self._first,
            self._second,
            self._averaged,
            None if self._stream is None else self.field.table,
            table_size(model.config.radiance),
            size,
            self._inputs.control,
            items=-(-size // 4),
        )
        code = state_size - self._posed.codes.shape[1]
        occupancy = model.config.occupancy
        self._look_at_cells = kernels.bind(
            "update_occupancy",
            self._space,
            self.field.weights,
            replay.states.view(-1)[code:],
            state_size,
            self._inputs.counters,
            self._seed,
            UPDATE_CELLS,
            occupancy.decay,
            model.config.sampling.step,
            items=32 * -(-min(UPDATE_CELLS, len(model.occupancy.cells)) // 32),
        )
        self._graph = Graph(self._launch_step, self._stream)
        self._occupancy_graph = Graph(self._launch_update, self._stream)
        self._figures = _Figures(self._inputs.control, self._batch.totals, self._stream)

    def look(self, slot: int, state: HeadState) -> None:
        self.registration.take(slot, state, held=slot in self.replay.recalled)
        if isinstance(self._posed, HostFrames):
            self._posed.forget(slot)
        else:
            self._show(slot)

    def _show(self, slot: int) -> None:
        """Find out where a picture's head is: its tiles, and which cells its silhouette rules out."""
        poses, number, depth = self._posed.look(slot)
        self.replay.list_tiles(slot, depth)
        if slot in self.replay.recalled:  # what the avatar says of its own outline is no evidence
            return
        alpha = self.replay.picture(slot)[..., 3].contiguous()
        height, width = alpha.shape
        cells = len(self.model.occupancy.cells)
        picture = alpha, depth[:height, :width].contiguous(), width, height
        self.kernels.launch("carve_cells", self._head, poses, self._space, number, *picture, items=cells)

    def _launch_step(self) -> None:
        self._begin()
        self.registration.place()
        for slot in self._posed.unseen(self._drawn):
            self._show(slot)
        self._posed.pose(self._drawn)
        for call in self._batch.march:
            call()
        self._posed.choose(self._batch.rays, self._batch.samples)
        for call in self._batch.shade:
            call()
        if self.model.config.registration.rate > 0.0:
            self.registration.pull()
            self.registration.step()
        self._adam()
        self.field.pack(self._parameters)

    def _launch_update(self) -> None:
        self._look_at_cells()
        self._publish()

    def _occupancy_interval(self) -> int:
        """Steps between updates of the occupancy grid: often at first, when most of space empties."""
        return min(self.model.config.occupancy.interval, 4 + self.steps // 16)

    def _controls(self) -> list[float]:
        """What Adam is to do in this step: the rates, the corrections of its young moments, the average's decay."""
        config, steps, update = self.config, self.steps, self._updates + 1
        progress = self.progress if self.progress is not None else min(1.0, steps / config.decay_steps)
        learning = self.pace * config.learning_rate * config.final_rate**progress * min(1.0, (steps + 1) / 20)
        # A young average must forget the random start faster than its decay says.
        decay = min(config.ema, (1.0 + steps) / (10.0 + steps))
        motion = rate(self.model.config.registration, steps, config.final_rate**progress)
        # The sixth takes the loss.
        return [
            learning,
            learning * config.network_rate,
            1.0 - BETA1**update,
            math.sqrt(1.0 - BETA2**update),
            decay,
            0.0,
            motion,
        ]


class _Inputs:
    """What a step is told: eight floats (`adam.cu`), of which one takes its loss, and eight ints (`replay.cu`)."""

    def __init__(self, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._words = torch.zeros(16, dtype=torch.int32, device=device)
        self.control, self.counters = self._words[:8].view(torch.float32), self._words[8:]
        self.loss = self.control[5:6]
        # Rows that copies may still be reading from are not written to: there are more than steps in flight.
        self._rows = torch.zeros((2 * AHEAD, 16), dtype=torch.int32, pin_memory=on_gpu)
        self._sent = 0

    def send(self, control: list[float], counters: list[int]) -> None:
        """In the order of the current stream; the loss becomes zero."""
        row = self._rows[self._sent % len(self._rows)]
        numbers = row.numpy()
        numbers[: len(control)].view("float32")[:] = control
        numbers[8 : 8 + len(counters)] = counters
        self._words.copy_(row, non_blocking=True)
        self._sent += 1


class _Figures:
    """Loss and samples of the steps that are done, and how many are not: what a GPU tells without being waited for."""

    def __init__(self, control: torch.Tensor, totals: torch.Tensor, stream: torch.cuda.Stream | None) -> None:
        self._control, self._totals, self._stream = control, totals, stream
        self._rows = torch.zeros((AHEAD + 1, 12), dtype=torch.int32, pin_memory=stream is not None)
        self._running: deque[torch.cuda.Event] = deque()
        self._due: deque[tuple[torch.cuda.Event, int, float]] = deque()
        self._noted = 0
        self._newest = (math.nan, 0)

    def note(self, part: float) -> None:
        """A step on ``part`` of the rays was queued: wait until not more than `AHEAD` are."""
        if self._stream is None:
            self._newest = float(self._control[5]) / part, int(self._totals[1])
            return
        first = self._noted == 0
        if self._noted % FIGURES_EVERY == 0:
            number = self._noted // FIGURES_EVERY % len(self._rows)
            row = self._rows[number]
            row[:8].copy_(self._control.view(torch.int32), non_blocking=True)
            row[8:].copy_(self._totals, non_blocking=True)
            self._due.append((self._stream.record_event(), number, part))
        self._noted += 1
        self._running.append(self._stream.record_event())
        while len(self._running) > (0 if first else AHEAD):
            if self._running[0].query():
                self._running.popleft()
            else:
                time.sleep(POLL_S)

    def forget(self) -> None:
        """Tell nothing of the steps so far."""
        self._due.clear()
        self._newest = (math.nan, 0)

    def newest(self) -> tuple[float, int]:
        """The loss and the number of samples of the newest step of which they are known."""
        while self._due and self._due[0][0].query():
            _, number, part = self._due.popleft()
            row = self._rows[number]
            self._newest = float(row[:8].view(torch.float32)[5]) / part, int(row[9])
        return self._newest
