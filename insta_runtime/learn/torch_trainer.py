"""Training in plain torch: draw rays from replay frames, render them, and optimise the field with Adam.

Reference of `native.trainer.NativeTrainer`.  Rendering uses the same functions as display, with gradients.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace

import torch

from insta_runtime.learn.adam import BETA1, BETA2, EPSILON
from insta_runtime.learn.losses import RayTargets, ray_loss
from insta_runtime.learn.pose_refinement import INTERVAL, fit_table, motion_shift, predict_motions
from insta_runtime.learn.schedule import MIN_RAY_SHARE, StepRates, TrainingSchedule
from insta_runtime.learn.torch_replay import Replay, ReplayFrame
from insta_runtime.learn.trainer_interface import StepReport
from insta_runtime.learn.training_state import TrainingState
from insta_runtime.render.model import AvatarModel
from insta_runtime.render.rays import pixel_rays, slant
from insta_runtime.render.renderer import POSE_REFINEMENT, Snapshot, take_snapshot
from insta_runtime.render.sampling import RaySamples
from insta_runtime.types import HeadState, Observation


class TorchTrainer:
    """Trainer of the torch backend; implements `learn.trainer.Trainer`."""

    def __init__(self, model: AvatarModel) -> None:
        config = model.config.learn
        self.model, self.config = model, config
        self.replay = Replay(model, config.size, config.replay_mb, config.seed)
        self.schedule = TrainingSchedule(model.config)
        self.steps = 0
        self._ray_share = 1.0
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
        self._table = torch.from_numpy(model.pose_refinement.table.copy())
        self._averaged = {name: t.detach().clone() for name, t in model.field.state_dict().items()}

    def add(self, observation: Observation) -> None:
        """Queue an observation for training.  Thread-safe; never waits."""
        self.replay.add(observation)

    def take_in(self) -> None:
        """Store the queued observations in the replay buffer."""
        self.replay.take_in()

    def lacks(self, state: HeadState) -> bool:
        """Whether a frame that the avatar renders in ``state`` would be stored; False before the first real frame."""
        return self.replay.lacks(state)

    def add_recalled(self, observation: Observation) -> None:
        """Store a frame that the avatar rendered itself (generative replay)."""
        self.replay.add_recalled(observation)

    def set_replay_budget(self, budget: int) -> None:
        """Set the memory budget of the replay buffer, in bytes, and evict frames beyond it; no effect on a GPU."""
        if self.model.device.type == "cpu":
            self.replay.set_budget(budget)

    def set_ray_share(self, share: float) -> None:
        """Draw only a ``share`` in [0, 1] of the configured rays in later steps, at least `MIN_RAY_SHARE`."""
        self._ray_share = min(1.0, max(MIN_RAY_SHARE, share))

    def step(self) -> StepReport | None:
        """Run one Adam step on rays of a few stored frames; returns None if the replay buffer is empty.

        A step whose loss is not finite is counted but changes no weights.
        """
        frames = self.replay.draw(self.config.frames)
        if not frames:
            return None
        motions = [frame.motion.now.clone().requires_grad_() for frame in frames]
        rays, samples, loss = self._loss(frames, motions)
        value = float(loss.detach())
        self._optimiser.zero_grad(set_to_none=True)
        if math.isfinite(value):
            loss.backward()
            rates = self._set_rates()
            self._optimiser.step()
            self._average(rates.averaging_decay)
            self._refine_poses(frames, motions, rates.poses)
        self.steps += 1
        if self.steps % self.schedule.occupancy_interval(self.steps) == 0:
            self.update_occupancy()
        return StepReport(self.steps, value, rays, samples)

    def update_occupancy(self) -> None:
        """Update the canonical occupancy grid from the field's density, with expression codes of stored frames."""
        pick = torch.randint(len(self.replay), (64,), generator=self._generator).tolist()
        frames = self.replay.frames
        codes = torch.stack([frames[i].code for i in pick])
        self.model.occupancy.update(self.model.field, codes, self._generator)

    def on_stream(self) -> contextlib.AbstractContextManager[object]:
        """Context without effect: plain torch runs on the caller's current stream."""
        return contextlib.nullcontext()

    def snapshot(self) -> Snapshot:
        """A copy of the averaged weights, occupancy and pose refinement, for display or for saving."""
        return take_snapshot(self.model, self._averaged, self._table)

    def state(self) -> TrainingState:
        """A copy of the complete training state except for the replay buffer."""
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
        """Continue training from the checkpoint ``state``; the replay buffer is kept.

        Raises ValueError if the checkpoint belongs to another model.
        """
        if not state.fits(self.state()):
            raise ValueError("the training state belongs to another avatar model")
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
        self._table = state.shown[POSE_REFINEMENT].clone()
        self.steps = state.steps

    def _loss(self, frames: list[ReplayFrame], motions: list[torch.Tensor]) -> tuple[int, int, torch.Tensor]:
        each = max(1, round(self._ray_share * (self.config.rays // len(frames))))
        device = self.model.device
        packed, codes, targets = [], [], []
        for frame, motion in zip(frames, motions, strict=True):
            posed = frame.posed()
            pixels = self._draw_pixels(frame, each)
            depth = frame.depth[pixels]
            rays = pixel_rays(
                frame.refined_state, frame.camera, pixels, frame.far[pixels], self.model.config.sampling.behind
            )
            samples = self.model.march(rays, posed, self._generator)
            points = rays.origins[samples.ray] + samples.distance[:, None] * rays.directions[samples.ray]
            shift = motion_shift(motion.to(device), points, samples.masks) / self.model.warp.box.side
            samples = replace(samples, position=samples.position + shift)
            packed.append(samples)
            noise = torch.randn(len(frame.code), generator=self._generator).to(device) * self.config.code_jitter
            codes.append((frame.code + noise).expand(len(samples.ray), -1))
            prior = torch.where(frame.skin[pixels], depth * slant(frame.camera, pixels), 0.0)
            mouth = frame.mouth[pixels] & (self.steps >= self.config.mouth_from_step)
            targets.append((frame.rgba[pixels].float() / 255.0, prior, mouth))
        merged = RaySamples.join(packed, each)
        count = each * len(frames)
        seen = self.model.shade(merged, torch.cat(codes), count)
        self.model.occupancy.mark_visible(merged.position, seen.optical_depth)
        rgba, depth, mouth = (torch.cat(part) for part in zip(*targets, strict=True))
        background = torch.rand((count, 3), generator=self._generator).to(device)
        loss = ray_loss(seen, RayTargets(rgba, depth, mouth, background), self.config)
        return count, len(merged.ray), loss

    @torch.no_grad()
    def _refine_poses(self, frames: list[ReplayFrame], motions: list[torch.Tensor], rate: float) -> None:
        """Step the motions of the drawn frames with learning rate ``rate``; fit the table every `INTERVAL` steps."""
        config = self.model.config.pose_refinement
        if rate == 0.0:
            return
        for frame, motion in zip(frames, motions, strict=True):
            if motion.grad is not None and bool(motion.grad.isfinite().all()):
                expected = predict_motions(self._table, frame.motion.features[None])[0]
                frame.motion.step(motion.grad, rate, expected, config.fades)
        if (self.steps + 1) % INTERVAL == 0:
            known = [frame.motion for frame in self.replay.frames]
            features, now = torch.stack([m.features for m in known]), torch.stack([m.now for m in known])
            ages = torch.tensor([m.age for m in known])
            self._table = fit_table(features, now, ages, torch.arange(len(known)), config.ridge)

    def _draw_pixels(self, frame: ReplayFrame, count: int) -> torch.Tensor:
        anywhere = torch.arange(len(frame.rgba), device=self.model.device)
        focus, margin = self.config.focus, self.config.margin
        parts, left = [], count
        for pixels, share in ((frame.pixels, focus), (frame.margin, margin), (anywhere, 1.0)):
            number = min(left, round(count * share)) if len(pixels) else 0
            drawn = torch.randint(max(1, len(pixels)), (number,), generator=self._generator)
            parts.append(pixels[drawn.to(self.model.device)])
            left -= number
        return torch.cat(parts)

    def _set_rates(self) -> StepRates:
        """Set the optimiser's learning rates for the next step."""
        rates = self.schedule.rates(self.steps)
        grid, networks = self._optimiser.param_groups
        grid["lr"], networks["lr"] = rates.table, rates.networks
        return rates

    @torch.no_grad()
    def _average(self, decay: float) -> None:
        current = self.model.field.state_dict()
        for name, average in self._averaged.items():
            average.lerp_(current[name], 1.0 - decay)
