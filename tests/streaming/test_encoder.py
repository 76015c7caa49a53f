"""The encoder, its pace, and how its packets are handed out."""

from __future__ import annotations

import asyncio
import itertools
import re
import threading
import time
from dataclasses import replace
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telepresence.frames import ShownFrame
from telepresence.policy import POLICIES, Condition
from telepresence.streaming import StreamSettings
from telepresence.streaming.encoder import CLOCK_RATE, H264Encoder, to_yuv420p
from telepresence.streaming.hub import JOIN_GAP_S, EncodedPicture, EncoderHub, RawPicture
from telepresence.streaming.pacing import EARLY, Pacer
from telepresence.streaming.stats import StreamMeter
from telepresence.streaming.tracks import BACKLOG, PacketTrack, PictureTrack


def picture(index: int, size: int = 128) -> np.ndarray:
    y, x = np.mgrid[0:size, 0:size]
    return np.stack([(x + 5 * index) % 256, y, np.full_like(x, 90)], -1).astype(np.uint8)


def nal_types(data: bytes) -> list[int]:
    return [data[m.end()] & 31 for m in re.finditer(b"\0\0\1", data)]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.mean((a.astype(float) - b.astype(float)) ** 2))))


# ---- encoder


def test_stream_can_be_decoded_from_any_keyframe_and_resembles_the_source() -> None:
    encoder = H264Encoder(128, 30, 1_000_000, "superfast")
    packets = [encoder.encode(to_yuv420p(picture(i), 128), 3000 * i, i == 20) for i in range(30)]
    assert [i for i, p in enumerate(packets) if p.is_keyframe] == [0, 20]
    for i in (0, 20):
        types = nal_types(bytes(packets[i]))
        assert types[:2] == [7, 8]  # SPS, PPS
        assert 5 in types  # IDR
    sps = bytes(packets[0]).split(b"\0\0\1")[1]
    assert sps[1] == 66  # baseline, as the SDP promises
    assert sps[2] & 0x40  # and its constrained subset
    decoder = av.CodecContext.create("h264", "r")
    decoded = [f for p in packets[20:] for f in decoder.decode(av.Packet(bytes(p)))]
    assert len(decoded) == 10  # no picture is held back
    for i, frame in enumerate(decoded, start=20):
        assert psnr(frame.to_ndarray(format="rgb24"), picture(i)) > 30.0


def test_rate_and_the_burst_of_a_keyframe_are_bounded() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)
    encoder = H264Encoder(128, 30, 400_000, "superfast")
    sizes = [encoder.encode(to_yuv420p(np.roll(noise, 7 * i, 1), 128), 3000 * i, i == 60).size for i in range(90)]
    assert 8 * sum(sizes[30:]) / 2.0 < 1.3 * 400_000
    assert 8 * sizes[60] < 1.5 * 400_000 / 4


def test_other_sizes_are_scaled() -> None:
    frame = to_yuv420p(np.full((100, 60, 3), 200, np.uint8), 128)
    assert (frame.width, frame.height, frame.format.name) == (128, 128, "yuv420p")
    assert psnr(frame.to_ndarray(format="rgb24"), np.full((128, 128, 3), 200)) > 40.0


# ---- pace


