"""Viewers with different links: who gets what, and that one does not suffer from another."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from fractions import Fraction
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpReceiver, RTCRtpSender, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError

from telepresence.runtime.audio import AudioBus
from telepresence.runtime.frames import OutputFrame
from telepresence.streaming import StreamSettings
from telepresence.streaming.audio.audio_hub import AudioHub
from telepresence.streaming.rtc import aiortc_hooks
from telepresence.streaming.rtc.network_simulation import LinkProfile
from telepresence.streaming.rtc.peer_stream import PeerStream
from telepresence.streaming.video.audience import REVIEW_S, Audience, ViewerStream
from telepresence.streaming.video.bandwidth import HEADROOM, START
from telepresence.streaming.video.encoder import CLOCK_RATE, Codec, Converter
from telepresence.streaming.video.encoder_hub import LOSS_GAP_S, EncodedFrame, EncoderHub, RawFrame, Rendition
from telepresence.streaming.video.tiers import DOWN_S, UP_S
from telepresence.streaming.video.tracks import BACKLOG, RawFrameTrack, VideoPacketTrack

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 60.0))  # type: ignore[arg-type]


# ---- tracks


def packet(pts: int, keyframe: bool = False) -> EncodedFrame:
    made = av.Packet(b"\0\0\1\x65")
    made.pts, made.time_base = pts, Fraction(1, CLOCK_RATE)
    return EncodedFrame(made, keyframe)


def track() -> tuple[VideoPacketTrack, list[str]]:
    calls: list[str] = []
    made = VideoPacketTrack(lambda: calls.append("start"), lambda: calls.append("stop"), lambda: calls.append("stall"))
    return made, calls


def test_a_stalled_viewer_continues_at_the_next_keyframe() -> None:
    async def scenario() -> None:
        viewer, calls = track()
        waiting = asyncio.create_task(viewer.recv())
        await asyncio.sleep(0)
        viewer.push(packet(0))  # cannot be decoded without a keyframe
        viewer.push(packet(1, keyframe=True))
        assert (await waiting).pts == 1
        for pts in range(2, 2 + BACKLOG + 3):
            viewer.push(packet(pts))
        assert calls == ["start", "stall"]
        viewer.push(packet(50, keyframe=True))
        viewer.push(packet(51))
        assert [(await viewer.recv()).pts for _ in range(2)] == [50, 51]
        viewer.stop()
        viewer.stop()
        assert calls == ["start", "stall", "stop"]
        with pytest.raises(MediaStreamError):
            await viewer.recv()

    run(scenario)


def test_another_rendition_begins_with_a_keyframe_of_a_later_frame() -> None:
    async def scenario() -> None:
        viewer, _ = track()
        assert viewer.push(packet(10, keyframe=True))
        viewer.restart()
        assert viewer.push(packet(11))
        assert not viewer.push(packet(10, keyframe=True))  # the frame that it has received
        assert viewer.push(packet(12, keyframe=True))
        assert [(await viewer.recv()).pts for _ in range(2)] == [10, 12]

    run(scenario)


def test_each_raw_frame_track_gets_its_own_copy() -> None:
    async def scenario() -> None:
        sinks: list[Any] = []
        hub: Any = SimpleNamespace(subscribe_raw=sinks.append, unsubscribe_raw=sinks.remove)
        tracks = [RawFrameTrack(hub) for _ in range(2)]
        waiting = [asyncio.create_task(track.recv()) for track in tracks]
        await asyncio.sleep(0)
        yuv = Converter().convert(np.full((128, 128, 3), 99, np.uint8), 128).to_ndarray()
        for sink in sinks:
            sink(RawFrame(np.asarray(yuv, np.uint8), 77))
        a, b = [await task for task in waiting]
        a.pict_type = av.video.frame.PictureType.I
        assert b.pict_type != av.video.frame.PictureType.I
        assert (a.pts, a.format.name) == (77, "yuv420p")
        np.testing.assert_array_equal(a.to_ndarray(), b.to_ndarray())
        for track in tracks:
            track.stop()
        assert sinks == []

    run(scenario)


# ---- tiers of viewers


class SimulatedAudience:
    """An audience with a hub that does not run, and a simulated clock."""

    def __init__(self) -> None:
        self.audience = Audience(EncoderHub(StreamSettings()))
        self.now = 1000.0

    def connect(self, codec: Codec = Codec.H264) -> ViewerStream:
        viewer = self.audience.add_viewer(codec)
        self.audience.connect(viewer)
        return viewer

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += REVIEW_S
            self.audience.review(self.now)

    def renditions(self) -> dict[str, tuple[int, int]]:
        return {name: (rendition.viewers, rendition.kbps) for name, rendition in self.audience.renditions().items()}


def test_viewers_share_a_tier_at_the_bitrate_of_the_weakest() -> None:
    async def scenario() -> None:
        simulated = SimulatedAudience()
        one, two = simulated.connect(), simulated.connect()
        simulated.wait(1.0)
        assert simulated.renditions() == {"H264 512@30": (2, START // 1000)}
        one.on_remb(9e6)
        simulated.wait(1.0)
        assert simulated.renditions() == {
            "H264 512@30": (2, 1500)
        }  # the second viewer has no estimate yet, and does not count
        two.on_remb(1e6)
        simulated.wait(10.0)
        assert simulated.renditions() == {"H264 512@30": (2, round(HEADROOM * 1000))}
        assert one.rendition is not None
        one.track.stop()
        two.track.stop()
        assert simulated.renditions() == {}
        assert not simulated.audience.hub.watched

    run(scenario)


def test_a_weak_viewer_leaves_the_tier_of_the_others_and_returns_when_alone() -> None:
    async def scenario() -> None:
        simulated = SimulatedAudience()
        strong, weak = [simulated.connect() for _ in range(3)], simulated.connect()
        for viewer in strong:
            viewer.on_remb(5e6)
        weak.on_remb(600_000)
        simulated.wait(DOWN_S + 1.0)
        assert simulated.renditions() == {"H264 512@30": (3, 1500), "H264 512@20": (1, 510)}
        simulated.wait(30.0)
        assert simulated.renditions() == {"H264 512@30": (3, 1500), "H264 512@20": (1, 510)}
        weak.on_remb(100_000)
        simulated.wait(DOWN_S + 1.0)
        assert simulated.renditions() == {"H264 512@30": (3, 1500), "H264 384@20": (1, 85)}
        for viewer in strong:
            viewer.track.stop()
        weak.on_remb(600_000)
        simulated.wait(2 * UP_S + 1.0)
        assert simulated.renditions() == {"H264 512@30": (1, 510)}

    run(scenario)


def test_all_viewers_on_narrow_links_get_small_frames() -> None:
    async def scenario() -> None:
        simulated = SimulatedAudience()
        for viewer in (simulated.connect(), simulated.connect(), simulated.connect(Codec.VP8)):
            viewer.on_remb(60_000)
        simulated.wait(DOWN_S + 1.0)
        assert simulated.renditions() == {"H264 256@15": (2, 51), "VP8 256@15": (1, 51)}

    run(scenario)


def test_without_adaptation_every_viewer_gets_the_best_tier() -> None:
    async def scenario() -> None:
        audience = Audience(EncoderHub(StreamSettings()), adapt=False)
        viewer = audience.add_viewer(Codec.H264)
        audience.connect(viewer)
        viewer.on_remb(60_000)
        for now in range(20):
            audience.review(float(now))
        assert [(rendition.viewers, rendition.kbps) for rendition in audience.renditions().values()] == [(1, 1500)]

    run(scenario)


# ---- real peers


class Broadcast:
    """A running hub with a moving test pattern, and its audience."""

    def __init__(self, **settings: Any) -> None:
        self.hub = EncoderHub(StreamSettings(**{"size": 256, **settings}))
        self.audience = Audience(self.hub)
        self.audio = AudioHub(AudioBus(), 64_000, lambda: None)
        self._running = True
        self._feeder = threading.Thread(target=self._feed)
        self._pcs: list[RTCPeerConnection] = []

    async def __aenter__(self) -> Broadcast:
        aiortc_hooks.offer_loopback()
        self.hub.start()
        self._feeder.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for pc in self._pcs:
            await pc.close()
        self._running = False
        self._feeder.join()
        self.hub.stop()

    def _feed(self) -> None:
        y, x = np.mgrid[0:256, 0:256]
        index = 0
        while self._running:
            rgb = np.stack([(x + 3 * index) % 256, y, (x ^ y) % 256], -1).astype(np.uint8)
            self.hub.push_frame(OutputFrame(index, time.monotonic_ns(), rgb))
            index += 1
            time.sleep(1 / 30)

    async def viewer(self, codec: str = "H264", link: str | None = None, shared: bool = True) -> Receiver:
        """A connected aiortc peer behind the simulated ``link``."""
        stream = PeerStream(self.audience, shared, self.audio, LinkProfile.parse(link) if link else None)
        here, there = (RTCPeerConnection(RTCConfiguration(iceServers=[])) for _ in range(2))
        self._pcs += [there, here]
        transceiver = there.addTransceiver("video", direction="recvonly")
        codecs = RTCRtpReceiver.getCapabilities("video").codecs
        transceiver.setCodecPreferences([c for c in codecs if c.mimeType in (f"video/{codec}", "video/rtx")])
        await there.setLocalDescription(await there.createOffer())
        video = stream.add_video(here, "sendonly")
        await here.setRemoteDescription(RTCSessionDescription(there.localDescription.sdp, "offer"))
        answer = await here.createAnswer()
        stream.attach(video.sender, answer.sdp)
        await here.setLocalDescription(answer)
        await there.setRemoteDescription(RTCSessionDescription(here.localDescription.sdp, "answer"))
        return Receiver(transceiver.receiver, video.sender)


class Receiver:
    """A receiving peer that records the width and the time stamp (in seconds) of each frame."""

    def __init__(self, receiver: RTCRtpReceiver, sender: RTCRtpSender) -> None:
        self.receiver, self.sender = receiver, sender
        self.frames: list[tuple[int, float]] = []
        self._task = asyncio.create_task(self._receive())

    async def _receive(self) -> None:
        try:
            while True:
                frame: Any = await self.receiver.track.recv()
                self.frames.append((frame.width, frame.pts / CLOCK_RATE))
        except MediaStreamError:
            pass

    async def wait_for_frames(self, count: int) -> None:
        """Wait for ``count`` more frames."""
        end = len(self.frames) + count
        while len(self.frames) < end:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("codec", list(Codec))
def test_viewers_share_one_encode_and_are_not_disturbed_when_one_leaves(codec: Codec) -> None:
    async def scenario() -> None:
        async with Broadcast() as broadcast:
            sent: list[EncodedFrame] = []
            broadcast.hub.subscribe(Rendition(codec, broadcast.hub.tiers[0]), sent.append)
            receivers = [await broadcast.viewer(codec) for _ in range(3)]
            await asyncio.gather(*(receiver.wait_for_frames(20) for receiver in receivers))
            assert broadcast.audience.renditions()[f"{codec} 256@30"].viewers == 3
            await receivers[0].sender.stop()
            await asyncio.gather(*(receiver.wait_for_frames(20) for receiver in receivers[1:]))
            assert broadcast.audience.renditions()[f"{codec} 256@30"].viewers == 2
            broadcast.hub.stop()
            assert broadcast.hub.stats().encoded == len(sent)  # independent of the number of viewers

    run(scenario)


@pytest.mark.parametrize("codec", list(Codec))
def test_without_the_hooks_viewers_have_encoders_of_their_own(codec: Codec) -> None:
    """Each encodes on a thread: aiortc's VP8 encoders crash the process if two of them get the same frame."""

    async def scenario() -> None:
        async with Broadcast() as broadcast:
            receivers = [await broadcast.viewer(codec, shared=False) for _ in range(3)]
            await asyncio.gather(*(receiver.wait_for_frames(30) for receiver in receivers))
            assert {width for receiver in receivers for width, _ in receiver.frames} == {256}
            assert broadcast.audience.renditions() == {}

    run(scenario)


