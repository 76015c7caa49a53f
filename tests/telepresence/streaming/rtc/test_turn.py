"""Media through a TURN server (coturn), with credentials that expire."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from telepresence.streaming.rtc.settings import IceSettings

SECRET = "between-daemon-and-turn"


@contextmanager
def turn_server(folder: Path) -> Iterator[str]:
    """Run coturn with credentials made from SECRET; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = (
        f"turnserver -n --no-cli --no-tls --no-dtls --listening-ip=127.0.0.1 --relay-ip=127.0.0.1"
        f" --listening-port={port} --allow-loopback-peers --use-auth-secret --static-auth-secret={SECRET}"
        f" --realm=test --log-file=stdout --pidfile={folder}/pid --userdb={folder}/db"
    )
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command.split(), stdout=log, stderr=log, cwd=folder)
    try:
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", port), 1.0).close()
                break
            except OSError:
                assert server.poll() is None, (folder / "log").read_text()
                time.sleep(0.1)
        yield f"turn:127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


async def watch(address: str) -> tuple[str, str, Any]:
    """The daemon's SDP answer, its Link header, and a received frame."""
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    pc.addTransceiver("video", direction="recvonly")
    await pc.setLocalDescription(await pc.createOffer())
    headers = {"Content-Type": "application/sdp"}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{address}whep", data=pc.localDescription.sdp, headers=headers) as response,
    ):
        answer = await response.text()
        link = response.headers.get("Link", "")
    await pc.setRemoteDescription(RTCSessionDescription(answer, "answer"))
    try:
        frame = await asyncio.wait_for(pc.getReceivers()[0].track.recv(), 15)
    finally:
        await pc.close()
    return answer, link, frame


@pytest.mark.skipif(shutil.which("turnserver") is None, reason="needs a TURN server: apt-get install coturn")
def test_frames_arrive_through_the_turn_relay_only(studio_type: type[Any], tmp_path: Path) -> None:
    with (
        turn_server(tmp_path) as turn,
        studio_type(ice=IceSettings(f"{turn}?transport=tcp", SECRET, 600, relay=True)) as studio,
    ):
        answer, link, frame = asyncio.run(watch(studio.server.address))
        candidates = [line for line in answer.splitlines() if line.startswith("a=candidate:")]
        assert candidates
        assert all(" typ relay" in line for line in candidates)
        assert frame.width == 512
        assert link.startswith(f'<{turn}?transport=tcp>; rel="ice-server"; username="')
        assert 'credential-type="password"' in link
        assert SECRET not in link
