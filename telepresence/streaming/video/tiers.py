"""What a viewer may get: a ladder of sizes and picture rates, and who stands where on it."""

from __future__ import annotations

from dataclasses import dataclass

BITS_PER_PIXEL = 0.023  # below this a face loses its skin in H.264; fewer and smaller pictures look better then
DOWN_S = 2.0  # an estimate that falls short for so long moves a viewer down
UP_S = 5.0  # one that would do for the rung above for so long moves it up
MARGIN = 1.25  # by which it must do, so that nobody goes up and down all the time
SMALLEST = 64  # pixels


@dataclass(frozen=True)
class Tier:
    """Square pictures of ``size`` pixels, ``fps`` a second, at most ``ceiling`` bit/s."""

    size: int
    fps: int
    ceiling: int

    @property
    def name(self) -> str:
        return f"{self.size}@{self.fps}"

    @property
    def need(self) -> float:
        """Bit/s from which on the tier looks better than the one below it."""
        return BITS_PER_PIXEL * self.size**2 * self.fps


def ladder(size: int, fps: int, bitrate: int) -> tuple[Tier, ...]:
    """The tiers from the best one, ``size`` at ``fps`` with at most ``bitrate`` bit/s, down: for 512 at 30 they are
    512@30, 512@20, 384@20 and 256@15, for 512 at 60 the same below 512@60.

    A smaller picture has a ceiling smaller by its area; a slower one has the same, as its pictures differ more.
    """
    steady = min(fps, 30)
    slow, half = max(1, round(steady * 2 / 3)), max(1, steady // 2)
    rungs = [(size, fps), (size, steady), (size, slow), (_even(size * 3 // 4), slow), (_even(size // 2), half)]
    return tuple(Tier(side, rate, bitrate * side**2 // size**2) for side, rate in dict.fromkeys(rungs))


def _even(side: int) -> int:
    return max(SMALLEST, side - side % 2)


class Climber:
    """Where on the ladder one viewer stands, 0 being the best rung; time is seconds of any monotonic clock."""

    def __init__(self) -> None:
        self.rung = 0
        self._short_since: float | None = None
        self._ample_since: float | None = None

    def step(self, allowance: float, needs: list[float], now: float) -> int:
        """The rung at ``now`` for a viewer that can take ``allowance`` bit/s, where each rung needs ``needs``.

        Down it goes as far as it must, up one rung at a time.
        """
        short = allowance < needs[self.rung] and self.rung < len(needs) - 1
        ample = not short and self.rung > 0 and allowance >= MARGIN * needs[self.rung - 1]
        self._short_since = _since(self._short_since, short, now)
        self._ample_since = _since(self._ample_since, ample, now)
        if self._short_since is not None and now - self._short_since >= DOWN_S:
            fits = (i for i in range(self.rung + 1, len(needs)) if allowance >= needs[i])
            self.rung, self._short_since = next(fits, len(needs) - 1), None
        elif self._ample_since is not None and now - self._ample_since >= UP_S:
            self.rung, self._ample_since = self.rung - 1, None
        return self.rung


def _since(began: float | None, holds: bool, now: float) -> float | None:
    """When something that ``holds`` now began to."""
    if not holds:
        return None
    return now if began is None else began
