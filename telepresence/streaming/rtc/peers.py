"""The peers of the daemon: who watches, who gives a camera, and when they are gone."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiortc import MediaStreamTrack, RTCPeerConnection, RTCSessionDescription

from insta_runtime.errors import UserError
from telepresence.runtime.memory import give_back, trim
from telepresence.streaming.audio.microphone import Microphone
from telepresence.streaming.hooks import StreamHooks
from telepresence.streaming.rtc import aiortc_hooks
from telepresence.streaming.rtc.camera_intake import CameraIntake
from telepresence.streaming.rtc.data_channels import PageChannels, Withheld
from telepresence.streaming.rtc.ice import IceServers
from telepresence.streaming.rtc.offer import Offer
from telepresence.streaming.rtc.peer_stream import Feed

log = logging.getLogger(__name__)

CONNECT_S = 15.0  # from the answer to connected, at most
CLOSE_S = 5.0
MAX_HOARD = 256 * 1024  # bytes of messages without an end; a packet of landmarks has 3 kB
MAX_CHANNELS = 8
LOOK_S = 0.25
TRIM_S = 60.0  # between two trims of the heap
ALONE_S = 1.0  # without any peer, until the memory of those who left is given back
SILENCE_S = 2.5  # who receives reports on it about once a second, who sends is heard all the time


class Full(UserError):
    """There is no room for another viewer now."""


class Taken(UserError):
    """Somebody else's camera is in use."""


@dataclass
class Peer:
    """One peer connection under the unguessable ``id`` that its owner knows it by."""

    pc: RTCPeerConnection
    watches: bool
    gives: bool
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    since: float = field(default_factory=time.monotonic)
    intake: asyncio.Task[None] | None = None
    camera: CameraIntake | None = None
    ear: asyncio.Task[None] | None = None  # ends with its track
    packets: int = 0  # that came from it
    quiet_s: float = 0.0  # since one came

    @property
    def connected(self) -> bool:
        return bool(self.pc.connectionState == "connected")

    def look(self, packets: int, passed_s: float) -> None:
        """So many packets came so far, ``passed_s`` seconds after the last look.

        Looks are counted, not the clock: while this process stood still, nobody can have been heard.
        """
        self.quiet_s = 0.0 if packets != self.packets or not self.connected else self.quiet_s + passed_s
        self.packets = packets

    def gone(self, now: float) -> bool:
        """Whether this peer never came, or left without a word."""
        if not self.connected:
            return now - self.since > CONNECT_S
        return self.quiet_s >= SILENCE_S