@settings(max_examples=40, deadline=None)
@given(st.floats(5, 60), st.floats(2, 120), st.integers(0, 1000))
def test_pace_is_the_declared_one_whatever_the_source_does(fps: float, source: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrivals = sorted(((np.arange(200) + 0.5 + rng.uniform(0, 1) + rng.uniform(-0.4, 0.4, 200)) / source).tolist())
    pacer, now, fresh, sent, waits = Pacer(fps, 0.0), 0.0, False, 0, []
    pending = 0.0
    while arrivals:
        while arrivals and arrivals[0] <= now:
            pending, fresh = arrivals.pop(0), True
        wait = pacer.wait(fresh, now)
        if wait <= 0.0:
            if fresh:
                waits.append(now - pending)
            pacer.sent(now)
            sent, fresh = sent + 1, False
        elif arrivals:
            now = min(now + wait, arrivals[0])
    assert now * fps - 2.0 <= sent <= now * fps / (1.0 - EARLY) + 2.0
    assert max(waits, default=0.0) <= 1.0 / fps + 1e-6


def test_a_picture_in_an_unused_window_leaves_at_once() -> None:
    pacer = Pacer(30.0, 0.0)
    for i in range(30):
        now = (i + 0.4) / 30.0
        assert pacer.wait(True, now) == 0.0
        pacer.sent(now)
        assert pacer.wait(False, now) > 1.0 / 30.0


@pytest.mark.parametrize("source", [28.0, 30.0, 30.01, 31.0])
def test_a_source_of_about_the_declared_rate_is_never_held_back(source: float) -> None:
    pacer, opened = Pacer(30.0, 0.0), 0.0
    waits = []
    for i in range(200):
        arrival = (i + 0.5) / source
        while (opened + pacer.wait(False, opened)) < arrival:  # repeats in between
            opened += pacer.wait(False, opened)
            pacer.sent(opened)
        waits.append(pacer.wait(True, arrival))
        opened = arrival + waits[-1]
        pacer.sent(opened)
    assert max(waits[100:]) < 1e-3


def test_a_stall_is_not_made_up_for() -> None:
    pacer = Pacer(30.0, 0.0)
    pacer.sent(10.0)
    pacer.sent(10.0)
    assert pacer.wait(False, 10.0) > 0.0


def test_meter() -> None:
    meter = StreamMeter()
    for i in range(90):
        now = i / 30.0
        meter.issued(now)
        meter.encoded(now, 0.004, 0.02 if i % 2 else None, 1000, keyframe=i == 0)
    stats = meter.read(89 / 30.0)
    assert stats.fps == pytest.approx(30.0)
    assert (stats.latency_ms, stats.encode_ms, stats.encoded, stats.keyframes) == (20.0, 4.0, 90, 1)
    assert stats.kbps == pytest.approx(240.0, rel=0.05)
    assert meter.read(1000.0).latency_ms is None


# ---- hub


def running_hub() -> EncoderHub:
    hub = EncoderHub(StreamSettings(size=128))
    hub.start()
    return hub


def test_every_listener_gets_the_same_packets_and_a_keyframe_first() -> None:
    hub = running_hub()
    first: list[EncodedPicture] = []
    second: list[EncodedPicture] = []
    enough = threading.Event()
    try:
        hub.subscribe_packets(first.append)
        while len(first) < 10:
            hub.show(ShownFrame(len(first), time.monotonic_ns(), picture(len(first))))
            time.sleep(0.01)
        hub.subscribe_packets(lambda p: (second.append(p), enough.set() if len(second) > 20 else None))
        assert enough.wait(20.0)
    finally:
        hub.stop()
    assert first[0].keyframe
    start = next(i for i, p in enumerate(second) if p.keyframe)
    assert any(p.packet is second[start].packet for p in first)  # one encode for both
    pts = [p.packet.pts for p in first]
    assert all(b > a for a, b in itertools.pairwise(pts))


def test_keyframe_requests_merge() -> None:
    hub = running_hub()
    packets: list[EncodedPicture] = []
    try:
        hub.subscribe_packets(packets.append)
        end = time.monotonic() + 20.0
        while len(packets) < 40:
            hub.request_keyframe()
            hub.request_keyframe(JOIN_GAP_S)
            assert time.monotonic() < end
            time.sleep(0.002)
    finally:
        hub.stop()
    keys = [p.packet.pts / CLOCK_RATE for p in packets if p.keyframe]
    assert len(keys) >= 2
    assert all(b - a >= JOIN_GAP_S - 0.001 for a, b in itertools.pairwise(keys))


def test_nothing_is_encoded_for_nobody() -> None:
    hub = running_hub()
    raw: list[RawPicture] = []
    try:
        end = time.monotonic() + 20.0
        while hub.stats().fps == 0.0:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert hub.stats().encoded == 0
        hub.subscribe_pictures(raw.append)
        while not raw:
            assert time.monotonic() < end
            time.sleep(0.01)
        hub.unsubscribe(raw.append)
    finally:
        hub.stop()
    assert raw[0].yuv.shape == (192, 128)
    assert int(raw[0].yuv[:128].min()) > 16  # the first card is not black


# ---- tracks


class Feed:
    """A hub of which the test plays the encode thread."""

    def __init__(self) -> None:
        self.sinks: list[Any] = []
        self.requests = 0

    def subscribe_packets(self, sink: Any) -> None:
        self.sinks.append(sink)

    subscribe_pictures = subscribe_packets

    def unsubscribe(self, sink: Any) -> None:
        self.sinks.remove(sink)

    def request_keyframe(self) -> None:
        self.requests += 1


def packet(pts: int, keyframe: bool = False) -> EncodedPicture:
    made = av.Packet(b"\0\0\1\x65")
    made.pts, made.time_base = pts, Fraction(1, CLOCK_RATE)
    return EncodedPicture(made, keyframe)


def test_a_stalled_viewer_goes_on_at_the_next_keyframe() -> None:
    async def scenario() -> None:
        feed: Any = Feed()
        track = PacketTrack(feed)
        waiting = asyncio.create_task(track.recv())
        await asyncio.sleep(0)
        (sink,) = feed.sinks
        sink(packet(0))  # in the middle of a group: useless to it
        sink(packet(1, keyframe=True))
        assert (await waiting).pts == 1
        for pts in range(2, 2 + BACKLOG + 3):
            sink(packet(pts))
        await asyncio.sleep(0.01)
        assert feed.requests == 1
        sink(packet(50, keyframe=True))
        sink(packet(51))
        assert [(await track.recv()).pts for _ in range(2)] == [50, 51]
        track.stop()
        assert feed.sinks == []

    asyncio.run(scenario())


def test_each_viewer_with_its_own_encoder_gets_its_own_frame() -> None:
    async def scenario() -> None:
        feed: Any = Feed()
        tracks = [PictureTrack(feed) for _ in range(2)]
        waiting = [asyncio.create_task(track.recv()) for track in tracks]
        await asyncio.sleep(0)
        yuv = to_yuv420p(picture(3), 128).to_ndarray()
        for sink in feed.sinks:
            sink(RawPicture(yuv, 77))
        a, b = [await task for task in waiting]
        a.pict_type = av.video.frame.PictureType.I
        assert b.pict_type != av.video.frame.PictureType.I
        assert (a.pts, a.format.name) == (77, "yuv420p")
        np.testing.assert_array_equal(a.to_ndarray(), b.to_ndarray())

    asyncio.run(scenario())


# ---- what hangs and what raises


def hub_with_sink() -> tuple[EncoderHub, list[EncodedPicture]]:
    hub, packets = EncoderHub(StreamSettings(size=128, fps=30)), []
    hub.subscribe_packets(packets.append)
    hub.start()
    return hub, packets


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_an_encoder_that_raises_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    real = H264Encoder.encode
    broken = threading.Event()

    def encode(self: H264Encoder, *arguments: Any) -> Any:
        if broken.is_set():
            broken.clear()
            raise av.FFmpegError(1, "out of order")
        return real(self, *arguments)

    monkeypatch.setattr(H264Encoder, "encode", encode)
    hub, packets = hub_with_sink()
    try:
        wait_for(lambda: len(packets) > 3)
        broken.set()
        wait_for(lambda: not broken.is_set())
        before = len(packets)
        wait_for(lambda: len(packets) > before + 3)
        assert packets[before].keyframe
        health = hub.health(time.monotonic())
        assert (health.condition, health.restarts) == (Condition.RUNNING, 1)
        assert "out of order" in str(health.error)
    finally:
        hub.stop()


def test_an_encoder_that_hangs_is_replaced_and_says_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("telepresence.streaming.hub.ENCODE", replace(POLICIES["encode"], silent_s=0.5))
    real = H264Encoder.encode
    hangs, free = threading.Event(), threading.Event()

    def encode(self: H264Encoder, *arguments: Any) -> Any:
        if hangs.is_set():
            hangs.clear()
            free.wait(20.0)
        return real(self, *arguments)

    monkeypatch.setattr(H264Encoder, "encode", encode)
    hub, packets = hub_with_sink()
    try:
        wait_for(lambda: len(packets) > 3)
        hangs.set()
        wait_for(lambda: not hangs.is_set())
        before = len(packets)
        while hub.health(time.monotonic()).restarts == 0:
            hub.watch(time.monotonic())
            time.sleep(0.01)
        wait_for(lambda: len(packets) > before + 3)
        assert packets[before].keyframe
        free.set()
        after = len(packets)
        wait_for(lambda: len(packets) > after + 3)
        times = [encoded.packet.pts for encoded in packets]
        assert times == sorted(set(times))  # the one that hung has not sent its old picture
        assert [thread.name for thread in threading.enumerate()].count("encode") == 1
    finally:
        hub.stop()