def test_many_keyframe_requests_are_answered_once_a_second() -> None:
    async def scenario() -> None:
        async with Broadcast() as broadcast:
            rendition, packets = Rendition(Codec.H264, broadcast.hub.tiers[0]), list[EncodedFrame]()
            receiver = await broadcast.viewer()
            await receiver.wait_for_frames(5)
            broadcast.hub.subscribe(rendition, packets.append)
            for _ in range(50):
                await receiver.receiver._send_rtcp_pli(receiver.sender._ssrc)
                await asyncio.sleep(0.05)
            keys = [p.packet.pts / CLOCK_RATE for p in packets if p.keyframe and p.packet.pts is not None]
            assert len(keys) >= 2
            assert min(b - a for a, b in pairwise(keys[1:])) >= LOSS_GAP_S - 0.001

    run(scenario)


def test_a_link_that_fails_does_not_disturb_other_viewers(monkeypatch: pytest.MonkeyPatch) -> None:
    # Only the link fails in this test; a busy machine must not make viewers drop packets.
    for module in ("audience", "tracks"):
        monkeypatch.setattr(f"telepresence.streaming.video.{module}.BACKLOG", 10_000)

    async def scenario() -> None:
        async with Broadcast() as broadcast:
            sent: list[EncodedFrame] = []
            well, dying = await broadcast.viewer(), await broadcast.viewer(link="rate=3000:2/0")
            await asyncio.gather(well.wait_for_frames(5), dying.wait_for_frames(5))
            broadcast.hub.subscribe(Rendition(Codec.H264, broadcast.hub.tiers[0]), sent.append)
            gone = 0
            while len(dying.frames) > gone:
                gone = len(dying.frames)
                await well.wait_for_frames(15)
            await well.wait_for_frames(30)
            paces = [b.packet.pts - a.packet.pts for a, b in pairwise(sent) if a.packet.pts and b.packet.pts]
            seen = [round((b - a) * CLOCK_RATE) % 2**32 for (_, a), (_, b) in pairwise(well.frames[-40:])]
            assert any(paces[i : i + 39] == seen for i in range(len(paces)))  # no frame is missing
            assert len(dying.frames) == gone
            assert sum(picture.keyframe for picture in sent) <= 3

    run(scenario)


def test_a_browser_continues_after_a_stall(chromium: Browser, studio_type: Callable[..., Any]) -> None:
    with studio_type(link="rate=3000:4/0:1/3000,queue=100") as studio:
        page = chromium.new_page()
        page.goto(studio.server.address)
        studio.watching(page)
        studio.until(
            lambda: studio.server.stream_stats().keyframes > 1
        )  # it lost one second of video, and requests a keyframe
        before = page.evaluate("window.__stats.frames")
        studio.until(lambda: page.evaluate("window.__stats.frames") > before + 20)
        page.close()


def test_a_browser_on_a_narrow_link_moves_to_a_lower_tier(chromium: Browser, studio_type: Callable[..., Any]) -> None:
    with studio_type(adapt=True, link="rate=90,delay=10") as studio:
        page = chromium.new_page()
        page.goto(studio.server.address)
        size = "document.getElementById('avatar').videoWidth"
        studio.until(lambda: page.evaluate(size) in (256, 384))
        (name,) = studio.server.stream_stats().renditions
        assert name in ("H264 256@15", "H264 384@20")
        before = page.evaluate("window.__stats.frames")
        studio.until(lambda: page.evaluate("window.__stats.frames") > before + 20)
        page.close()
