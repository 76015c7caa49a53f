"""What a loaded avatar knows, as pictures to go on learning from when the real ones are gone.

A field that goes on learning from a few minutes of one face forgets what it knew of others.  The avatar's file holds
states that its person was seen in (`field.repertoire`): a diverse choice of them, painted by the avatar as it was
loaded, stands in for the history that was not kept, until real pictures of the same pose and expression arrive.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from insta_runtime.learn.replay_policy import Keeping
from insta_runtime.render.model import AvatarModel
from insta_runtime.render.renderer import Snapshot, take_snapshot
from insta_runtime.types import Bytes, Camera, HeadState, Observation, RenderedFrame

FRAME_ID = -1  # of what no camera took
LARGEST_BUDGET = 1 << 62  # bytes


class Shower(Protocol):
    """Renderers, of whichever back end."""

    def load(self, snapshot: Snapshot) -> None: ...

    def render(self, state: HeadState, camera: Camera) -> RenderedFrame: ...


class History(Protocol):
    """Replays, of whichever back end."""

    def misses(self, state: HeadState) -> bool: ...

    def recall(self, observation: Observation) -> None: ...


class Recall:
    """Paints pictures of a loaded avatar for its replay, one at a time, whenever there is time for it.

    Args:
        model: as it was loaded; what it knows now is kept, whatever it learns later.
        camera: that it was learned with.
        make_renderer: makes one that draws a model; asked for when the first picture is painted.
        count: pictures at most.
    """

    def __init__(
        self, model: AvatarModel, camera: Camera, make_renderer: Callable[[AvatarModel], Shower], count: int
    ) -> None:
        self._camera = camera.within(model.config.learn.size)
        self._model = copy.copy(model)
        self._model.code = copy.copy(model.code)  # its range goes on with the person
        self._snapshot = take_snapshot(model)
        self._make_renderer = make_renderer
        self._renderer: Shower | None = None
        self._left = deque(diverse_states(model, count))

    def __len__(self) -> int:
        """How many pictures are left to paint."""
        return len(self._left)

    def give(self, replay: History) -> bool:
        """Paint the next picture that ``replay`` misses, and put it there; False if none is left."""
        while self._left:
            state = self._left.popleft()
            if replay.misses(state):
                replay.recall(self._paint(state))
                return True
        return False

    def _paint(self, state: HeadState) -> Observation:
        """The avatar in ``state``; the matte is the opacity that was drawn."""
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
    """At most ``count`` of the states that the avatar was learned from, by turns of the cells of `learn.keeping`.

    Cells that hold most come first, so that what is usual is there soonest.
    """
    repertoire = model.code.repertoire
    keeping: Keeping[int] = Keeping(model.code, LARGEST_BUDGET, 0)
    for place in range(len(repertoire)):
        keeping.admit(keeping.picture(repertoire.state(place), 1), place)
    cells: dict[object, list[int]] = {}
    for picture in keeping.pictures:
        cells.setdefault(picture.cell, []).append(picture.item)
    turns = sorted(cells.values(), key=len, reverse=True)
    chosen: list[int] = []
    while turns and len(chosen) < count:
        chosen += [cell.pop() for cell in turns]
        turns = [cell for cell in turns if cell]
    return [repertoire.state(place) for place in chosen[:count]]
