"""Distribution of encoded video: the tier of each viewer, and the bitrate of each rendition by its weakest viewer."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Final

from telepresence.runtime.loop_queue import LoopQueue
from telepresence.runtime.ownership import any_thread, owned_by
from telepresence.streaming.video.bandwidth import FLOOR, START, BandwidthEstimate, ResendDecision, RetransmitBudget
from telepresence.streaming.video.encoder import Codec
from telepresence.streaming.video.encoder_hub import (
    JOIN_GAP_S,
    EncodedFrame,
    EncodedFrameCallback,
    EncoderHub,
    Rendition,
)
from telepresence.streaming.video.stats import RenditionStats
from telepresence.streaming.video.tiers import TierSelector
from telepresence.streaming.video.tracks import BACKLOG, VideoPacketTrack

REVIEW_S: Final = 0.25
"""Seconds between two reviews of tiers and bitrates; bandwidth estimates change about once a second."""
KEYFRAME_GAP_S: Final = 2.0
"""Minimum number of seconds between two keyframes that replace retransmission.

A browser goes on asking for old packets until it has received the keyframe.
"""
WEAK: Final = 0.5
"""Part of the other viewers' median bitrate below which a viewer has to leave their tier."""


@owned_by("network")
class ViewerStream:
    """Video of one viewer: its track, bandwidth estimate and tier; receives its RTCP feedback on the event loop.

    Attributes:
        codec: codec that the viewer decodes.
        track: aiortc track with the packets for the viewer.
        rendition: the rendition that it receives; None if it is not connected.
    """

    def __init__(self, audience: Audience, codec: Codec) -> None:
        self.codec = codec
        self.track = VideoPacketTrack(self._on_start, self._on_stop, self.on_keyframe_request)
        self.estimate = BandwidthEstimate()
        self.selector = TierSelector()
        self.rendition: Rendition | None = None
        self._audience = audience
        self._budget = RetransmitBudget(time.monotonic())
        self._keyframe_at = -KEYFRAME_GAP_S  # time of the last keyframe in place of retransmission

    def on_keyframe_request(self) -> None:
        """Request a keyframe, because the viewer cannot decode (PLI, FIR) or its waiting packets were dropped."""
        if self.rendition is not None:
            self._audience.hub.request_keyframe(self.rendition)

    def on_remb(self, bitrate: float) -> None:
        """Use a REMB message: the viewer estimates its bandwidth at ``bitrate`` bit/s."""
        self.estimate.on_remb(bitrate)

    def on_receiver_report(self, lost: int, highest: int) -> None:
        """Update the bandwidth estimate from an RTCP receiver report: packets ``lost`` in all, ``highest`` number."""
        self.estimate.on_receiver_report(lost, highest, self._rate)

    def should_resend(self, sequence_number: int) -> bool:
        """Whether to retransmit a packet that the viewer reports as missing (NACK).

        If the budget is used up, the viewer gets a keyframe instead: browsers wait for seconds before they request one.
        """
        now = time.monotonic()
        decision = self._budget.decide(sequence_number, self._rate, now)
        if decision is ResendDecision.SEND_KEYFRAME and now - self._keyframe_at >= KEYFRAME_GAP_S:
            self._keyframe_at = now
            self.on_keyframe_request()
        return decision is ResendDecision.RESEND

    @property
    def _rate(self) -> float:
        return self._audience.rates.get(self.rendition, START) if self.rendition is not None else START

    def _on_start(self) -> None:
        self._audience.connect(self)

    def _on_stop(self) -> None:
        self._audience.disconnect(self)


@dataclass(frozen=True)
class _Capacity:
    """Bitrate in bit/s that a viewer can receive; ``known``: estimated from feedback, else a first guess."""

    bitrate: float
    known: bool


