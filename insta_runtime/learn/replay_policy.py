"""Which pictures a replay keeps and which of them a step draws: one policy, whoever stores the pictures.

The newest `RECENT` are always kept.  The rest of the budget is history, spread over cells of pose and expression: when
room is needed the fullest cell gives up one, so what was rarely seen stays, however long the rest goes on.

When the light changes, or glasses come off, a page is turned (`Keeping.turn_page`): earlier pictures fade as new ones
arrive, and are given up first, but not those of cells for which nothing new is there.  Pictures that were recalled
(`learn.recall`) stand in for real ones that are gone, and make room as real ones of their cell arrive.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

import numpy as np

from insta_runtime.field.expression_code import CODE_WIDTH, ExpressionCode
from insta_runtime.field.view_range import view_angles
from insta_runtime.types import Float32, HeadState, Observation

T = TypeVar("T")
Cell = tuple[int, int, int]

RECENT: Final = 16
"""The newest pictures, which are never given up; a step draws one of them."""
FADE: Final = 30
"""Pictures after a page was turned over which earlier ones fade: 6 s of a call that takes five a second."""
ENOUGH: Final = 4
"""So many new pictures of a cell replace earlier ones, or recalled ones."""
LONE: Final = 0.1
"""What earlier pictures count in the end, as a part of a new one, where their cell has no new one."""
TURN: Final = math.radians(12.0)
"""Width of a cell: of azimuth and of elevation from which the head is seen."""
EXPRESSIONS: Final = 12
"""Expressions that cells tell apart at most ..."""
NEAR: Final = 0.4
"""... and how far their codes are apart at least: half an open mouth, a closed eye."""
RECALLED: Final = 0.25
"""Part of the budget that recalled pictures may take."""


@dataclass(frozen=True)
class Composition:
    """What a replay holds.

    Attributes:
        pictures: in all; of them recent, history (real, older) and recalled ones.
        cells: of pose and expression that have any; fullest: pictures of the one that has most.
        bytes: that all of them take.
        epochs: pictures by the page that they were taken on, 0 the first.
    """

    pictures: int = 0
    recent: int = 0
    history: int = 0
    recalled: int = 0
    cells: int = 0
    fullest: int = 0
    bytes: int = 0
    epochs: dict[int, int] = field(default_factory=dict)


class Expressions:
    """Expressions that were seen, as far apart from each other as can be: leaders among codes (N, CODE_WIDTH).

    A code that is far from all leaders becomes one; if there are enough, it takes the place of one of the two that are
    nearest to each other, if these are nearer than it is to any (after Charikar et al. 2004, "Incremental clustering
    and dynamic information retrieval").
    """

    def __init__(self) -> None:
        self.leaders = np.zeros((0, CODE_WIDTH), dtype=np.float32)

    def nearest(self, codes: Float32) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        """The leader nearest to each of ``codes`` (N, CODE_WIDTH)."""
        return _distances(codes, self.leaders).argmin(axis=1)

    def see(self, code: Float32) -> bool:
        """Take note of a code (CODE_WIDTH,): True if leaders have changed, and with them who is nearest to what."""
        if not len(self.leaders):
            self.leaders = code[None].copy()
            return True
        away = float(_distances(code[None], self.leaders).min())
        if away < NEAR:
            return False
        if len(self.leaders) < EXPRESSIONS:
            self.leaders = np.concatenate([self.leaders, code[None]])
            return True
        apart = _distances(self.leaders, self.leaders)
        np.fill_diagonal(apart, np.inf)
        if away <= apart.min():
            return False
        self.leaders[int(apart.argmin()) % EXPRESSIONS] = code
        return True


@dataclass(eq=False)
class Picture(Generic[T]):
    """One picture as the policy sees it.

    Attributes:
        view: number of its cell in azimuth and elevation. code: (CODE_WIDTH,), raw. cell: of both.
        size: bytes. epoch: the page it was taken on. recalled: painted by the avatar, not by a camera.
        item: what its owner knows it by; set when it is admitted.
    """

    view: tuple[int, int]
    code: Float32
    size: int
    epoch: int
    recalled: bool
    cell: Cell = (0, 0, 0)
    item: T = field(init=False)


@dataclass(frozen=True)
class _Page:
    """A turned page: what earlier pictures count in the end, and how many had been taken by then."""

    weight: float
    taken: int

    def factor(self, taken: int) -> float:
        return 1.0 - min(1.0, (taken - self.taken) / FADE) * (1.0 - self.weight)


class Keeping(Generic[T]):
    """Decides for a store of pictures.  `offer` and `turn_page` may be called from any thread, the rest is its owner's.

    For each observation that has `arrived`, the owner asks for a `picture` of it, gives up what `make_room` says, and
    then calls `admit`; after the last one, `deal`.

    Args:
        code: tells expressions apart. budget: bytes. seed: of all chance.

    Attributes:
        pictures: those kept, in the order in which they came, recalled ones first.
        newest: items that a step draws one of; of the present page, if there are any.
        deck: items that it draws the others from, in shuffled rounds.
        composition: of it all.  These three are replaced whole by `deal`.
    """

    def __init__(self, code: ExpressionCode, budget: int, seed: int) -> None:
        self.budget = budget
        self.pictures: list[Picture[T]] = []
        self.newest: list[T] = []
        self.deck: list[T] = []
        self.composition = Composition()
        self._code, self._expressions = code, Expressions()
        self._random = np.random.default_rng(seed)
        self._bytes = self._taken = 0
        self._pages: list[_Page] = []
        self._lock = threading.Lock()
        self._incoming: deque[Observation] = deque(maxlen=RECENT)
        self._turned: list[float] = []

    def offer(self, observation: Observation) -> None:
        """Leave an observation for the owner; where none fetches them, only the newest wait."""
        with self._lock:
            self._incoming.append(observation)

    def turn_page(self, weight: float = 0.0) -> None:
        """What is offered from now on looks different: earlier pictures fade, those that still wait are left out.

        ``weight`` in [0, 1] is what an earlier picture counts in the end, as a part of a new one.
        """
        with self._lock:
            self._incoming.clear()
            self._turned.append(min(1.0, max(0.0, weight)))

    def arrived(self) -> list[Observation]:
        """The observations that were offered since this was last asked."""
        with self._lock:
            incoming, turned = list(self._incoming), self._turned
            self._incoming.clear()
            self._turned = []
        self._pages += [_Page(weight, self._taken) for weight in turned]
        return incoming

    @property
    def items(self) -> list[T]:
        """What the owner knows the kept pictures by, in their order."""
        return [picture.item for picture in self.pictures]

    def picture(self, state: HeadState, size: int, *, recalled: bool = False) -> Picture[T]:
        """What the policy makes of a new picture in ``state`` that takes ``size`` bytes."""
        code = np.nan_to_num(self._code.raw(state), posinf=0.0, neginf=0.0)
        azimuth, elevation = (round(float(angle) / TURN) for angle in np.nan_to_num(view_angles(state)))
        epoch = 0 if recalled else len(self._pages)
        picture: Picture[T] = Picture((azimuth, elevation), code, size, epoch, recalled)
        self._place([picture])
        return picture

    def misses(self, state: HeadState, size: int) -> bool:
        """Whether a recalled picture of ``state`` would help: few of its cell are real, and there is room to spare."""
        recalled = sum(p.size for p in self.pictures if p.recalled)
        room = self._bytes + size <= self.budget and recalled + size <= RECALLED * self.budget
        return room and self._real(self.picture(state, size).cell) < ENOUGH

    def make_room(self, new: Picture[T]) -> list[T]:
        """Give up pictures, until there is room for ``new`` or only the newest are left: the items given up."""
        given_up = []
        if not new.recalled and self._real(new.cell) >= ENOUGH:
            stand_in = next((p for p in self.pictures if p.recalled and p.cell == new.cell), None)
            if stand_in is not None:
                given_up.append(self._give_up(stand_in))
        while self._bytes + new.size > self.budget:
            real = sum(not p.recalled for p in self.pictures)
            older = self.pictures[: len(self.pictures) - min(real, RECENT - 1)]
            if not older:
                break
            given_up.append(self._give_up(self._least_needed(older)))
        return given_up

    def admit(self, new: Picture[T], item: T) -> None:
        """Take ``new`` in, known to its owner as ``item``."""
        new.item = item
        if self._expressions.see(new.code):
            self._place([*self.pictures, new])
        self._bytes += new.size
        if new.recalled:
            self.pictures.insert(0, new)
        else:
            self.pictures.append(new)
            self._taken += 1

    def deal(self) -> None:
        """Decide what is drawn from, until the next time."""
        recent = [p for p in self.pictures if not p.recalled][-RECENT:]
        new = [p for p in recent if p.epoch == len(self._pages)]
        self.newest = [p.item for p in new or recent or self.pictures[-RECENT:]]
        weights = self._weights()
        lots = self._random.random(len(weights))
        self.deck = [p.item for p, w, lot in zip(self.pictures, weights, lots, strict=True) if lot < w] or self.items
        cells = Counter(p.cell for p in self.pictures)
        recalled = sum(p.recalled for p in self.pictures)
        self.composition = Composition(
            pictures=len(self.pictures),
            recent=len(recent),
            history=len(self.pictures) - len(recent) - recalled,
            recalled=recalled,
            cells=len(cells),
            fullest=max(cells.values(), default=0),
            bytes=self._bytes,
            epochs=dict(sorted(Counter(p.epoch for p in self.pictures).items())),
        )

    def _place(self, pictures: Sequence[Picture[T]]) -> None:
        """Find the cells of pictures."""
        if not len(self._expressions.leaders):
            return
        nearest = self._expressions.nearest(np.stack([p.code for p in pictures]))
        for picture, expression in zip(pictures, nearest.tolist(), strict=True):
            picture.cell = (*picture.view, expression)

    def _least_needed(self, older: list[Picture[T]]) -> Picture[T]:
        """One of the fullest cell, and before all others one that new pictures of its cell have replaced."""
        new = self._new_of_cells()
        replaced = [p for p in older if p.epoch < len(self._pages) and new[p.cell] >= ENOUGH]
        pool = replaced or older
        sizes = Counter(p.cell for p in pool)
        most = max(sizes.values())
        fullest = [p for p in pool if sizes[p.cell] == most]
        return fullest[int(self._random.integers(len(fullest)))]

    def _weights(self) -> list[float]:
        """How likely each picture is to be in the deck."""
        if not self._pages:
            return [1.0] * len(self.pictures)
        new = self._new_of_cells()
        factors = [1.0]  # of a picture by its epoch, the newest first
        for page in reversed(self._pages):
            factors.append(factors[-1] * page.factor(self._taken))
        weights = []
        for picture in self.pictures:
            faded = factors[len(self._pages) - picture.epoch]
            alone = 1.0 - min(1.0, new[picture.cell] / ENOUGH)
            weights.append(faded + alone * (max(faded, LONE) - faded))
        return weights

    def _real(self, cell: Cell) -> int:
        return sum(p.cell == cell and not p.recalled for p in self.pictures)

    def _new_of_cells(self) -> Counter[Cell]:
        """Real pictures of the present page, by cell."""
        return Counter(p.cell for p in self.pictures if p.epoch == len(self._pages) and not p.recalled)

    def _give_up(self, picture: Picture[T]) -> T:
        self.pictures.remove(picture)
        self._bytes -= picture.size
        return picture.item


def _distances(codes: Float32, others: Float32) -> Float32:
    """Between each of (N, CODE_WIDTH) and each of (M, CODE_WIDTH): (N, M)."""
    return np.linalg.norm(codes[:, None] - others[None], axis=-1)
