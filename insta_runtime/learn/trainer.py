"""Learning: draw rays from replay, render them, step.  The same functions as display, now with gradients."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, replace

import torch

from insta_runtime.learn.adam import BETA1, BETA2, EPSILON
from insta_runtime.learn.losses import RayTargets, ray_loss
from insta_runtime.learn.pose_refinement import INTERVAL, follow, predict, rate, regression
from insta_runtime.learn.replay import Memory, Replay
from insta_runtime.learn.training_state import TrainingState
from insta_runtime.render.model import AvatarModel
from insta_runtime.render.rays import pixel_rays, slant
from insta_runtime.render.renderer import REGISTRATION, Snapshot, take_snapshot
from insta_runtime.render.sampling import RaySamples
from insta_runtime.types import Observation


@dataclass(frozen=True)
class StepReport:
    """What one training step did: its number, loss, rays and samples.  ``loss`` is NaN for a skipped step."""

    step: int
    loss: float
    rays: int
    samples: int


class Trainer:
    """Trains a model from observations.  All but `add` belongs to one thread.

    Attributes:
        progress: where the learning rate stands between its first value (0) and its last (1); None lets the
            number of steps decide (`LearnConfig.decay_steps`).
        pace: what the rate of the schedule is multiplied by.
    """

    def __init__(self, model: AvatarModel) -> None:
        config = model.config.learn
        self.model, self.config = model, config
        self.replay = Replay(model, config.size, config.replay_mb, config.seed)
        self.steps = 0
        self.progress: float | None = None
        self.pace = 1.0
        self._generator = torch.Generator().manual_seed(config.seed)
        grid = list(model.field.grid.parameters())
        networks = [*model.field.density_net.parameters(), *model.field.colour_net.parameters()]
        self._optimiser = torch.optim.Adam(
            [{"params": grid, "weight_decay": 0.0}, {"params": networks, "weight_decay": config.network_decay}],
            lr=config.learning_rate,
            betas=(BETA1, BETA2),
            eps=EPSILON,
            fused=True,
        )
        self._table = torch.from_numpy(model.registration.table.copy())
        self._averaged = {name: t.detach().clone() for name, t in model.field.state_dict().items()}

    def add(self, observation: Observation) -> None:
        """Offer an observation to learn from; safe from any thread, never waits."""
        self.replay.add(observation)

    def step(self) -> StepReport | None:
        """One step of Adam on rays of a few observations; None while there is nothing to learn from."""
        memories = self.replay.draw(self.config.frames)
        if not memories:
            return None
        motions = [memory.motion.now.clone().requires_grad_() for memory in memories]
        rays, samples, loss = self._loss(memories, motions)
        value = float(loss.detach())
        self._optimiser.zero_grad(set_to_none=True)
        if math.isfinite(value):
            loss.backward()
            self._set_rate()
            self._optimiser.step()
            self._average()
            self._register(memories, motions)
        self.steps += 1
        if self.steps % self._occupancy_interval() == 0:
            self.update_occupancy()
        return StepReport(self.steps, value, rays, samples)

    def _occupancy_interval(self) -> int:
        """Steps between updates of the occupancy grid: often at first, when most of space empties."""
        return min(self.model.config.occupancy.interval, 4 + self.steps // 16)

    def update_occupancy(self) -> None:
        """Refresh the canonical occupancy with expression codes from replay."""
        pick = torch.randint(len(self.replay), (64,), generator=self._generator).tolist()
        memories = self.replay.memories
        codes = torch.stack([memories[i].code for i in pick])
        self.model.occupancy.update(self.model.field, codes, self._generator)

    def on_stream(self) -> contextlib.AbstractContextManager[object]:
        """As `NativeTrainer.on_stream`; plain torch runs on the caller's current stream."""
        return contextlib.nullcontext()

    def snapshot(self) -> Snapshot:
        """A copy of the averaged weights and the occupancy, for display or for saving."""
        return take_snapshot(self.model, self._averaged, self._table)

    def state(self) -> TrainingState:
        """A copy of all that is learned, but for the pictures."""
        weights = {name: tensor.detach().clone() for name, tensor in self.model.field.state_dict().items()}
        first, second = ({name: torch.zeros_like(tensor) for name, tensor in weights.items()} for _ in range(2))
        updates = 0
        for name, parameter in self.model.field.named_parameters():
            if known := self._optimiser.state.get(parameter):
                first[name], second[name] = known["exp_avg"].clone(), known["exp_avg_sq"].clone()
                updates = int(known["step"])
        return TrainingState(
            self.steps,
            updates,
            self.snapshot(),
            weights=weights,
            first=first,
            second=second,
        )

    def resume(self, state: TrainingState) -> None:
        """Go on from ``state``, of this run or an earlier one; pictures stay.  ValueError if it is of another model."""
        if not state.fits(self.state()):
            raise ValueError("the training does not fit the model")
        self.model.field.load_state_dict(state.weights)
        for name, parameter in self.model.field.named_parameters():
            self._optimiser.state[parameter] = {
                "step": torch.tensor(float(state.updates), device=parameter.device),
                "exp_avg": state.first[name].clone(),
                "exp_avg_sq": state.second[name].clone(),
            }
        for name, average in self._averaged.items():
            average.copy_(state.averaged[name])
        self.model.occupancy.load({name: state.shown[f"occupancy.{name}"] for name in self.model.occupancy.state()})
        self._table = state.shown[REGISTRATION].clone()
        self.steps = state.steps

    def _loss(self, memories: list[Memory], motions: list[torch.Tensor]) -> tuple[int, int, torch.Tensor]:
        each = self.config.rays // len(memories)
        device = self.model.device
        packed, codes, targets = [], [], []
        for memory, motion in zip(memories, motions, strict=True):
            posed = memory.posed()
            pixels = self._draw_pixels(memory, each)
            depth = memory.depth[pixels]
            rays = pixel_rays(
                memory.placed, memory.camera, pixels, memory.far[pixels], self.model.config.sampling.behind
            )
            samples = self.model.march(rays, posed, self._generator)
            points = rays.origins[samples.ray] + samples.distance[:, None] * rays.directions[samples.ray]
            shift = follow(motion.to(device), points, samples.masks) / self.model.warp.box.side
            samples = replace(samples, position=samples.position + shift)
            packed.append(samples)
            noise = torch.randn(len(memory.code), generator=self._generator).to(device) * self.config.code_jitter
            codes.append((memory.code + noise).expand(len(samples.ray), -1))
            prior = torch.where(memory.skin[pixels], depth * slant(memory.camera, pixels), 0.0)
            mouth = memory.mouth[pixels] & (self.steps >= self.config.mouth_from_step)
            targets.append((memory.rgba[pixels].float() / 255.0, prior, mouth))
        merged = RaySamples.join(packed, each)
        count = each * len(memories)
        seen = self.model.shade(merged, torch.cat(codes), count)
        self.model.occupancy.light(merged.position, seen.passed)
        rgba, depth, mouth = (torch.cat(part) for part in zip(*targets, strict=True))
        background = torch.rand((count, 3), generator=self._generator).to(device)
        loss = ray_loss(seen, RayTargets(rgba, depth, mouth, background), self.config)
        return count, len(merged.ray), loss

    @torch.no_grad()
    def _register(self, memories: list[Memory], motions: list[torch.Tensor]) -> None:
        """Move the heads of the drawn pictures; from time to time, see what their states predict."""
        config = self.model.config.registration
        step = rate(config, self.steps, self.config.final_rate ** self._progress())
        if step == 0.0:
            return
        for memory, motion in zip(memories, motions, strict=True):
            if motion.grad is not None and bool(motion.grad.isfinite().all()):
                expected = predict(self._table, memory.motion.features[None])[0]
                memory.motion.step(motion.grad, step, expected, config.fades)
        if (self.steps + 1) % INTERVAL == 0:
            known = [memory.motion for memory in self.replay.memories]
            features, now = torch.stack([m.features for m in known]), torch.stack([m.now for m in known])
            ages = torch.tensor([m.age for m in known])
            self._table = regression(features, now, ages, torch.arange(len(known)), config.ridge)

    def _progress(self) -> float:
        return self.progress if self.progress is not None else min(1.0, self.steps / self.config.decay_steps)

    def _draw_pixels(self, memory: Memory, count: int) -> torch.Tensor:
        anywhere = torch.arange(len(memory.rgba), device=self.model.device)
        focus, margin = self.config.focus, self.config.margin
        parts, left = [], count
        for pixels, share in ((memory.pixels, focus), (memory.margin, margin), (anywhere, 1.0)):
            wanted = min(left, round(count * share)) if len(pixels) else 0
            drawn = torch.randint(max(1, len(pixels)), (wanted,), generator=self._generator)
            parts.append(pixels[drawn.to(self.model.device)])
            left -= wanted
        return torch.cat(parts)

    def _set_rate(self) -> None:
        warm = min(1.0, (self.steps + 1) / 20)
        rate = self.pace * self.config.learning_rate * self.config.final_rate ** self._progress() * warm
        grid, networks = self._optimiser.param_groups
        grid["lr"], networks["lr"] = rate, rate * self.config.network_rate

    @torch.no_grad()
    def _average(self) -> None:
        # A young average must forget the random start faster than its decay says.
        decay = min(self.config.ema, (1.0 + self.steps) / (10.0 + self.steps))
        current = self.model.field.state_dict()
        for name, average in self._averaged.items():
            average.lerp_(current[name], 1.0 - decay)