@owned_by("network")
class Audience:
    """Passes packets of the `EncoderHub` to all viewers, and assigns them to tiers; used on the event loop.

    Attributes:
        rates: target bitrate in bit/s of each rendition in use.
    """

    def __init__(self, hub: EncoderHub, adapt: bool = True) -> None:
        """``adapt``: choose tier and bitrate by the bandwidth of the viewers; False: the best tier for all."""
        self.hub = hub
        self._adapt = adapt
        self.rates: dict[Rendition, float] = {}
        self._viewers: list[ViewerStream] = []
        self._callbacks: dict[Rendition, EncodedFrameCallback] = {}
        self._reviewed = 0.0

    def add_viewer(self, codec: Codec) -> ViewerStream:
        """Make the stream of a new viewer, which connects at the first `recv` of its track, and ends with the track."""
        return ViewerStream(self, codec)

    def connect(self, viewer: ViewerStream) -> None:
        """Begin to send video to ``viewer``."""
        self._viewers.append(viewer)
        self._assign(viewer)
        self._set_rates()

    def disconnect(self, viewer: ViewerStream) -> None:
        """End the video of ``viewer``; no error if it was not connected."""
        if viewer in self._viewers:
            self._viewers.remove(viewer)
            viewer.rendition = None
            self._close_unused()

    @any_thread
    def renditions(self) -> Mapping[str, RenditionStats]:
        """Viewers and target bitrate of each rendition in use, by codec and tier; any thread."""
        viewers = Counter(viewer.rendition for viewer in tuple(self._viewers))
        rates = self.rates.copy()
        return {
            f"{rendition.codec} {rendition.tier.name}": RenditionStats(
                viewers[rendition], round(rates.get(rendition, 0.0) / 1000)
            )
            for rendition in viewers
            if rendition is not None
        }

    def on_encoded(self, rendition: Rendition, encoded: EncodedFrame) -> None:
        """Send an encoded frame to all viewers of ``rendition``; reviews tiers and rates now and then."""
        for viewer in self._viewers:
            if viewer.rendition == rendition and not viewer.track.push(encoded):
                self.hub.request_keyframe(rendition, JOIN_GAP_S)
        if (now := time.monotonic()) - self._reviewed >= REVIEW_S:
            self._reviewed = now
            self.review(now)

    def review(self, now: float) -> None:
        """Choose the tier of each viewer and the bitrate of each rendition by the newest feedback."""
        usable: defaultdict[tuple[Codec, int], list[float]] = defaultdict(list)  # bit/s of the viewers on each tier
        known = [(viewer, found.bitrate) for viewer in self._viewers if (found := self._capacity(viewer)).known]
        for viewer, bitrate in known:
            index = viewer.selector.index
            usable[viewer.codec, index].append(min(bitrate, self.hub.tiers[index].ceiling))
        moved = []
        for viewer, bitrate in known:
            before = viewer.selector.index
            if viewer.selector.update(bitrate, self._needs(viewer, bitrate, usable), now) != before:
                moved.append(viewer)
        for viewer in moved:
            self._assign(viewer)
        self._close_unused()
        self._set_rates()

    def _capacity(self, viewer: ViewerStream) -> _Capacity:
        if not self._adapt:
            return _Capacity(math.inf, known=True)
        bitrate = viewer.estimate.bitrate
        return _Capacity(START if bitrate is None else bitrate, bitrate is not None)

    def _needs(
        self, viewer: ViewerStream, bitrate: float, usable: Mapping[tuple[Codec, int], list[float]]
    ) -> list[float]:
        """Bitrate in bit/s that ``viewer`` needs for each tier: for its frames, and not to hold back other viewers."""
        needs = []
        for index, tier in enumerate(self.hub.tiers):
            others = list(usable.get((viewer.codec, index), ()))
            if index == viewer.selector.index:
                others.remove(min(bitrate, tier.ceiling))
            needs.append(max(tier.need, WEAK * median(others)) if others else tier.need)
        return needs

    def _assign(self, viewer: ViewerStream) -> None:
        """Move ``viewer`` to the rendition of its tier, where it begins with the next keyframe."""
        rendition = viewer.rendition = Rendition(viewer.codec, self.hub.tiers[viewer.selector.index])
        viewer.track.restart()
        if rendition in self._callbacks:
            self.hub.request_keyframe(rendition, JOIN_GAP_S)
        else:
            on_encoded, on_lost = partial(self.on_encoded, rendition), partial(self._on_lost, rendition)
            callback = self._callbacks[rendition] = LoopQueue(on_encoded, BACKLOG, on_lost).put
            self.hub.subscribe(rendition, callback)

    def _set_rates(self) -> None:
        """Set each rendition to the bitrate of its weakest viewer; viewers without an estimate do not count.

        If there is no estimate at all, the first guess is used.
        """
        for rendition in self._callbacks:
            found = [self._capacity(viewer) for viewer in self._viewers if viewer.rendition == rendition]
            known = [capacity.bitrate for capacity in found if capacity.known]
            rate = min(known or [capacity.bitrate for capacity in found], default=START)
            self.rates[rendition] = max(FLOOR, min(rate, rendition.tier.ceiling))
            self.hub.set_rate(rendition, self.rates[rendition])

    def _close_unused(self) -> None:
        used = {viewer.rendition for viewer in self._viewers}
        for rendition in [rendition for rendition in self._callbacks if rendition not in used]:
            self.hub.unsubscribe(rendition, self._callbacks.pop(rendition))
            self.rates.pop(rendition, None)

    def _on_lost(self, rendition: Rendition) -> None:
        """Continue at the next keyframe after the event loop was blocked and frames were lost."""
        for viewer in self._viewers:
            if viewer.rendition == rendition:
                viewer.track.restart()
        self.hub.request_keyframe(rendition, JOIN_GAP_S)
