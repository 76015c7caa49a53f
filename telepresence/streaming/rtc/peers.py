"""WebRTC sessions of the daemon: viewers, browser cameras and calls; admission, answers, and removal of lost peers."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Final

from aiortc import MediaStreamTrack, RTCPeerConnection, RTCSessionDescription

from insta_runtime.errors import UserError
from telepresence.runtime.memory import release_heap, release_memory
from telepresence.runtime.ownership import any_thread, owned_by
from telepresence.streaming.audio.microphone import MicrophoneDecoder
from telepresence.streaming.daemon_interface import DaemonInterface
from telepresence.streaming.rtc import aiortc_hooks
from telepresence.streaming.rtc.camera_receiver import CameraReceiver
from telepresence.streaming.rtc.data_channels import LandmarkPacket, PageChannels
from telepresence.streaming.rtc.ice import IceServers
from telepresence.streaming.rtc.offer import Offer
from telepresence.streaming.rtc.peer_stream import PeerStream
from telepresence.streaming.rtc.video_formats import as_baseline, as_offered, check_codecs

log = logging.getLogger(__name__)

CONNECT_S: Final = 15.0
"""Seconds from the SDP answer within which a peer must be connected."""
CLOSE_S: Final = 5.0
"""Maximum number of seconds that closing a peer connection may take."""
MAX_BUFFERED: Final = 256 * 1024
"""Maximum number of bytes buffered for incomplete messages on data channels of one peer; a landmark packet has 3 kB."""
MAX_CHANNELS: Final = 8
"""Maximum number of data channels of one peer."""
WATCHDOG_S: Final = 0.25
"""Seconds between two checks of all peers."""
TRIM_S: Final = 60.0
"""Seconds between two trims of the heap."""
ALONE_S: Final = 1.0
"""Seconds without any peer after which the memory of former peers is returned to the system."""
SILENCE_S: Final = 2.5
"""Seconds without any packet after which a connected peer counts as lost.

A receiver sends reports about once a second, a sender sends media all the time.
"""


class TooManyViewers(UserError):
    """The maximum number of viewers is connected."""


class CameraInUse(UserError):
    """Another peer's camera is in use."""


@dataclass
class Peer:
    """State of one peer connection, identified by a random ``id`` that only its owner knows."""

    pc: RTCPeerConnection
    is_viewer: bool
    sends_camera: bool
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    since: float = field(default_factory=time.monotonic)
    was_connected: bool = False
    camera_task: asyncio.Task[None] | None = None
    camera: CameraReceiver | None = None
    microphone_task: asyncio.Task[None] | None = None  # ends with its track
    packets: int = 0  # received from this peer so far
    silent_s: float = 0.0  # since the last packet

    @property
    def connected(self) -> bool:
        """Whether the connection is made."""
        return bool(self.pc.connectionState == "connected")

    def update_silence(self, packets: int, passed_s: float) -> None:
        """Note the number of ``packets`` received so far, ``passed_s`` seconds after the last update.

        Silence is the sum of these intervals, not a difference of times: while the process is suspended no packet can
        be received, and that must not count.
        """
        self.silent_s = 0.0 if packets != self.packets or not self.connected else self.silent_s + passed_s
        self.packets = packets

    def is_lost(self, now: float) -> bool:
        """Whether this peer has not connected in time, or is silent for too long.  ``now``: monotonic seconds."""
        if not self.connected:
            return now - self.since > CONNECT_S
        return self.silent_s >= SILENCE_S


