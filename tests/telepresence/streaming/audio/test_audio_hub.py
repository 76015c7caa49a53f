"""Audio of a microphone through real codecs and peer connections to viewers."""

from __future__ import annotations

import asyncio
import random
from fractions import Fraction
from typing import Any

import aiohttp
import av
import numpy as np
import pytest
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from telepresence.runtime.audio import RATE, AudioChunk
from telepresence.streaming.audio.audio_hub import OpusEncoder
from telepresence.streaming.audio.lipsync import BLOCK
from telepresence.streaming.audio.microphone import MicrophoneDecoder, SenderClock

SDP = {"Content-Type": "application/sdp"}
HERTZ = 700


def tone(start: int, count: int) -> np.ndarray:
    """(count, 2) int16: samples from number ``start`` of an endless tone."""
    wave = 9000 * np.sin(2 * np.pi * HERTZ * (start + np.arange(count)) / RATE)
    return np.stack([wave, wave], 1).astype(np.int16)


def pitch(samples: np.ndarray) -> float:
    """The strongest frequency in (N,) samples, Hz."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum)) * RATE / len(samples)


def opus(count: int) -> list[bytes]:
    encoder = OpusEncoder(64_000)
    return [bytes(encoder.encode(tone(i * BLOCK, BLOCK), i * BLOCK)) for i in range(count)]


# ---- decoder


def test_reordered_and_lost_packets_are_decoded_in_order() -> None:
    heard: list[AudioChunk] = []
    microphone = MicrophoneDecoder(heard.append)
    packets = [(65_500 + i & 0xFFFF, (2**32 - 9600 + i * BLOCK) & 0xFFFFFFFF, p) for i, p in enumerate(opus(100))]
    order = [*range(10), 11, 10, *range(12, 40), *range(41, 100), 40, 3]
    for position, number in enumerate(order):
        microphone.push_packet(*packets[number], arrived=50.0 + 0.02 * max(order[: position + 1]))
    assert len(heard) == 99  # one packet came too late, none was played twice
    times = np.diff([chunk.t_capture_ns for chunk in heard])
    assert (times > 0).all()
    assert np.median(times) == pytest.approx(20e6, rel=0.01)
    assert times.max() == pytest.approx(40e6, rel=0.01)
    voice = np.concatenate([chunk.samples for chunk in heard[-40:]])[:, 0].astype(float)
    assert pitch(voice) == pytest.approx(HERTZ, abs=3)
    assert voice.std() > 4000


def test_malformed_packets_do_not_break_the_microphone_decoder() -> None:
    heard: list[AudioChunk] = []
    microphone = MicrophoneDecoder(heard.append)
    rng = random.Random(0)
    for _ in range(400):
        microphone.push_packet(
            rng.randrange(1 << 16), rng.randrange(1 << 32), rng.randbytes(rng.choice([0, 1, 3, 200]))
        )
    assert len(microphone._waiting) <= 3
    heard.clear()
    for i, packet in enumerate(opus(20)):  # a valid stream is decoded afterwards
        microphone.push_packet(i, i * BLOCK, packet)
    assert len(heard) >= 17


def test_the_sender_clock_is_estimated_from_the_fastest_packets() -> None:
    rng = np.random.default_rng(0)
    clock, stamp, errors = SenderClock(), 2**32 - 5 * RATE, []
    for number in range(1500):  # 30 s; the sender's clock is 100 ppm slow, and its time stamps wrap
        sent = 1000.0 + 0.02 * number * 1.0001
        arrived = sent + 0.005 + rng.exponential(0.01)
        errors.append(clock.send_time((stamp + number * BLOCK) & 0xFFFFFFFF, arrived) - sent)
    settled = np.array(errors[100:])
    assert settled.min() > 0.003
    assert settled.max() < 0.009
    assert clock.send_time(12_345, 5000.0) == pytest.approx(5000.0)  # another stream


# ---- over the network


class Voice(MediaStreamTrack):
    """A microphone that records a tone."""

    kind = "audio"
    sent = 0
    began: float | None = None

    async def recv(self) -> av.AudioFrame:
        now = asyncio.get_running_loop().time()
        self.began = self.began or now
        await asyncio.sleep(max(0.0, self.began + self.sent / RATE - now))
        frame = av.AudioFrame.from_ndarray(tone(self.sent, BLOCK).reshape(1, -1), format="s16", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = RATE, self.sent, Fraction(1, RATE)
        self.sent += BLOCK
        return frame


class Camera(MediaStreamTrack):
    """Grey frames, ten a second."""

    kind = "video"
    sent = 0

    async def recv(self) -> av.VideoFrame:
        await asyncio.sleep(0.1)
        frame = av.VideoFrame.from_ndarray(np.full((96, 128, 3), 90, np.uint8), format="rgb24")
        frame.pts, frame.time_base = self.sent * 9000, Fraction(1, 90_000)
        self.sent += 1
        return frame


async def connect(address: str, path: str, *tracks: MediaStreamTrack) -> RTCPeerConnection:
    """A connected peer that sends ``tracks``; without tracks it receives video and audio."""
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    for track in tracks:
        pc.addTransceiver(track, direction="sendrecv" if path == "/call" else "sendonly")
    for kind in ("video", "audio") if not tracks else ():
        pc.addTransceiver(kind, direction="recvonly")
    await pc.setLocalDescription(await pc.createOffer())
    async with (
        aiohttp.ClientSession() as http,
        http.post(address.rstrip("/") + path, data=pc.localDescription.sdp, headers=SDP) as answer,
    ):
        text = await answer.text()
        assert answer.status == 201, text
        await pc.setRemoteDescription(RTCSessionDescription(text, "answer"))
    return pc


async def listen(pc: RTCPeerConnection, seconds: float = 0.5) -> np.ndarray:
    """(N,) audio that ``pc`` receives in some seconds, left and right averaged."""
    track = next(r.track for r in pc.getReceivers() if r.track.kind == "audio")
    blocks: list[np.ndarray] = []
    while sum(map(len, blocks)) < seconds * RATE:
        frame = await asyncio.wait_for(track.recv(), 120)
        blocks.append(frame.to_ndarray().reshape(-1, 2).mean(1))
    return np.concatenate(blocks)


async def listen_for_tone(pc: RTCPeerConnection) -> None:
    """Wait until ``pc`` receives half a second of the tone; on a busy machine there are gaps at first."""
    end = asyncio.get_running_loop().time() + 120.0
    while True:
        samples = await listen(pc)
        if pitch(samples) == pytest.approx(HERTZ, rel=0.02) and samples.std() > 3000:
            return
        assert asyncio.get_running_loop().time() < end, f"pitch {pitch(samples):.0f} Hz, level {samples.std():.0f}"


@pytest.mark.parametrize("path", ["/call", "/whip"])
def test_viewers_hear_the_microphone_of_the_camera_session(studio: Any, path: str) -> None:
    async def scenario() -> None:
        viewers = [await connect(studio.server.address, "/whep") for _ in range(2)]
        speaker = await connect(studio.server.address, path, Camera(), Voice())
        for viewer in viewers:
            await listen_for_tone(viewer)
        assert studio.audio.active == "microphone"
        for _ in range(6000):
            if studio.audio.delay_s is not None:
                break
            await asyncio.sleep(0.02)
        assert 0.0 < studio.audio.delay_s <= 0.5

        studio.audio.muted = True
        for _ in range(100):
            if (await listen(viewers[0], 0.1)).std() < 1:
                break
        assert (await listen(viewers[0])).std() < 1  # packets of silence
        studio.audio.muted = False
        await listen_for_tone(viewers[0])

        # The peer that sends the microphone receives no audio.
        directions = {t.kind: t.currentDirection for t in speaker.getTransceivers()}
        assert directions["audio"] == "sendonly"
        await asyncio.gather(*(pc.close() for pc in (*viewers, speaker)))

    asyncio.run(scenario())
    studio.until(lambda: studio.server._peers._peers == {})
    studio.until(lambda: studio.server._audio._callbacks == ())


def test_audio_of_a_microphone_is_also_sent_without_the_hooks(studio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        object.__setattr__(studio.server._peers._stream, "shared", False)
        viewer = await connect(studio.server.address, "/whep")
        speaker = await connect(studio.server.address, "/call", Camera(), Voice())
        await listen_for_tone(viewer)
        await asyncio.gather(viewer.close(), speaker.close())

    asyncio.run(scenario())


def test_a_viewer_cannot_send_audio(studio: Any) -> None:
    async def scenario() -> None:
        pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        pc.addTransceiver("video", direction="recvonly")
        pc.addTransceiver(Voice(), direction="sendrecv")
        await pc.setLocalDescription(await pc.createOffer())
        async with (
            aiohttp.ClientSession() as http,
            http.post(f"{studio.server.address}whep", data=pc.localDescription.sdp, headers=SDP) as answer,
        ):
            assert answer.status == 201
            await pc.setRemoteDescription(RTCSessionDescription(await answer.text(), "answer"))
        assert {t.kind: t.currentDirection for t in pc.getTransceivers()} == {"video": "recvonly", "audio": "recvonly"}
        await pc.close()

    asyncio.run(scenario())


def test_audio_of_a_source_is_sent_to_viewers_whose_offer_has_audio(studio: Any) -> None:
    async def scenario() -> None:
        silent = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        silent.addTransceiver("video", direction="recvonly")
        await silent.setLocalDescription(await silent.createOffer())
        async with (
            aiohttp.ClientSession() as http,
            http.post(f"{studio.server.address}whep", data=silent.localDescription.sdp, headers=SDP) as answer,
        ):
            assert "m=audio" not in await answer.text()
        await silent.close()

        viewer = await connect(studio.server.address, "/whep")
        hearing = asyncio.create_task(listen_for_tone(viewer))
        began = asyncio.get_running_loop().time()
        played = 0
        while not hearing.done():
            await asyncio.sleep(0.01)
            while played * BLOCK / RATE < asyncio.get_running_loop().time() - began + 0.2:  # a file is read ahead
                stamp = round(1e9 * (began + played * BLOCK / RATE))
                studio.audio.play_source(AudioChunk(stamp, tone(played * BLOCK, BLOCK)))
                played += 1
        await hearing
        assert studio.audio.active == "source"
        await viewer.close()

    asyncio.run(scenario())
