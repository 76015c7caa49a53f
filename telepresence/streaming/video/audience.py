"""Who watches, and what they can take: viewers stand on tiers, and a tier has the rate of its weakest viewer."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median

from telepresence.runtime.handover import Handover
from telepresence.streaming.video.bandwidth import FLOOR, START, Estimate, Resend, RetransmitBudget
from telepresence.streaming.video.encoder import Codec
from telepresence.streaming.video.encoder_hub import JOIN_GAP_S, EncodedPicture, EncoderHub, Line, PacketSink
from telepresence.streaming.video.stats import LineStats
from telepresence.streaming.video.tiers import Climber
from telepresence.streaming.video.tracks import BACKLOG, PacketTrack

REVIEW_S = 0.25  # estimates change about once a second
HELP_S = 2.0  # a browser asks for old packets until it has the keyframe that makes good for them
WEAK = 0.5  # a viewer that can take less than this part of what the others of its tier can, leaves it to them


class Viewer:
    """One peer's part of the stream; what it reports comes in here, on the event loop."""

    def __init__(self, audience: Audience, codec: Codec) -> None:
        self.codec = codec
        self.track = PacketTrack(self._enter, self._leave, self.keyframe)
        self.estimate = Estimate()
        self.climber = Climber()
        self.line: Line | None = None  # None: not connected, or gone
        self._audience = audience
        self._budget = RetransmitBudget(time.monotonic())
        self._helped = -HELP_S  # when a keyframe was to make good for lost packets

    def keyframe(self) -> None:
        """The peer cannot decode what it gets (PLI, FIR), or lost what it should have got."""
        if self.line is not None:
            self._audience.hub.request_keyframe(self.line)

    def believes(self, bitrate: float) -> None:
        """The peer believes that ``bitrate`` bit/s reach it (REMB)."""
        self.estimate.believes(bitrate)

    def received(self, lost: int, sent: int) -> None:
        """The peer missed ``lost`` of the ``sent`` packets so far (receiver report)."""
        self.estimate.received(lost, sent, self._rate)

    def resend(self, sequence_number: int) -> bool:
        """Whether a packet that the peer misses is to go again (NACK).

        Where it never will, the peer gets a keyframe instead: browsers wait for seconds before they ask for one.
        """
        now = time.monotonic()
        decision = self._budget.ask(sequence_number, self._rate, now)
        if decision is Resend.NEVER and now - self._helped >= HELP_S:
            self._helped = now
            self.keyframe()
        return decision is Resend.NOW

    @property
    def _rate(self) -> float:
        return self._audience.rates.get(self.line, START) if self.line is not None else START

    def _enter(self) -> None:
        self._audience.enter(self)

    def _leave(self) -> None:
        self._audience.leave(self)


@dataclass(frozen=True)
class _Reach:
    """What a viewer can take: ``allowance`` bit/s; ``known`` tells an estimate from a first guess."""

    allowance: float
    known: bool


