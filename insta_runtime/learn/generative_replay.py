"""Generative replay: frames that a loaded avatar renders of itself replace training frames that were not stored.

A field that goes on training on a few minutes of one face forgets other poses and expressions (catastrophic
forgetting).  The avatar file holds a sample of the head states it was trained on (`field.state_reservoir`).  A diverse
selection of them, rendered by the avatar as it was loaded, is added to the replay buffer until real frames of the same
pose and expression arrive.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from insta_runtime.learn.replay_policy import ReplayPolicy
from insta_runtime.render.model import AvatarModel
from insta_runtime.render.renderer import Snapshot, take_snapshot
from insta_runtime.types import Bytes, Camera, HeadState, Observation, RenderedFrame

FRAME_ID = -1
"""Frame id of observations that the avatar rendered, which no camera captured."""
UNLIMITED_BYTES = 1 << 62
"""Memory budget of a replay policy that is used for selection only."""


class SnapshotRenderer(Protocol):
    """Protocol of renderers of any backend: the methods that generative replay calls."""

    def load(self, snapshot: Snapshot) -> None: ...

    def render(self, state: HeadState, camera: Camera) -> RenderedFrame: ...


class RecallTarget(Protocol):
    """Protocol of trainers and replay buffers of any backend: the methods that generative replay calls."""

    def lacks(self, state: HeadState) -> bool: ...

    def add_recalled(self, observation: Observation) -> None: ...


class GenerativeReplay:
    """Renders frames of a loaded avatar in stored head states and adds them to its replay buffer, one per call.

    Args:
        model: the avatar as it was loaded; its present weights are copied.
        camera: camera of the training frames; images are reduced to the training size.
        make_renderer: makes a renderer of a model; called when the first frame is rendered.
        count: maximum number of frames.
    """

    def __init__(
        self, model: AvatarModel, camera: Camera, make_renderer: Callable[[AvatarModel], SnapshotRenderer], count: int
    ) -> None:
        self._camera = camera.within(model.config.learn.size)
        self._model = copy.copy(model)
        self._model.code = copy.copy(model.code)  # training goes on changing the subject's range
        self._snapshot = take_snapshot(model)
        self._make_renderer = make_renderer
        self._renderer: SnapshotRenderer | None = None
        self._left = deque(diverse_states(model, count))

    def __len__(self) -> int:
        """Number of frames that are not rendered yet."""
        return len(self._left)

    def add_next(self, target: RecallTarget) -> bool:
        """Render the next frame that ``target`` lacks and add it there.

        Returns True if a frame was added, False if none is left.
        """
        while self._left:
            state = self._left.popleft()
            if target.lacks(state):
                target.add_recalled(self._render(state))
                return True
        return False

    def _render(self, state: HeadState) -> Observation:
        """The avatar in ``state`` as an observation whose matte is the rendered opacity."""
        if self._renderer is None:
            self._renderer = self._make_renderer(self._model)
            self._renderer.load(self._snapshot)
        rgba = self._renderer.render(state, self._camera).rgba
        alpha = rgba[..., 3:]
        colour = rgba[..., :3] / np.maximum(alpha, 1.0 / 255.0)
        return Observation(FRAME_ID, _bytes(colour), _bytes(alpha[..., 0]), self._camera, state)


def _bytes(values: NDArray[np.floating]) -> Bytes:
    return (np.clip(values, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def diverse_states(model: AvatarModel, count: int) -> list[HeadState]:
    """At most ``count`` of the avatar's stored head states, chosen for diversity of pose and expression.

    They are taken in turn (round robin) from the cells of pose and expression of `learn.replay_policy`.  Cells with the
    most states come first, so that frequent poses and expressions are replayed soonest.
    """
    reservoir = model.code.reservoir
    policy: ReplayPolicy[int] = ReplayPolicy(model.code, UNLIMITED_BYTES, 0)
    for place in range(len(reservoir)):
        policy.insert(policy.make_entry(reservoir.state(place), 1), place)
    cells: dict[object, list[int]] = {}
    for entry in policy.entries:
        cells.setdefault(entry.cell, []).append(entry.item)
    turns = sorted(cells.values(), key=len, reverse=True)
    chosen: list[int] = []
    while turns and len(chosen) < count:
        chosen += [cell.pop() for cell in turns]
        turns = [cell for cell in turns if cell]
    return [reservoir.state(place) for place in chosen[:count]]
