"""The queue of received frames that wait for the decoder is bounded."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from typing import Any

import numpy as np
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpCodecParameters
from aiortc.codecs import get_decoder
from aiortc.jitterbuffer import JitterFrame

from telepresence.streaming.rtc import aiortc_hooks
from telepresence.streaming.rtc.aiortc_hooks import DECODER_QUEUE, MAX_UNDECODED
from telepresence.streaming.video.encoder import Converter, H264Encoder, Vp8Encoder

H264 = RTCRtpCodecParameters(mimeType="video/H264", clockRate=90_000, payloadType=96)
VP8 = RTCRtpCodecParameters(mimeType="video/VP8", clockRate=90_000, payloadType=97)


def frames(codec: RTCRtpCodecParameters, count: int, keyframes: tuple[int, ...]) -> list[JitterFrame]:
    encoder = H264Encoder(64, 30, 300_000) if codec is H264 else Vp8Encoder(64, 30, 300_000)
    made = []
    for number in range(count):
        frame = Converter().convert(np.full((64, 64, 3), 5 * number % 256, np.uint8), 64)
        made.append(JitterFrame(bytes(encoder.encode(frame, 3000 * number, number in keyframes)), 3000 * number))
    return made


@pytest.mark.parametrize("codec", [H264, VP8], ids=["H264", "VP8"])
def test_a_slow_decoder_drops_frames_up_to_the_next_keyframe(codec: RTCRtpCodecParameters) -> None:
    async def receiver_queue() -> tuple[queue.Queue[Any], threading.Event]:
        pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        receiver = pc.addTransceiver("video", direction="recvonly").receiver
        aiortc_hooks.limit_decoder_queue(receiver)
        await pc.close()
        found = getattr(receiver, DECODER_QUEUE)
        assert isinstance(found, queue.Queue)
        return found, getattr(receiver, aiortc_hooks.DECODER_ERROR)

    waiting, keyframe_requested = asyncio.run(receiver_queue())
    while not waiting.empty():
        waiting.get_nowait()
    sent = frames(codec, 60, (0, 50))
    for frame in sent[:MAX_UNDECODED]:
        waiting.put((codec, frame))
    assert not keyframe_requested.is_set()
    for frame in sent[MAX_UNDECODED:50]:  # the decoder takes none
        waiting.put((codec, frame))
        assert waiting.qsize() <= MAX_UNDECODED
    assert keyframe_requested.is_set()
    assert waiting.empty()
    for frame in sent[50:]:
        waiting.put((codec, frame))
    waiting.put(None)
    decoder, decoded = get_decoder(codec), 0
    while (item := waiting.get_nowait()) is not None:
        decoded += len(decoder.decode(item[1]))
    assert decoded == 10


def test_a_keyframe_is_requested_again(monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[float] = []
    waiting = aiortc_hooks._BoundedDecoderQueue(lambda: requests.append(now[0]))
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    later = frames(VP8, 2, (0,))[1]
    for _ in range(MAX_UNDECODED + 1):
        waiting.put((VP8, later))
    assert requests == [0.0]
    for _ in range(30):
        now[0] += 0.1
        waiting.put((VP8, later))
    assert len(requests) == 3
    assert waiting.empty()
    waiting.put(None)
    assert waiting.get_nowait() is None
