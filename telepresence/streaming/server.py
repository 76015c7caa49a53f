"""Media server: streams rendered frames and audio to viewers, and receives a browser's camera, over HTTP and WebRTC."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from insta_runtime.errors import UserError
from telepresence.runtime.addresses import parse_ip, resolve, socket_address, with_brackets, without_brackets
from telepresence.runtime.failure_policy import JUMP_S, POLICIES, Condition, Health
from telepresence.runtime.frames import OutputFrame
from telepresence.runtime.ownership import enter_role
from telepresence.streaming.audio.audio_hub import AudioHub
from telepresence.streaming.daemon_interface import DaemonInterface
from telepresence.streaming.http.tls import tls_context
from telepresence.streaming.rtc.network_simulation import LinkProfile
from telepresence.streaming.settings import StreamSettings
from telepresence.streaming.video.encoder_hub import EncoderHub
from telepresence.streaming.video.stats import StreamStats

if TYPE_CHECKING:
    from telepresence.streaming.rtc.peers import Peers
    from telepresence.streaming.rtc.whip_client import WhipClient
    from telepresence.streaming.video.audience import Audience

log = logging.getLogger(__name__)

LOOPBACK_OF: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - a server on all addresses has this one, too
"""Loopback address at which a server that listens on all addresses can be opened, by the address that it listens on."""
START_S: Final = 30.0
"""Maximum number of seconds that the start of the network thread may take."""
STOP_S: Final = 10.0
"""Maximum number of seconds to wait for the end of the network thread."""


class MediaServer:
    """Streams the newest rendered frame to every viewer at a constant rate, and receives a browser's camera.

    Its threads ``network`` (asyncio, HTTP, WebRTC), ``encode`` (video) and ``audio`` run from `start` to
    `stop`.  Implements `FrameSink`.
    """

    def __init__(self, settings: StreamSettings, daemon: DaemonInterface) -> None:
        """Raises UserError if the settings are invalid or unsafe (an odd frame size, a public address without TLS)."""
        settings.check()
        self._settings = settings
        self._tls = tls_context(settings.access)
        self._daemon = daemon
        self._hub = EncoderHub(settings)
        self._audio = AudioHub(daemon.audio, 1000 * settings.audio_bitrate, lambda: self._hub.stats().latency_ms)
        self._peers: Peers | None = None
        self._whip_client: WhipClient | None = None
        self._audience: Audience | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._port = settings.port
        self._heartbeat = self._supervised = time.monotonic()

    def start(self) -> None:
        """Listen for connections; on return `/` and `/whep` answer.  UserError if the port cannot be opened."""
        listener = self._listen()
        self._port = listener.getsockname()[1]
        self._hub.start()
        self._audio.start()
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(listener, ready), name="network", daemon=True)
        self._thread.start()
        try:
            ready.result(START_S)
        except BaseException:
            self.stop()
            raise

    @property
    def address(self) -> str:
        """URL that a user opens in a browser, ending in a slash."""
        s = self._settings
        scheme = "https" if s.access.tls_cert else "http"
        host = without_brackets(s.host)
        host = str(parse_ip(host) or host).partition("%")[0]  # browsers take no zones
        name = s.access.names.split()[0] if s.access.names else LOOPBACK_OF.get(host, host)
        return f"{scheme}://{with_brackets(name)}:{self._port}/"

    @property
    def viewers(self) -> int:
        """Number of connected viewers."""
        return self._peers.viewers if self._peers is not None else 0

    @property
    def watched(self) -> bool:
        """Whether frames are sent to any viewer; one whose connection is being made counts."""
        return self._hub.watched

    def supervise(self, now: float) -> str | None:
        """Restart an encoder that hangs; returns an error message if the server cannot continue.

        ``now`` is in monotonic seconds.
        """
        self._hub.supervise(now)
        gap, self._supervised = now - self._supervised, now
        if gap > JUMP_S:
            self._heartbeat = now  # after a pause of the whole machine a missing heartbeat says nothing
        if self._thread is not None and not self._thread.is_alive():
            return "the network thread has ended"
        if now - self._heartbeat > (silent := POLICIES["network"].silent_s):
            return f"the network thread has not responded for {silent:.0f} s"
        return None

    def health(self, now: float) -> dict[str, Health]:
        """Health of the stages ``encode`` and ``network``, and of ``publish`` if the avatar is published by WHIP."""
        stages = {"encode": self._hub.health(now), "network": self._network_health(now)}
        return stages if self._whip_client is None else stages | {"publish": self._whip_client.health(now)}

    def push_frame(self, frame: OutputFrame) -> None:
        """Make ``frame`` the newest frame of the stream; any thread, never waits.  Other sizes are stretched."""
        self._hub.push_frame(frame)

    def stream_stats(self) -> StreamStats:
        """Statistics of the stream over the last two seconds; any thread."""
        renditions = self._audience.renditions() if self._audience is not None else {}
        failed, failure = self._peers.failed if self._peers is not None else (0, None)
        return replace(self._hub.stats(), renditions=renditions, failed=failed, failure=failure)

    def stop(self) -> None:
        """End every session and every thread; may be called twice, and after a failed start."""
        self._hub.stop()  # first, because its subscribers call into the event loop
        self._audio.stop()
        if self._loop is not None and self._stopping is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stopping.set)
        if self._thread is not None:
            self._thread.join(STOP_S)

    def _network_health(self, now: float) -> Health:
        alive = self._thread is not None and self._thread.is_alive()
        return Health(Condition.RUNNING if alive else Condition.STOPPED, max(0.0, now - self._heartbeat), 0, None)

    def _listen(self) -> socket.socket:
        host, port = without_brackets(self._settings.host), self._settings.port
        try:
            family, address = socket_address(resolve(host)[0] if host else host, port)
            everywhere = address[0] == "::" and socket.has_dualstack_ipv6()  # all addresses: IPv4, too
            return socket.create_server(address, family=family, backlog=64, dualstack_ipv6=everywhere)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UserError(f"port {port} is used by another program; choose a free one with --port") from error
            reason = (error.strerror or str(error)).lower()
            raise UserError(f"cannot listen on {host} port {port}: {reason}; choose another with --port") from error

    def _run(self, listener: socket.socket, ready: Future[None]) -> None:
        enter_role("network")
        try:
            asyncio.run(self._serve(listener, ready))
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    async def _serve(self, port: socket.socket, ready: Future[None]) -> None:
        from telepresence.streaming.http.access import AccessPolicy
        from telepresence.streaming.http.listener import serve
        from telepresence.streaming.http.routes import create_application
        from telepresence.streaming.rtc import aiortc_hooks
        from telepresence.streaming.rtc.ice import IceServers
        from telepresence.streaming.rtc.peer_stream import PeerStream
        from telepresence.streaming.rtc.peers import Peers
        from telepresence.streaming.rtc.whip_client import WhipClient
        from telepresence.streaming.video.audience import Audience

        aiortc_hooks.limit_library_logs()
        if not aiortc_hooks.missing_names():
            aiortc_hooks.offer_loopback()
            aiortc_hooks.offer_playout_delay()
            aiortc_hooks.broaden_dtls()
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        ice = IceServers(self._settings.ice)
        self._audience = audience = Audience(self._hub, self._settings.adapt)
        link = LinkProfile.parse(self._settings.link) if self._settings.link else None
        stream = PeerStream(audience, _can_share_encodes(), self._audio, link)
        self._peers = peers = Peers(stream, self._settings.viewers, self._daemon, ice)
        access = AccessPolicy(self._settings.access, self._settings.host, self._port)
        app = create_application(peers, self._daemon, access, ice, lambda: self._hub.alive)
        runner = await serve(app, port, self._tls)
        tasks = [asyncio.create_task(peers.watchdog()), asyncio.create_task(self._beat())]
        if self._settings.publish.url:
            self._whip_client = WhipClient(self._settings.publish, stream, ice)
            tasks.append(asyncio.create_task(self._whip_client.run()))
        try:
            ready.set_result(None)
            await self._stopping.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await peers.close_all()
            await runner.cleanup()

    async def _beat(self) -> None:
        while True:
            self._heartbeat = time.monotonic()
            await asyncio.sleep(1.0)


def _can_share_encodes() -> bool:
    """Whether viewers can share encodes: x264 works, and the installed aiortc has all names that the hooks need."""
    from telepresence.streaming.rtc import aiortc_hooks
    from telepresence.streaming.video.encoder import x264_error

    missing = aiortc_hooks.missing_names()
    if (error := x264_error()) is not None:
        missing.append(f"libx264 in PyAV ({error})")
    if missing:
        log.warning(
            "each viewer gets an encoder of its own, which costs more CPU time; missing: %s", ", ".join(missing)
        )
    return not missing
