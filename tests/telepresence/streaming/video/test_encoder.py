"""Video encoders, frame pacing, statistics, and the encode thread."""

from __future__ import annotations

import itertools
import re
import threading
import time
from dataclasses import replace
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insta_runtime.errors import UserError
from telepresence.runtime.failure_policy import POLICIES, Condition
from telepresence.streaming import StreamSettings
from telepresence.streaming.video.encoder import (
    CLOCK_RATE,
    REOPEN,
    VBV_S,
    Codec,
    Converter,
    Encoder,
    H264Encoder,
    Vp8Encoder,
    nvenc_error,
    x264_error,
)
from telepresence.streaming.video.encoder_hub import JOIN_GAP_S, EncodedFrame, EncoderHub, RawFrame, Rendition
from telepresence.streaming.video.frame_pacer import EARLY, LATE, FramePacer
from telepresence.streaming.video.stats import StreamMeter


def picture(index: int, size: int = 128) -> np.ndarray:
    y, x = np.mgrid[0:size, 0:size]
    return np.stack([(x + 5 * index) % 256, y, np.full_like(x, 90)], -1).astype(np.uint8)


def nal_types(data: bytes) -> list[int]:
    return [data[m.end()] & 31 for m in re.finditer(b"\0\0\1", data)]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.mean((a.astype(float) - b.astype(float)) ** 2))))


def yuv(index: int, size: int = 128) -> av.VideoFrame:
    return Converter().convert(picture(index, size), size)


@pytest.fixture(params=["x264", "nvenc"])
def nvenc(request: pytest.FixtureRequest) -> bool:
    """Whether NVENC is used: the same must hold for both H.264 encoders."""
    if request.param == "nvenc" and (error := nvenc_error()) is not None:
        pytest.skip(f"NVENC does not work here: {error}")
    return bool(request.param == "nvenc")


# ---- encoder


def test_stream_can_be_decoded_from_any_keyframe_and_resembles_the_source(nvenc: bool) -> None:
    encoder = H264Encoder(256, 30, 2_000_000, "superfast", nvenc)
    packets = [encoder.encode(yuv(i, 256), 3000 * i, i == 20) for i in range(30)]
    assert [i for i, p in enumerate(packets) if p.is_keyframe] == [0, 20]
    for i in (0, 20):
        types = nal_types(bytes(packets[i]))
        assert types[:2] == [7, 8]  # SPS, PPS
        assert 5 in types  # IDR
    sps = bytes(packets[0]).split(b"\0\0\1")[1]
    assert sps[1] == 66  # baseline profile, as in the SDP
    assert nvenc or sps[2] & 0x40  # constrained baseline; NVENC does not set this flag
    decoder = av.CodecContext.create("h264", "r")
    decoded = [f for p in packets[20:] for f in decoder.decode(av.Packet(bytes(p)))]
    assert len(decoded) == 10  # no frame is delayed
    for i, frame in enumerate(decoded, start=20):
        assert psnr(frame.to_ndarray(format="rgb24"), picture(i, 256)) > 30.0


def noise(size: int) -> list[av.VideoFrame]:
    """Three frames of noise, which no encoder can predict."""
    rng = np.random.default_rng(0)
    return [Converter().convert(rng.integers(0, 256, (size, size, 3), dtype=np.uint8), size) for _ in range(3)]