class Peers:
    """Answers offers and keeps the sessions; lives on the event loop of the network thread."""

    def __init__(self, feed: Feed, limit: int, hooks: StreamHooks, ice: IceServers) -> None:
        """``limit`` viewers at most."""
        self._feed = feed
        self._limit = limit
        self._hooks = hooks
        self._ice = ice
        self._peers: dict[str, Peer] = {}
        self._left_at: float | None = None  # when somebody did last, while what they left is still held

    @property
    def viewers(self) -> int:
        return sum(peer.watches and peer.connected for peer in tuple(self._peers.values()))

    async def watch(self, offer: Offer) -> tuple[str, str]:
        """Answer a viewer: (session id, SDP answer).

        Full at the limit, UserError for an offer that does not fit; so with `publish` and `call`.
        """
        if not offer.takes:
            raise UserError("the video section of the offer must be a=recvonly")
        return await self._answer(self._admit(watches=True, gives=False), offer)

    async def publish(self, offer: Offer) -> tuple[str, str]:
        """Take a camera.  Taken while another one is in use."""
        if not offer.gives:
            raise UserError("the video section of the offer must be a=sendonly")
        return await self._answer(self._admit(watches=False, gives=True), offer)

    async def call(self, offer: Offer) -> tuple[str, str]:
        """Both ways over one connection; an offer that gives no pictures is a call without a camera."""
        if not offer.takes:
            raise UserError("the video section of the offer must be a=sendrecv, or a=recvonly without a camera")
        return await self._answer(self._admit(watches=True, gives=offer.gives), offer)

    async def close(self, session: str) -> bool:
        """End a session; False when there is none of that id."""
        peer = self._peers.pop(session, None)
        if peer is None:
            return False
        if peer.intake is not None and peer.intake is not asyncio.current_task():
            peer.intake.cancel()
            await asyncio.wait([peer.intake])
        await end(peer.pc)
        self._left_at = time.monotonic()
        return True

    async def close_all(self) -> None:
        await asyncio.gather(*(self.close(session) for session in tuple(self._peers)))

    async def watchdog(self) -> None:
        """Close the sessions whose peer is gone, or fills the memory; runs until cancelled."""
        trimmed = time.monotonic()
        while True:
            await asyncio.sleep(LOOK_S)
            if time.monotonic() - trimmed > TRIM_S:
                trimmed = time.monotonic()
                await asyncio.to_thread(trim)
            if self._left_at is not None and not self._peers and time.monotonic() - self._left_at > ALONE_S:
                self._left_at = None
                give_back()
            for peer in tuple(self._peers.values()):
                peer.look(await received(peer.pc), LOOK_S)
                if peer.gone(time.monotonic()):
                    log.info("a peer is gone without a word; its session has ended")
                    await self.close(peer.id)
                elif aiortc_hooks.hoard(peer.pc) > MAX_HOARD or aiortc_hooks.channels(peer.pc) > MAX_CHANNELS:
                    log.warning("a peer fills the memory over its data channels; its session has ended")
                    await self.close(peer.id)

    def _admit(self, watches: bool, gives: bool) -> Peer:
        if watches and sum(peer.watches for peer in self._peers.values()) >= self._limit:
            raise Full(f"{self._limit} viewers are watching already; try again later")
        if gives and any(peer.gives for peer in self._peers.values()):
            raise Taken("another camera is in use; stop it first")
        peer = Peer(RTCPeerConnection(self._ice.configuration()), watches, gives)
        self._peers[peer.id] = peer

        async def on_change() -> None:
            if peer.pc.connectionState in ("failed", "closed"):
                await self.close(peer.id)

        def on_track(track: MediaStreamTrack) -> None:
            if track.kind == "video" and peer.gives:
                peer.intake = asyncio.create_task(self._take_camera(peer, track))
            elif track.kind == "audio" and peer.gives and not self._feed.shared:
                peer.ear = asyncio.create_task(Microphone(self._hooks.sound.speak).drain(track))

        def take(withheld: Withheld) -> None:
            if peer.camera is not None:
                peer.camera.take(withheld)

        peer.pc.on("connectionstatechange", on_change)
        peer.pc.on("datachannel", PageChannels(self._hooks.controls, take if gives else None).open)
        peer.pc.on("track", on_track)
        return peer

    async def _answer(self, peer: Peer, offer: Offer) -> tuple[str, str]:
        async with self._refusing(peer):
            video = None
            if peer.watches:
                video = self._feed.add(peer.pc, "sendrecv" if peer.gives else "sendonly")
            if offer.sounds:  # nobody is sent what they say themselves
                self._feed.add_sound(peer.pc, "recvonly" if peer.gives else "sendonly")
            await peer.pc.setRemoteDescription(RTCSessionDescription(sdp=offer.sdp, type="offer"))
            if peer.gives and self._feed.shared:
                for transceiver in peer.pc.getTransceivers():
                    if transceiver.kind == "video":
                        aiortc_hooks.release_on_marker(transceiver.receiver)
                        aiortc_hooks.bound(transceiver.receiver)
                    else:
                        aiortc_hooks.tap(transceiver.receiver, Microphone(self._hooks.sound.speak).packet)
            answer = await peer.pc.createAnswer()
            if video is not None:
                self._feed.attach(video.sender, answer.sdp)
            await peer.pc.setLocalDescription(answer)
        return peer.id, peer.pc.localDescription.sdp

    @asynccontextmanager
    async def _refusing(self, peer: Peer) -> AsyncIterator[None]:
        """Whatever goes wrong in the body ends the session and is the offer's fault."""
        try:
            yield
        except Exception as error:  # aiortc's parser raises anything on a malformed offer
            await self.close(peer.id)
            log.info("an offer was refused (%s)", type(error).__name__)
            raise UserError("the offer cannot be answered: no codec in common, or malformed SDP") from error
        except asyncio.CancelledError:
            await self.close(peer.id)
            raise

    async def _take_camera(self, peer: Peer, track: MediaStreamTrack) -> None:
        """Pictures of ``track`` until it ends; a camera that is all that a peer gives takes its session with it."""
        began = False

        def begin() -> None:
            nonlocal began
            began = True
            self._hooks.on_camera(True)

        while track.readyState == "live":
            try:
                peer.camera = CameraIntake(track, self._hooks.camera, begin)
                await peer.camera.run()
            finally:
                if began:
                    began = False
                    self._hooks.on_camera(False)
            if not peer.watches:
                break
        if not peer.watches:
            await self.close(peer.id)


async def received(pc: RTCPeerConnection) -> int:
    """How many packets of media and reports have come in over ``pc``."""
    for transceiver in pc.getTransceivers():
        for report in (await transceiver.sender.getStats()).values():
            if report.type == "transport":
                return int(report.packetsReceived)
    return 0


async def end(pc: RTCPeerConnection) -> None:
    """Close ``pc``, whatever state it is in; never raises, never takes long."""
    try:
        await asyncio.wait_for(pc.close(), CLOSE_S)
    except TimeoutError:
        log.warning("a peer connection did not close within %g s", CLOSE_S)
    except Exception:  # aiortc gives up half way where a malformed offer left a section without its transport
        for transceiver in pc.getTransceivers():
            if (transport := transceiver.receiver.transport) is not None:
                await transport.stop()
                await transport.transport.stop()
        pc.remove_all_listeners()