class Audience:
    """Hands the packets of the hub to its viewers, and moves these between tiers; lives on the event loop."""

    def __init__(self, hub: EncoderHub, adapt: bool = True) -> None:
        """``adapt``: viewers get what they can take; else all of them get the best."""
        self.hub = hub
        self._adapt = adapt
        self.rates: dict[Line, float] = {}  # bit/s that each line in use aims at
        self._viewers: list[Viewer] = []
        self._sinks: dict[Line, PacketSink] = {}
        self._reviewed = 0.0

    def admit(self, codec: Codec) -> Viewer:
        """A new viewer, who enters when its sender first pulls from its track, and leaves when the track stops."""
        return Viewer(self, codec)

    def enter(self, viewer: Viewer) -> None:
        self._viewers.append(viewer)
        self._move(viewer)
        self._share_out()

    def leave(self, viewer: Viewer) -> None:
        if viewer in self._viewers:
            self._viewers.remove(viewer)
            viewer.line = None
            self._close_empty()

    def lines(self) -> Mapping[str, LineStats]:
        """What is sent to how many, by codec and tier; any thread."""
        viewers = Counter(viewer.line for viewer in tuple(self._viewers))
        rates = self.rates.copy()
        return {
            f"{line.codec} {line.tier.name}": LineStats(viewers[line], round(rates.get(line, 0.0) / 1000))
            for line in viewers
            if line is not None
        }

    def hand_out(self, line: Line, picture: EncodedPicture) -> None:
        """Give a picture to all who stand on ``line``."""
        for viewer in self._viewers:
            if viewer.line == line and not viewer.track.take(picture):
                self.hub.request_keyframe(line, JOIN_GAP_S)
        if (now := time.monotonic()) - self._reviewed >= REVIEW_S:
            self._reviewed = now
            self.review(now)

    def review(self, now: float) -> None:
        """Look at what everybody reported: who moves, and which rate each line gets."""
        crowds: defaultdict[tuple[Codec, int], list[float]] = defaultdict(list)  # what those on a rung can use there
        known = [(viewer, reach.allowance) for viewer in self._viewers if (reach := self._reach(viewer)).known]
        for viewer, allowance in known:
            rung = viewer.climber.rung
            crowds[viewer.codec, rung].append(min(allowance, self.hub.tiers[rung].ceiling))
        moved = []
        for viewer, allowance in known:
            before = viewer.climber.rung
            if viewer.climber.step(allowance, self._needs(viewer, allowance, crowds), now) != before:
                moved.append(viewer)
        for viewer in moved:
            self._move(viewer)
        self._close_empty()
        self._share_out()

    def _reach(self, viewer: Viewer) -> _Reach:
        if not self._adapt:
            return _Reach(math.inf, known=True)
        allowance = viewer.estimate.allowance
        return _Reach(START if allowance is None else allowance, allowance is not None)

    def _needs(self, viewer: Viewer, allowance: float, crowds: Mapping[tuple[Codec, int], list[float]]) -> list[float]:
        """bit/s that each rung asks of ``viewer``: for its pictures, and so as not to spoil them for the others."""
        needs = []
        for rung, tier in enumerate(self.hub.tiers):
            others = list(crowds.get((viewer.codec, rung), ()))
            if rung == viewer.climber.rung:
                others.remove(min(allowance, tier.ceiling))
            needs.append(max(tier.need, WEAK * median(others)) if others else tier.need)
        return needs

    def _move(self, viewer: Viewer) -> None:
        """Put ``viewer`` on the line of its rung, where it begins with the next keyframe."""
        line = viewer.line = Line(viewer.codec, self.hub.tiers[viewer.climber.rung])
        viewer.track.restart()
        if line in self._sinks:
            self.hub.request_keyframe(line, JOIN_GAP_S)
        else:
            hand_out, lose = partial(self.hand_out, line), partial(self._lose, line)
            sink = self._sinks[line] = Handover(hand_out, BACKLOG, lose).put
            self.hub.subscribe(line, sink)

    def _share_out(self) -> None:
        """Each line gets what its weakest viewer can take; one of whom nothing is known does not hold up the others."""
        for line in self._sinks:
            reaches = [self._reach(viewer) for viewer in self._viewers if viewer.line == line]
            known = [reach.allowance for reach in reaches if reach.known]
            rate = min(known or [reach.allowance for reach in reaches], default=START)
            self.rates[line] = max(FLOOR, min(rate, line.tier.ceiling))
            self.hub.set_rate(line, self.rates[line])

    def _close_empty(self) -> None:
        used = {viewer.line for viewer in self._viewers}
        for line in [line for line in self._sinks if line not in used]:
            self.hub.unsubscribe(line, self._sinks.pop(line))
            self.rates.pop(line, None)

    def _lose(self, line: Line) -> None:
        """The event loop stood still, and pictures are lost: go on at the next keyframe."""
        for viewer in self._viewers:
            if viewer.line == line:
                viewer.track.restart()
        self.hub.request_keyframe(line, JOIN_GAP_S)
