"""Replay policy: which entries a replay buffer keeps, and which of them a training step draws.

It holds no images and is shared by `learn.replay` and `native.replay`.  The newest `RECENT` entries are always kept.
The rest of the budget is history, balanced over cells of head pose and expression: when space is needed, an entry of
the fullest cell is evicted, so that rare poses and expressions stay however long a call lasts.

When the appearance changes (light, glasses), a new epoch starts (`ReplayPolicy.start_epoch`): entries of earlier epochs
are drawn less and less as new ones arrive, and are evicted first, except in cells without new entries.  Recalled
entries (frames that the avatar rendered itself, `learn.generative_replay`) are evicted as real ones of their cell
arrive.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

import numpy as np

from insta_runtime.field.expression_code import REGION_WIDTH, ExpressionCode
from insta_runtime.field.view_range import view_angles
from insta_runtime.types import Float32, HeadState, Observation

T = TypeVar("T")
Cell = tuple[int, int, int]
"""Cell of pose and expression: azimuth and elevation in multiples of `CELL_ANGLE`, index of the expression cluster."""

RECENT: Final = 16
"""Number of newest entries that are never evicted; every training step draws one of them."""
EPOCH_FADE: Final = 30
"""Number of new entries over which earlier epochs fade out: 6 s of a call that adds five entries a second."""
ENOUGH: Final = 4
"""Number of new entries of a cell from which they replace the entries of earlier epochs and recalled ones there."""
LONE: Final = 0.1
"""Minimum probability to be in the drawing pool for entries of earlier epochs in cells without new entries."""
CELL_ANGLE: Final = math.radians(12.0)
"""Width of a cell in azimuth and in elevation of the camera around the head, radians."""
MAX_EXPRESSIONS: Final = 12
"""Maximum number of expressions that cells distinguish."""
MIN_CODE_DISTANCE: Final = 0.4
"""Minimum Euclidean distance between the raw codes of two expression clusters: half an open mouth, or a closed eye."""
RECALLED_SHARE: Final = 0.25
"""Share of the memory budget that recalled entries may use."""


@dataclass(frozen=True)
class ReplayComposition:
    """Counts of the entries of a replay buffer.

    Attributes:
        pictures: number of all entries: the sum of the next three.
        recent: number of the newest real entries, at most `RECENT`.
        history: number of the older real entries.
        recalled: number of entries that the avatar rendered itself.
        cells: number of cells of pose and expression that hold entries.
        largest_cell: number of entries of the cell with the most entries.
        bytes: memory of all entries.
    """

    pictures: int = 0
    recent: int = 0
    history: int = 0
    recalled: int = 0
    cells: int = 0
    largest_cell: int = 0
    bytes: int = 0


class ExpressionClusters:
    """Online clustering of expression codes: cluster centres ("leaders") that are as far apart as possible.

    A code that is far from all leaders becomes a leader.  If there are `MAX_EXPRESSIONS` already, it replaces one of
    the two leaders that are nearest to each other, provided that they are nearer to each other than the code is to any
    leader (after Charikar et al. 2004, "Incremental clustering and dynamic information retrieval").

    Attributes:
        leaders: (L, REGION_WIDTH) float32 expression codes.
    """

    def __init__(self) -> None:
        self.leaders = np.zeros((0, REGION_WIDTH), dtype=np.float32)

    def nearest(self, codes: Float32) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        """Index of the leader nearest to each of ``codes`` (N, REGION_WIDTH): (N,) int64."""
        return _distances(codes, self.leaders).argmin(axis=1)

    def add(self, code: Float32) -> bool:
        """Add a code (REGION_WIDTH,) to the clustering.

        Returns True if the leaders changed, so that the clusters of earlier codes must be determined again.
        """
        if not len(self.leaders):
            self.leaders = code[None].copy()
            return True
        distance = float(_distances(code[None], self.leaders).min())
        if distance < MIN_CODE_DISTANCE:
            return False
        if len(self.leaders) < MAX_EXPRESSIONS:
            self.leaders = np.concatenate([self.leaders, code[None]])
            return True
        between = _distances(self.leaders, self.leaders)
        np.fill_diagonal(between, np.inf)
        if distance <= between.min():
            return False
        self.leaders[int(between.argmin()) % MAX_EXPRESSIONS] = code
        return True


@dataclass(eq=False)
class ReplayEntry(Generic[T]):
    """One frame of a replay buffer as the replay policy represents it.

    Attributes:
        view: index of its cell in azimuth and elevation.
        code: (REGION_WIDTH,) mouth and eye parts of the raw expression code.
        size: memory in bytes.
        epoch: number of the epoch in which it was added.
        recalled: whether the avatar rendered it (generative replay), instead of a camera.
        cell: ``view`` and the index of the expression cluster.
        item: the buffer's own reference to the frame; set by `ReplayPolicy.insert`.
    """

    view: tuple[int, int]
    code: Float32
    size: int
    epoch: int
    recalled: bool
    cell: Cell = (0, 0, 0)
    item: T = field(init=False)


@dataclass(frozen=True)
class _Epoch:
    """Start of an epoch: the final drawing weight of earlier entries, and the number of real entries until then."""

    weight: float
    count: int

    def factor(self, count: int) -> float:
        """Drawing weight of earlier entries after ``count`` real entries in all."""
        return 1.0 - min(1.0, (count - self.count) / EPOCH_FADE) * (1.0 - self.weight)


class ReplayPolicy(Generic[T]):
    """Decides which entries a replay buffer keeps and which ones training draws.

    `offer` and `start_epoch` may be called from any thread, everything else only by the buffer's thread.  For each
    observation from `pop_incoming` the buffer calls `make_entry`, deletes the items that `evict_for` returns, and calls
    `insert`; after the last one it calls `update_pools`.

    Args:
        code: computes raw expression codes.
        budget: memory in bytes.
        seed: seed of all random choices.

    Attributes:
        entries: kept entries in the order in which they were added, recalled ones first.
        newest: items of the newest entries, of which a training step draws one; only those of the present epoch if
            there are any.
        pool: items from which a training step draws the others, in shuffled rounds.
        composition: counts of the entries.  `update_pools` replaces these last three as a whole.
    """

    def __init__(self, code: ExpressionCode, budget: int, seed: int) -> None:
        self.budget = budget
        self.entries: list[ReplayEntry[T]] = []
        self.newest: list[T] = []
        self.pool: list[T] = []
        self.composition = ReplayComposition()
        self._code, self._expressions = code, ExpressionClusters()
        self._random = np.random.default_rng(seed)
        self._bytes = self._count = 0
        self._epochs: list[_Epoch] = []
        self._lock = threading.Lock()
        self._incoming: deque[Observation] = deque(maxlen=RECENT)
        self._new_epochs: list[float] = []

    def offer(self, observation: Observation) -> None:
        """Queue an observation for `pop_incoming`; beyond `RECENT` queued ones the oldest is dropped."""
        with self._lock:
            self._incoming.append(observation)

    def start_epoch(self, weight: float = 0.0) -> None:
        """Start a new epoch: earlier entries are drawn less and less, and queued observations are discarded.

        ``weight`` in [0, 1] is the final drawing weight of earlier entries, relative to new ones.
        """
        with self._lock:
            self._incoming.clear()
            self._new_epochs.append(min(1.0, max(0.0, weight)))

    def pop_incoming(self) -> list[Observation]:
        """Remove and return the queued observations, oldest first; starts the epochs requested since the last call."""
        with self._lock:
            incoming, started = list(self._incoming), self._new_epochs
            self._incoming.clear()
            self._new_epochs = []
        self._epochs += [_Epoch(weight, self._count) for weight in started]
        return incoming

    @property
    def items(self) -> list[T]:
        """Items of the kept entries, in the order of `entries`."""
        return [entry.item for entry in self.entries]

    def make_entry(self, state: HeadState, size: int, *, recalled: bool = False) -> ReplayEntry[T]:
        """New entry, not yet inserted, for a frame with the head state ``state`` that takes ``size`` bytes.

        ``recalled`` is True for a frame that the avatar rendered itself.
        """
        code = np.nan_to_num(self._code.regional(state), posinf=0.0, neginf=0.0)
        azimuth, elevation = (round(float(angle) / CELL_ANGLE) for angle in np.nan_to_num(view_angles(state)))
        epoch = 0 if recalled else len(self._epochs)
        entry: ReplayEntry[T] = ReplayEntry((azimuth, elevation), code, size, epoch, recalled)
        self._assign_cells([entry])
        return entry

    def lacks(self, state: HeadState, size: int) -> bool:
        """Whether a recalled frame (rendered by the avatar) of ``state`` and of ``size`` bytes should be added.

        True if its cell has fewer real entries than `ENOUGH` and the frame fits into the budget of recalled entries.
        """
        recalled = sum(p.size for p in self.entries if p.recalled)
        room = self._bytes + size <= self.budget and recalled + size <= RECALLED_SHARE * self.budget
        return room and self._real(self.make_entry(state, size).cell) < ENOUGH

    def evict_for(self, new: ReplayEntry[T]) -> list[T]:
        """Evict entries until ``new`` fits into the budget or only the newest are left; returns their items.

        A real entry whose cell has `ENOUGH` real ones also evicts one recalled entry of the cell.
        """
        evicted = []
        if not new.recalled and self._real(new.cell) >= ENOUGH:
            stand_in = next((p for p in self.entries if p.recalled and p.cell == new.cell), None)
            if stand_in is not None:
                evicted.append(self._evict(stand_in))
        return evicted + self._evict_down_to(self.budget - new.size, RECENT - 1)

    def set_budget(self, budget: int) -> list[T]:
        """Change the memory budget to ``budget`` bytes, and evict entries until they fit or only the newest are left.

        Returns the evicted items; `update_pools` must be called if there are any.
        """
        self.budget = budget
        return self._evict_down_to(budget, RECENT)

    def insert(self, new: ReplayEntry[T], item: T) -> None:
        """Add the entry ``new``, whose frame the replay buffer stores under the reference ``item``."""
        new.item = item
        if self._expressions.add(new.code):
            self._assign_cells([*self.entries, new])
        self._bytes += new.size
        if new.recalled:
            self.entries.insert(0, new)
        else:
            self.entries.append(new)
            self._count += 1

    def update_pools(self) -> None:
        """Choose at random, by drawing weights, the entries to draw from until the next call; count the entries."""
        recent = [p for p in self.entries if not p.recalled][-RECENT:]
        new = [p for p in recent if p.epoch == len(self._epochs)]
        self.newest = [p.item for p in new or recent or self.entries[-RECENT:]]
        weights = self._weights()
        chances = self._random.random(len(weights))
        self.pool = [p.item for p, w, c in zip(self.entries, weights, chances, strict=True) if c < w] or self.items
        cells = Counter(p.cell for p in self.entries)
        recalled = sum(p.recalled for p in self.entries)
        self.composition = ReplayComposition(
            pictures=len(self.entries),
            recent=len(recent),
            history=len(self.entries) - len(recent) - recalled,
            recalled=recalled,
            cells=len(cells),
            largest_cell=max(cells.values(), default=0),
            bytes=self._bytes,
        )

    def _evict_down_to(self, size: int, newest: int) -> list[T]:
        """Evict entries until the rest takes at most ``size`` bytes or only the ``newest`` real ones are left."""
        evicted = []
        while self._bytes > size:
            real = sum(not p.recalled for p in self.entries)
            older = self.entries[: len(self.entries) - min(real, newest)]
            if not older:
                break
            evicted.append(self._evict(self._least_needed(older)))
        return evicted

    def _assign_cells(self, entries: Sequence[ReplayEntry[T]]) -> None:
        """Set the cell of each entry from its view and its expression cluster."""
        if not len(self._expressions.leaders):
            return
        nearest = self._expressions.nearest(np.stack([entry.code for entry in entries]))
        for entry, expression in zip(entries, nearest.tolist(), strict=True):
            entry.cell = (*entry.view, expression)

    def _least_needed(self, older: list[ReplayEntry[T]]) -> ReplayEntry[T]:
        """Entry to evict: one that new entries of its cell have replaced, else one of the fullest cell."""
        new = self._new_of_cells()
        replaced = [p for p in older if p.epoch < len(self._epochs) and new[p.cell] >= ENOUGH]
        pool = replaced or older
        sizes = Counter(p.cell for p in pool)
        most = max(sizes.values())
        fullest = [p for p in pool if sizes[p.cell] == most]
        return fullest[int(self._random.integers(len(fullest)))]

    def _weights(self) -> list[float]:
        """Probability of each entry to be in the pool."""
        if not self._epochs:
            return [1.0] * len(self.entries)
        new = self._new_of_cells()
        factors = [1.0]  # by epoch, the newest first
        for epoch in reversed(self._epochs):
            factors.append(factors[-1] * epoch.factor(self._count))
        weights = []
        for entry in self.entries:
            faded = factors[len(self._epochs) - entry.epoch]
            alone = 1.0 - min(1.0, new[entry.cell] / ENOUGH)
            weights.append(faded + alone * (max(faded, LONE) - faded))
        return weights

    def _real(self, cell: Cell) -> int:
        """Number of real entries of a cell."""
        return sum(p.cell == cell and not p.recalled for p in self.entries)

    def _new_of_cells(self) -> Counter[Cell]:
        """Number of real entries of the present epoch, by cell."""
        return Counter(p.cell for p in self.entries if p.epoch == len(self._epochs) and not p.recalled)

    def _evict(self, entry: ReplayEntry[T]) -> T:
        self.entries.remove(entry)
        self._bytes -= entry.size
        return entry.item


def _distances(codes: Float32, others: Float32) -> Float32:
    """Euclidean distances (N, M) between ``codes`` (N, REGION_WIDTH) and ``others`` (M, REGION_WIDTH)."""
    return np.linalg.norm(codes[:, None] - others[None], axis=-1)
