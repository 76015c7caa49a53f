"""WebRTC sessions: calls in both directions, cameras, and the removal of lost peers."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from fractions import Fraction
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import aiohttp
import av
import numpy as np
import pytest
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from telepresence.streaming.rtc import peers
from telepresence.streaming.rtc.peers import CONNECT_S, SILENCE_S, WATCHDOG_S, Peer
from tests.support.leftovers import Leftovers

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SDP = {"Content-Type": "application/sdp"}


class Camera(MediaStreamTrack):
    """Grey frames, 20 a second."""

    kind = "video"
    sent = 0

    async def recv(self) -> av.VideoFrame:
        await asyncio.sleep(0.05)
        frame = av.VideoFrame.from_ndarray(np.full((96, 128, 3), 90, np.uint8), format="rgb24")
        frame.pts, frame.time_base = self.sent * 4500, Fraction(1, 90000)
        self.sent += 1
        return frame


async def connect(address: str, path: str, camera: Camera | None = None) -> tuple[RTCPeerConnection, str]:
    """A connected peer of the daemon: its peer connection, and the path of its session."""
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    if camera is None:
        pc.addTransceiver("video", direction="recvonly")
    else:
        pc.addTransceiver(camera, direction="sendonly" if path == "/whip" else "sendrecv")
    await pc.setLocalDescription(await pc.createOffer())
    async with (
        aiohttp.ClientSession() as http,
        http.post(address.rstrip("/") + path, data=pc.localDescription.sdp, headers=SDP) as answer,
    ):
        assert answer.status == 201, await answer.text()
        await pc.setRemoteDescription(RTCSessionDescription(await answer.text(), "answer"))
        session = answer.headers["Location"]
    for _ in range(600):
        if pc.connectionState == "connected":
            return pc, session
        await asyncio.sleep(0.05)
    raise AssertionError(f"the peer is {pc.connectionState}")


def test_a_peer_is_lost_if_it_never_connected_or_is_silent() -> None:
    never: Any = SimpleNamespace(connectionState="connecting")
    peer = Peer(never, True, False, since=100.0)
    assert not peer.is_lost(100.0 + CONNECT_S - 1)
    assert peer.is_lost(100.0 + CONNECT_S + 1)

    there: Any = SimpleNamespace(connectionState="connected")
    peer = Peer(there, True, False, since=100.0)
    for packets in range(100):
        peer.update_silence(packets, WATCHDOG_S)
        assert not peer.is_lost(1e6)
    silent = 0.0
    while not peer.is_lost(1e6):
        peer.update_silence(99, WATCHDOG_S)
        silent += WATCHDOG_S
    assert silent == pytest.approx(SILENCE_S)
    peer.update_silence(100, WATCHDOG_S)
    assert not peer.is_lost(1e6)


def test_a_call_sends_and_receives_video_over_one_connection(studio: Any) -> None:
    async def scenario() -> None:
        pc, session = await connect(studio.server.address, "/call", Camera())
        frame = await asyncio.wait_for(pc.getReceivers()[0].track.recv(), 10)
        assert (frame.width, frame.height) == (512, 512)
        while not studio.camera_events:
            await asyncio.sleep(0.05)
        assert studio.camera_events == [True]
        assert studio.server.viewers == 1

        other = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        other.addTransceiver(Camera(), direction="sendrecv")
        await other.setLocalDescription(await other.createOffer())
        address = studio.server.address.rstrip("/")
        async with aiohttp.ClientSession() as http:
            answer = await http.post(f"{address}/call", data=other.localDescription.sdp, headers=SDP)
            assert answer.status == 409
            second, _ = await connect(address, "/call")  # a viewer without a camera is accepted
            assert (await http.delete(f"{address}{session}")).status == 200
            assert studio.camera_events == [True, False]
            again, _ = await connect(address, "/call", Camera())
        await asyncio.gather(pc.close(), other.close(), second.close(), again.close())

    asyncio.run(scenario())
    studio.until(lambda: studio.server._peers._peers == {})


def test_a_camera_that_pauses_in_a_call_ends_and_can_resume(studio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("telepresence.streaming.rtc.camera_receiver.SILENCE_S", 1.0)

    async def scenario() -> None:
        camera = Camera()
        pc, _ = await connect(studio.server.address, "/call", camera)
        sender = pc.getSenders()[0]
        for events in ([True], [True, False], [True, False, True]):
            sender.replaceTrack(None if len(events) == 2 else camera)
            while studio.camera_events != events:
                await asyncio.sleep(0.05)
        assert studio.server.viewers == 1
        await pc.close()

    asyncio.run(asyncio.wait_for(scenario(), 30))


@pytest.mark.parametrize("path", ["/whep", "/whip"])
def test_a_silent_peer_loses_its_session(studio: Any, path: str) -> None:
    """The network connection is cut: no packet arrives, and the session is not closed by the peer."""

    async def scenario() -> None:
        pc, _ = await connect(studio.server.address, path, Camera() if path == "/whip" else None)
        assert len(studio.server._peers._peers) == 1
        transport = pc.getTransceivers()[0].sender.transport.transport
        for protocol in transport._connection._protocols:
            protocol.transport.close()
        await asyncio.wait_for(asyncio.to_thread(studio.until, lambda: studio.server._peers._peers == {}), 120)
        await asyncio.wait([asyncio.ensure_future(pc.close())], timeout=1.0)

    asyncio.run(scenario())
    assert not studio.server.watched


def test_ended_sessions_leave_no_objects_threads_or_descriptors(studio: Any) -> None:
    async def once(path: str) -> None:
        pc, _ = await connect(studio.server.address, path, None if path == "/whep" else Camera())
        await pc.close()

    def ended() -> None:
        studio.until(lambda: studio.server._peers._peers == {} and not studio.server.watched)
        studio.until(lambda: own_threads() <= threads)

    def own_threads() -> int:
        return sum(
            not thread.name.startswith("asyncio_") for thread in threading.enumerate()
        )  # threads of a bounded pool

    threads = 1000
    left = Leftovers("Peer", "RTCPeerConnection", "RTCIceTransport", "ViewerStream", "VideoPacketTrack")
    asyncio.run(once("/call"))
    ended()
    threads, files = own_threads(), len(os.listdir("/proc/self/fd"))
    for path in ("/whep", "/whip", "/call") * 4:
        asyncio.run(once(path))
    ended()
    studio.until(lambda: len(left) <= 2, what=left)  # objects that the watchdog has used last
    assert len(os.listdir("/proc/self/fd")) <= files


def test_memory_is_released_when_the_last_peer_has_left(studio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(peers, "release_memory", lambda: given.append(len(studio.server._peers._peers)))

    async def stay() -> None:
        one, _ = await connect(studio.server.address, "/whep")
        other, _ = await connect(studio.server.address, "/whep")
        await one.close()
        await asyncio.to_thread(studio.until, lambda: len(studio.server._peers._peers) == 1)
        await asyncio.sleep(2.0 * peers.ALONE_S)
        assert given == [], "releasing memory would pause the video of the other viewer"
        await other.close()

    asyncio.run(stay())
    studio.until(lambda: given == [0])


def test_the_heap_is_trimmed_periodically(studio_type: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed: list[str] = []
    monkeypatch.setattr(peers, "TRIM_S", 0.5)
    monkeypatch.setattr(peers, "release_heap", lambda: trimmed.append(threading.current_thread().name))
    with studio_type() as studio:
        studio.until(lambda: len(trimmed) >= 2)
        assert all(name.startswith("asyncio_") for name in trimmed), "the event loop must not be blocked"


def test_the_session_of_a_killed_browser_ends(studio: Any, launch_chromium: Callable[..., Browser]) -> None:
    browser = launch_chromium()
    page = browser.new_page()
    page.goto(studio.server.address)
    studio.watching(page)
    processes = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
    (pid,) = (process["id"] for process in processes if process["type"] == "browser")
    os.kill(pid, signal.SIGKILL)
    studio.until(lambda: studio.server._peers._peers == {})
    assert not studio.server.watched