@owned_by("network")
class Peers:
    """All WebRTC sessions: answers SDP offers and closes sessions; used on the event loop of the network thread."""

    def __init__(self, stream: PeerStream, max_viewers: int, daemon: DaemonInterface, ice: IceServers) -> None:
        self._stream = stream
        self._max_viewers = max_viewers
        self._daemon = daemon
        self._ice = ice
        self._peers: dict[str, Peer] = {}
        self._failed: tuple[int, str | None] = (0, None)
        self._closed_at: float | None = None  # time of the last close, until its memory was returned to the system

    @property
    @any_thread
    def viewers(self) -> int:
        """Number of connected viewers; any thread."""
        return sum(peer.is_viewer and peer.connected for peer in tuple(self._peers.values()))

    @property
    @any_thread
    def failed(self) -> tuple[int, str | None]:
        """Number of peers that could not connect, and the reason of the last one; any thread."""
        return self._failed

    async def answer_viewer(self, offer: Offer) -> tuple[str, str]:
        """Open the session of a viewer; returns its id and the SDP answer.

        Raises TooManyViewers at the maximum, UserError for an offer that does not fit.
        """
        if not offer.receives_video:
            raise UserError("the video section of the offer must be a=recvonly")
        check_codecs(offer.sdp, sends_video=False)
        return await self._answer(self._admit(is_viewer=True, sends_camera=False), offer)

    async def answer_camera(self, offer: Offer) -> tuple[str, str]:
        """Open the session of a browser's camera; returns its id and the SDP answer.

        Raises CameraInUse if there is one already, UserError for an offer that does not fit.
        """
        if not offer.sends_video:
            raise UserError("the video section of the offer must be a=sendonly")
        check_codecs(offer.sdp, sends_video=True)
        plain = replace(offer, sdp=as_baseline(offer.sdp))
        session, answer = await self._answer(self._admit(is_viewer=False, sends_camera=True), plain)
        return session, as_offered(answer, offer.sdp)

    async def answer_call(self, offer: Offer) -> tuple[str, str]:
        """Open a session that views the avatar and may send a camera; returns its id and the SDP answer.

        Raises TooManyViewers or CameraInUse, and UserError for an offer that does not fit.
        """
        if not offer.receives_video:
            raise UserError("the video section of the offer must be a=sendrecv, or a=recvonly without a camera")
        return await self._answer(self._admit(is_viewer=True, sends_camera=offer.sends_video), offer)

    async def close(self, session: str) -> bool:
        """End the session of that id; returns False if there is none."""
        peer = self._peers.pop(session, None)
        if peer is None:
            return False
        if peer.camera_task is not None and peer.camera_task is not asyncio.current_task():
            peer.camera_task.cancel()
            await asyncio.wait([peer.camera_task])
        await close_connection(peer.pc)
        self._closed_at = time.monotonic()
        return True

    async def close_all(self) -> None:
        """End all sessions."""
        await asyncio.gather(*(self.close(session) for session in tuple(self._peers)))

    async def watchdog(self) -> None:
        """Close the sessions of peers that are lost or use too much memory; runs until it is cancelled."""
        trimmed = time.monotonic()
        while True:
            await asyncio.sleep(WATCHDOG_S)
            if time.monotonic() - trimmed > TRIM_S:
                trimmed = time.monotonic()
                await asyncio.to_thread(release_heap)
            if self._closed_at is not None and not self._peers and time.monotonic() - self._closed_at > ALONE_S:
                self._closed_at = None
                release_memory()
            for peer in tuple(self._peers.values()):
                peer.update_silence(await packets_received(peer.pc), WATCHDOG_S)
                if peer.is_lost(time.monotonic()):
                    if peer.was_connected:
                        log.info("a peer no longer sends anything; its session is closed")
                    else:
                        self._note_failure(peer)
                    await self.close(peer.id)
                elif _uses_too_much_memory(peer.pc):
                    log.warning("a peer uses too much memory for its data channels; its session is closed")
                    await self.close(peer.id)

    def _admit(self, is_viewer: bool, sends_camera: bool) -> Peer:
        if is_viewer and sum(peer.is_viewer for peer in self._peers.values()) >= self._max_viewers:
            raise TooManyViewers(f"the maximum of {self._max_viewers} viewers is connected; try again later")
        if sends_camera and any(peer.sends_camera for peer in self._peers.values()):
            raise CameraInUse("another camera is in use; stop it first")
        peer = Peer(RTCPeerConnection(self._ice.configuration()), is_viewer, sends_camera)
        self._peers[peer.id] = peer

        async def on_change() -> None:
            peer.was_connected = peer.was_connected or peer.connected
            if peer.pc.connectionState in ("failed", "closed"):
                if peer.pc.connectionState == "failed" and not peer.was_connected:
                    self._note_failure(peer)
                await self.close(peer.id)

        def on_track(track: MediaStreamTrack) -> None:
            if track.kind == "video" and peer.sends_camera:
                peer.camera_task = asyncio.create_task(self._receive_camera(peer, track))
            elif track.kind == "audio" and peer.sends_camera and not self._stream.shared:
                peer.microphone_task = asyncio.create_task(self._microphone().drain(track))

        def on_landmarks(packet: LandmarkPacket) -> None:
            if peer.camera is not None:
                peer.camera.push_landmarks(packet)

        peer.pc.on("connectionstatechange", on_change)
        peer.pc.on("datachannel", PageChannels(self._daemon, on_landmarks if sends_camera else None).open)
        peer.pc.on("track", on_track)
        return peer

    def _note_failure(self, peer: Peer) -> None:
        """Count and log a peer that could not connect."""
        reason = aiortc_hooks.connection_failure(peer.pc)
        self._failed = self._failed[0] + 1, reason
        who = "viewer" if peer.is_viewer else "camera"
        fields = {"peer": who, "error": reason}
        log.warning(
            "a %s could not connect: %s",
            who,
            reason,
            extra={"event": "error", "stage": "network", "fields": fields},
        )

    def _microphone(self) -> MicrophoneDecoder:
        return MicrophoneDecoder(self._daemon.audio.play_microphone)

    async def _answer(self, peer: Peer, offer: Offer) -> tuple[str, str]:
        async with self._closing_on_error(peer):
            video = None
            if peer.is_viewer:
                video = self._stream.add_video(peer.pc, "sendrecv" if peer.sends_camera else "sendonly")
            if offer.has_opus:  # a peer that sends its microphone does not receive it
                self._stream.add_audio(peer.pc, "recvonly" if peer.sends_camera else "sendonly")
            await peer.pc.setRemoteDescription(RTCSessionDescription(sdp=offer.sdp, type="offer"))
            if peer.sends_camera and self._stream.shared:
                for transceiver in peer.pc.getTransceivers():
                    if transceiver.kind == "video":
                        aiortc_hooks.decode_on_marker(transceiver.receiver)
                        aiortc_hooks.limit_decoder_queue(transceiver.receiver)
                    else:
                        aiortc_hooks.set_packet_callback(transceiver.receiver, self._microphone().push_packet)
            answer = await peer.pc.createAnswer()
            if video is not None:
                self._stream.attach(video.sender, answer.sdp)
            await peer.pc.setLocalDescription(answer)
        return peer.id, peer.pc.localDescription.sdp

    @asynccontextmanager
    async def _closing_on_error(self, peer: Peer) -> AsyncIterator[None]:
        """Close the session if the body raises, and turn the exception into a UserError about the offer."""
        try:
            yield
        except Exception as error:  # aiortc's parser raises exceptions of any type on a malformed offer
            await self.close(peer.id)
            log.info("an SDP offer was refused (%s)", type(error).__name__)
            raise UserError("the offer cannot be answered: no codec in common, or malformed SDP") from error
        except asyncio.CancelledError:
            await self.close(peer.id)
            raise

    async def _receive_camera(self, peer: Peer, track: MediaStreamTrack) -> None:
        """Receive frames of ``track`` until it ends; that also ends a session which only sends a camera."""
        active = False

        def on_first() -> None:
            nonlocal active
            active = True
            self._daemon.on_browser_camera(True)

        while track.readyState == "live":
            try:
                peer.camera = CameraReceiver(track, self._daemon.camera, on_first)
                await peer.camera.run()
            finally:
                if active:
                    active = False
                    self._daemon.on_browser_camera(False)
            if not peer.is_viewer:
                break
        if not peer.is_viewer:
            await self.close(peer.id)


def _uses_too_much_memory(pc: RTCPeerConnection) -> bool:
    return aiortc_hooks.buffered_bytes(pc) > MAX_BUFFERED or aiortc_hooks.inbound_streams(pc) > MAX_CHANNELS


async def packets_received(pc: RTCPeerConnection) -> int:
    """Number of RTP and RTCP packets received over ``pc`` so far."""
    for transceiver in pc.getTransceivers():
        for report in (await transceiver.sender.getStats()).values():
            if report.type == "transport":
                return int(report.packetsReceived)
    return 0


async def close_connection(pc: RTCPeerConnection) -> None:
    """Close ``pc`` in any state, within `CLOSE_S`; never raises."""
    try:
        await asyncio.wait_for(pc.close(), CLOSE_S)
    except TimeoutError:
        log.warning("a peer connection did not close within %g s", CLOSE_S)
    except Exception:  # aiortc's close fails half way if a malformed offer left a section without its transport
        for transceiver in pc.getTransceivers():
            if (transport := transceiver.receiver.transport) is not None:
                await transport.stop()
                await transport.transport.stop()
        pc.remove_all_listeners()