def kbps(encoder: Encoder, fps: int, pictures: list[av.VideoFrame], keyframes: list[bool]) -> float:
    """Bitrate of ``encoder`` over the last two of three seconds, kbit/s."""
    sizes = []
    for i in range(3 * fps):
        packet = encoder.encode(pictures[i % 3], len(keyframes) * CLOCK_RATE // fps, keyframe=False)
        keyframes.append(packet.is_keyframe)
        sizes.append(packet.size)
    return 8e-3 * sum(sizes[fps:]) / 2.0


@pytest.mark.parametrize("fps", [15, 30])
def test_the_bitrate_changes_without_a_keyframe_and_holds_at_the_declared_frame_rate(nvenc: bool, fps: int) -> None:
    encoder, pictures, keyframes = H264Encoder(256, fps, 1_500_000, "superfast", nvenc), noise(256), list[bool]()
    for rate in (1500, 400, 1000, 5000):
        encoder.set_rate(1000 * rate)
        assert kbps(encoder, fps, pictures, keyframes) == pytest.approx(min(rate, 1500), rel=0.2)
    assert [i for i, keyframe in enumerate(keyframes) if keyframe] == [0]


def test_the_size_of_a_keyframe_is_bounded(nvenc: bool) -> None:
    encoder, pictures = H264Encoder(256, 30, 1_500_000, "superfast", nvenc), noise(256)
    sizes = [encoder.encode(pictures[i % 3], 3000 * i, i == 60).size for i in range(90)]
    assert 8 * sizes[60] < 1.5 * VBV_S * 1_500_000


def test_vp8_keeps_its_bitrate_and_is_reopened_for_another_one() -> None:
    encoder, keyframes = Vp8Encoder(256, 30, 1_500_000), list[bool]()
    pictures = [yuv(20 * i, 256) for i in range(3)]
    assert kbps(encoder, 30, pictures, keyframes) < 1800
    encoder.set_rate(round(1_500_000 / REOPEN) + 1)
    kbps(encoder, 30, pictures, keyframes)
    assert sum(keyframes) == 1
    encoder.set_rate(300_000)
    assert kbps(encoder, 30, pictures, keyframes) < 400
    assert [i for i, keyframe in enumerate(keyframes) if keyframe] == [0, 180]
    packet = encoder.encode(pictures[0], len(keyframes) * 3000, keyframe=True)
    assert packet.is_keyframe
    (frame,) = av.CodecContext.create("libvpx", "r").decode(av.Packet(bytes(packet)))
    assert psnr(frame.to_ndarray(format="rgb24"), picture(0, 256)) > 28.0


def test_other_sizes_are_scaled() -> None:
    converter = Converter()
    frame = converter.convert(np.full((100, 60, 3), 200, np.uint8), 128)
    assert (frame.width, frame.height, frame.format.name) == (128, 128, "yuv420p")
    assert psnr(frame.to_ndarray(format="rgb24"), np.full((128, 128, 3), 200)) > 40.0
    small = converter.shrink(converter.convert(picture(0, 256), 256), 128)
    assert psnr(small.to_ndarray(format="rgb24"), picture(0, 256).reshape(128, 2, 128, 2, 3).mean((1, 3))) > 30.0


def test_encoders_are_used_only_if_they_work() -> None:
    assert x264_error() is None
    error = nvenc_error()
    if error is None:
        assert EncoderHub(StreamSettings(encoder="auto")).stats().encoder == "nvenc"
    else:
        assert "\n" not in error
        assert EncoderHub(StreamSettings(encoder="auto")).stats().encoder == "x264"
        with pytest.raises(UserError, match="NVENC does not work"):
            EncoderHub(StreamSettings(encoder="nvenc"))


# ---- pace


@settings(max_examples=40, deadline=None)
@given(st.floats(5, 60), st.floats(2, 120), st.integers(0, 1000))
def test_the_frame_rate_is_the_declared_one_for_any_source(fps: float, source: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrivals = sorted(((np.arange(200) + 0.5 + rng.uniform(0, 1) + rng.uniform(-0.4, 0.4, 200)) / source).tolist())
    pacer, now, fresh, sent, waits = FramePacer(fps, 0.0), 0.0, False, 0, []
    pending = 0.0
    while arrivals:
        while arrivals and arrivals[0] <= now:
            pending, fresh = arrivals.pop(0), True
        wait = pacer.wait(fresh, now)
        if wait <= 0.0:
            if fresh:
                waits.append(now - pending)
            pacer.on_sent(now)
            sent, fresh = sent + 1, False
        elif arrivals:
            now = min(now + wait, arrivals[0])
    assert now * fps - 2.0 <= sent <= now * fps / (1.0 - EARLY) + 2.0
    assert max(waits, default=0.0) <= 1.0 / fps + 1e-6


def test_a_frame_in_an_unused_window_is_sent_at_once() -> None:
    pacer = FramePacer(30.0, 0.0)
    for i in range(30):
        now = (i + 0.4) / 30.0
        assert pacer.wait(True, now) == 0.0
        pacer.on_sent(now)
        assert pacer.wait(False, now) > 1.0 / 30.0


@pytest.mark.parametrize(("source", "held"), [(28.0, (1.0 - LATE) / 30.0), (30.0, 0.0), (30.01, 0.0), (31.0, 0.0)])
def test_a_source_of_about_the_declared_rate_is_hardly_delayed(source: float, held: float) -> None:
    pacer, opened = FramePacer(30.0, 0.0), 0.0
    waits = []
    for i in range(200):
        arrival = (i + 0.5) / source
        while (opened + pacer.wait(False, opened)) < arrival:  # repeated frames in between
            opened += pacer.wait(False, opened)
            pacer.on_sent(opened)
        waits.append(pacer.wait(True, arrival))
        opened = arrival + waits[-1]
        pacer.on_sent(opened)
    assert max(waits[100:]) < held + 1e-3


def test_the_gap_after_the_last_frame_of_a_source_is_short() -> None:
    pacer = FramePacer(30.0, 0.0)
    for i in range(30):
        pacer.on_sent(i / 30.0)
    assert pacer.wait(False, 29 / 30.0) == pytest.approx(1.75 / 30.0)


def test_frames_missed_in_a_stall_are_skipped() -> None:
    pacer = FramePacer(30.0, 0.0)
    pacer.on_sent(10.0)
    pacer.on_sent(10.0)
    assert pacer.wait(False, 10.0) > 0.0


def test_meter() -> None:
    meter = StreamMeter()
    for i in range(90):
        now = i / 30.0
        meter.count_sent(now)
        meter.count_encoded(now, 0.004, 0.02 if i % 2 else None, 1000, keyframe=i == 0)
    stats = meter.read(89 / 30.0)
    assert stats.fps == pytest.approx(30.0)
    assert (stats.latency_ms, stats.encode_ms, stats.encoded, stats.keyframes) == (20.0, 4.0, 90, 1)
    assert stats.kbps == pytest.approx(240.0, rel=0.05)
    assert meter.read(1000.0).latency_ms is None


# ---- hub


def running_hub(**settings: Any) -> EncoderHub:
    hub = EncoderHub(StreamSettings(**{"size": 128, **settings}))
    hub.start()
    return hub


def best(hub: EncoderHub, codec: Codec = Codec.H264) -> Rendition:
    return Rendition(codec, hub.tiers[0])


def test_all_subscribers_get_the_same_packets_and_a_keyframe_first() -> None:
    hub = running_hub()
    first: list[EncodedFrame] = []
    second: list[EncodedFrame] = []
    enough = threading.Event()
    try:
        hub.subscribe(best(hub), first.append)
        wait_for(lambda: len(first) >= 10)
        hub.subscribe(best(hub), lambda p: (second.append(p), enough.set() if len(second) > 20 else None))
        assert enough.wait(120.0)
    finally:
        hub.stop()
    assert first[0].keyframe
    start = next(i for i, p in enumerate(second) if p.keyframe)
    assert any(p.packet is second[start].packet for p in first)  # the same packet for both
    pts = [p.packet.pts for p in first]
    assert all(b > a for a, b in itertools.pairwise(pts))


def test_each_tier_is_encoded_at_its_frame_rate_and_only_while_it_has_subscribers() -> None:
    hub = running_hub(size=256)
    got: dict[Rendition, list[EncodedFrame]] = {}
    renditions = [Rendition(Codec.H264, tier) for tier in hub.tiers] + [best(hub, Codec.VP8)]
    try:
        for rendition in renditions:
            hub.subscribe(rendition, got.setdefault(rendition, []).append)
        wait_for(lambda: min(map(len, got.values())) >= 30)
        for rendition in renditions:
            hub.unsubscribe(rendition, got[rendition].append)
        wait_for(lambda: hub.stats().fps > 0 and not hub.watched)
        before = hub.stats().encoded
        wait_for(lambda: hub.stats().kbps == 0.0)  # two seconds later
        assert hub.stats().encoded <= before + len(renditions)
    finally:
        hub.stop()
    for rendition, packets in got.items():
        assert packets[0].keyframe
        decoder = av.CodecContext.create("h264" if rendition.codec is Codec.H264 else "libvpx", "r")
        decoded = [frame for p in packets for frame in decoder.decode(av.Packet(bytes(p.packet)))]
        assert {(frame.width, frame.height) for frame in decoded} == {(rendition.tier.size, rendition.tier.size)}
    pace = {rendition: len(packets) / len(got[renditions[0]]) for rendition, packets in got.items()}
    assert [round(pace[rendition], 1) for rendition in renditions[1:]] == pytest.approx(
        [2 / 3, 2 / 3, 1 / 2, 1.0], abs=0.1
    )
    assert {p.packet.pts for p in got[renditions[1]][:-1]} <= {p.packet.pts for p in got[renditions[0]]}


def test_keyframe_requests_merge() -> None:
    hub = running_hub()
    packets: list[EncodedFrame] = []
    try:
        hub.subscribe(best(hub), packets.append)
        end = time.monotonic() + 120.0
        while len(packets) < 40:
            hub.request_keyframe(best(hub))
            hub.request_keyframe(best(hub), JOIN_GAP_S)
            assert time.monotonic() < end
            time.sleep(0.002)
    finally:
        hub.stop()
    keys = [p.packet.pts / CLOCK_RATE for p in packets if p.keyframe]
    assert len(keys) >= 2
    assert all(b - a >= JOIN_GAP_S - 0.001 for a, b in itertools.pairwise(keys))


def test_nothing_is_encoded_without_subscribers() -> None:
    hub = running_hub()
    raw: list[RawFrame] = []
    try:
        wait_for(lambda: hub.stats().fps > 0.0)
        assert hub.stats().encoded == 0
        assert not hub.watched
        hub.subscribe_raw(raw.append)
        wait_for(lambda: raw)
        hub.unsubscribe_raw(raw.append)
        assert not hub.watched
    finally:
        hub.stop()
    assert raw[0].yuv.shape == (192, 128)
    assert int(raw[0].yuv[:128].min()) > 16  # the blank frame is not black


# ---- failures


def hub_with_sink() -> tuple[EncoderHub, list[EncodedFrame]]:
    hub, packets = EncoderHub(StreamSettings(size=128, fps=30)), []
    hub.subscribe(best(hub), packets.append)
    hub.start()
    return hub, packets


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 120.0
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_an_encoder_that_raises_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    real = H264Encoder.encode
    broken = threading.Event()
    counts: list[int] = []  # packets at the moment of the failure

    def encode(self: H264Encoder, *arguments: Any) -> Any:
        if broken.is_set():
            broken.clear()
            counts.append(len(packets))
            raise av.FFmpegError(1, "out of order")
        return real(self, *arguments)

    monkeypatch.setattr(H264Encoder, "encode", encode)
    hub, packets = hub_with_sink()
    try:
        wait_for(lambda: len(packets) > 3)
        broken.set()
        wait_for(lambda: counts)
        (before,) = counts
        wait_for(lambda: len(packets) > before + 3)
        assert packets[before].keyframe
        health = hub.health(time.monotonic())
        assert (health.condition, health.restarts) == (Condition.RUNNING, 1)
        assert "out of order" in str(health.error)
    finally:
        hub.stop()


def test_an_encoder_that_hangs_is_replaced_and_sends_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("telepresence.streaming.video.encoder_hub.ENCODE", replace(POLICIES["encode"], silent_s=0.5))
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
            hub.supervise(time.monotonic())
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
