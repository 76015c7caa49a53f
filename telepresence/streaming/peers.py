"""The peers of the daemon: who watches, who gives a camera, and when they are gone."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCRtpSender, RTCSessionDescription

from insta_runtime.errors import UserError
from telepresence.frames import CameraFrame
from telepresence.mailbox import Mailbox
from telepresence.streaming import aiortc_hooks
from telepresence.streaming.camera import CameraIntake
from telepresence.streaming.hub import EncoderHub
from telepresence.streaming.offer import first_video_codec
from telepresence.streaming.tracks import PacketTrack, PictureTrack

log = logging.getLogger(__name__)

CONNECT_S = 20.0  # from the answer to connected, at most
CLOSE_S = 5.0
VIEWER_SILENCE_S = 6.0  # browsers report on what they receive about once a second


class Full(UserError):
    """There is no room for another viewer now."""


class Taken(UserError):
    """Somebody else's camera is in use."""


@dataclass
class Peer:
    """One peer connection under the unguessable ``id`` that its owner knows it by."""

    pc: RTCPeerConnection
    watches: bool
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    since: float = field(default_factory=time.monotonic)
    heard: float = 0.0  # of the last RTCP packet; 0.0 while hearing is not possible
    intake: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        return bool(self.pc.connectionState == "connected")

    def hear(self) -> None:
        self.heard = time.monotonic()

    def gone(self, now: float) -> bool:
        """Whether this peer never came, or left without a word."""
        if not self.connected:
            return now - self.since > CONNECT_S
        return self.heard > 0.0 and now - self.heard > VIEWER_SILENCE_S


class Peers:
    """Answers offers and keeps the sessions; lives on the event loop of the network thread."""

    def __init__(
        self,
        hub: EncoderHub,
        limit: int,
        camera: Mailbox[CameraFrame],
        on_camera: Callable[[bool], None],
        shared: bool,
    ) -> None:
        """``limit`` viewers at most; ``shared``: viewers that speak H.264 get the packets of the hub."""
        self._hub = hub
        self._limit = limit
        self._camera = camera
        self._on_camera = on_camera
        self._shared = shared
        self._peers: dict[str, Peer] = {}

    @property
    def viewers(self) -> int:
        return sum(peer.watches and peer.connected for peer in tuple(self._peers.values()))

    async def watch(self, offer: str) -> tuple[str, str]:
        """Answer a viewer: (session id, SDP answer).  Full at the limit, UserError for an offer that does not fit."""
        if sum(peer.watches for peer in self._peers.values()) >= self._limit:
            raise Full(f"{self._limit} viewers are watching already; try again later")
        peer = self._admit(watches=True)
        transceiver = peer.pc.addTransceiver("video", direction="sendonly")
        first = "video/H264" if self._shared else "video/VP8"  # VP8 is the cheaper one to encode for each viewer
        codecs = RTCRtpSender.getCapabilities("video").codecs
        transceiver.setCodecPreferences(sorted(codecs, key=lambda codec: codec.mimeType != first))
        async with self._answering(peer, offer):
            answer = await peer.pc.createAnswer()
            shared = self._shared and first_video_codec(answer.sdp) == "H264"
            track: MediaStreamTrack = PacketTrack(self._hub) if shared else PictureTrack(self._hub)
            transceiver.sender.replaceTrack(track)
            if shared:
                aiortc_hooks.on_feedback(transceiver.sender, self._hub.request_keyframe, peer.hear)
            await peer.pc.setLocalDescription(answer)
        return peer.id, peer.pc.localDescription.sdp

    async def publish(self, offer: str) -> tuple[str, str]:
        """Take a camera: (session id, SDP answer).  Taken while another one is in use."""
        if any(not peer.watches for peer in self._peers.values()):
            raise Taken("another camera is in use; stop it first")
        peer = self._admit(watches=False)

        def on_track(track: MediaStreamTrack) -> None:
            if track.kind == "video":
                peer.intake = asyncio.create_task(self._take_camera(peer, track))

        peer.pc.on("track", on_track)
        async with self._answering(peer, offer):
            for transceiver in peer.pc.getTransceivers():
                if self._shared and transceiver.kind == "video":
                    aiortc_hooks.release_on_marker(transceiver.receiver)
            await peer.pc.setLocalDescription(await peer.pc.createAnswer())
        return peer.id, peer.pc.localDescription.sdp

    async def close(self, session: str) -> bool:
        """End a session; False when there is none of that id."""
        peer = self._peers.pop(session, None)
        if peer is None:
            return False
        if peer.intake is not None and peer.intake is not asyncio.current_task():
            peer.intake.cancel()
            await asyncio.wait([peer.intake])
        try:
            await asyncio.wait_for(peer.pc.close(), CLOSE_S)
        except TimeoutError:
            log.warning("a peer connection did not close within %g s", CLOSE_S)
        return True

    async def close_all(self) -> None:
        await asyncio.gather(*(self.close(session) for session in tuple(self._peers)))

    async def watchdog(self) -> None:
        """Close, once a second, the sessions whose peer is gone; runs until cancelled."""
        while True:
            await asyncio.sleep(1.0)
            now = time.monotonic()
            for session in [peer.id for peer in self._peers.values() if peer.gone(now)]:
                await self.close(session)

    def _admit(self, watches: bool) -> Peer:
        # Without the empty list aiortc asks Google's STUN server, and waits five seconds where that is unreachable.
        peer = Peer(RTCPeerConnection(RTCConfiguration(iceServers=[])), watches)
        self._peers[peer.id] = peer

        async def on_change() -> None:
            if peer.pc.connectionState in ("failed", "closed"):
                await self.close(peer.id)

        peer.pc.on("connectionstatechange", on_change)
        return peer

    @asynccontextmanager
    async def _answering(self, peer: Peer, offer: str) -> AsyncIterator[None]:
        """Apply ``offer``, then run the body; whatever goes wrong ends the session and is the offer's fault."""
        try:
            await peer.pc.setRemoteDescription(RTCSessionDescription(sdp=offer, type="offer"))
            yield
        except Exception as error:  # aiortc's parser raises anything on a malformed offer
            await self.close(peer.id)
            log.info("an offer was refused (%s)", type(error).__name__)
            raise UserError("the offer cannot be answered: no codec in common, or malformed SDP") from error
        except asyncio.CancelledError:
            await self.close(peer.id)
            raise

    async def _take_camera(self, peer: Peer, track: MediaStreamTrack) -> None:
        began = False

        def begin() -> None:
            nonlocal began
            began = True
            self._on_camera(True)

        try:
            await CameraIntake(track, self._camera, begin).run()
        finally:
            if began:
                self._on_camera(False)
        await self.close(peer.id)
