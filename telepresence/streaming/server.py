"""The media server: pictures in, viewers and cameras over HTTP and WebRTC."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING

from insta_runtime.errors import UserError
from telepresence.runtime.frames import ShownFrame
from telepresence.runtime.policy import JUMP_S, POLICIES, Condition, Health
from telepresence.streaming.audio.audio_hub import SoundHub
from telepresence.streaming.hooks import StreamHooks
from telepresence.streaming.http.tls import tls_context
from telepresence.streaming.rtc.network_simulation import LinkPlan
from telepresence.streaming.settings import StreamSettings
from telepresence.streaming.video.encoder_hub import EncoderHub
from telepresence.streaming.video.stats import StreamStats

if TYPE_CHECKING:
    from telepresence.streaming.rtc.peers import Peers
    from telepresence.streaming.rtc.whip_client import Publisher
    from telepresence.streaming.video.audience import Audience

log = logging.getLogger(__name__)

ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where all addresses listen, this one does, too
START_S = 30.0
STOP_S = 10.0


class MediaServer:
    """Streams the newest picture shown to every viewer, at the declared rate, and takes a browser's camera.

    Three threads, ``network`` (asyncio, HTTP, WebRTC), ``encode`` and ``sound``, run from `start` to `stop`.
    """

    def __init__(self, settings: StreamSettings, hooks: StreamHooks) -> None:
        """Raises UserError when the settings ask for what cannot be (a public address, an odd size)."""
        settings.check()
        self._settings = settings
        self._tls = tls_context(settings.access)
        self._hooks = hooks
        self._hub = EncoderHub(settings)
        self._sound = SoundHub(hooks.sound, 1000 * settings.sound, lambda: self._hub.stats().latency_ms)
        self._peers: Peers | None = None
        self._publisher: Publisher | None = None
        self._audience: Audience | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._port = settings.port
        self._heartbeat = self._watched = time.monotonic()

    def start(self) -> None:
        """Listen; on return the page is there and `/whep` takes offers.  UserError when the port cannot be had."""
        listener = self._listen()
        self._port = listener.getsockname()[1]
        self._hub.start()
        self._sound.start()
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
        """What a user opens in a browser."""
        s = self._settings
        scheme = "https" if s.access.tls_cert else "http"
        name = s.access.names.split()[0] if s.access.names else ANYWHERE.get(s.host, s.host)
        return f"{scheme}://{f'[{name}]' if ':' in name else name}:{self._port}/"

    @property
    def viewers(self) -> int:
        """How many peers are watching now."""
        return self._peers.viewers if self._peers is not None else 0

    @property
    def watched(self) -> bool:
        """Whether pictures go to anybody: a peer that was answered counts before it is connected."""
        return self._hub.watched

    def watch(self, now: float) -> str | None:
        """Restart an encoder that hangs; what is wrong if the server cannot go on.  ``now``: monotonic seconds."""
        self._hub.watch(now)
        gap, self._watched = now - self._watched, now
        if gap > JUMP_S:
            self._heartbeat = now  # nobody could have seen it
        if self._thread is not None and not self._thread.is_alive():
            return "the network thread has ended"
        if now - self._heartbeat > (silent := POLICIES["network"].silent_s):
            return f"the network thread has given no sign of life for {silent:.0f} s"
        return None

    def health(self, now: float) -> dict[str, Health]:
        """How the stages ``encode`` and ``network`` are, and ``publish`` where there is one."""
        stages = {"encode": self._hub.health(now), "network": self._network(now)}
        return stages if self._publisher is None else stages | {"publish": self._publisher.health(now)}

    def show(self, frame: ShownFrame) -> None:
        """Make ``frame`` the picture that viewers see; any thread, never waits.  Other sizes are scaled (stretched)."""
        self._hub.show(frame)

    def stream_stats(self) -> StreamStats:
        """Figures of the last two seconds; any thread."""
        lines = self._audience.lines() if self._audience is not None else {}
        return replace(self._hub.stats(), lines=lines)

    def stop(self) -> None:
        """End every session and every thread; may be called twice, and after a failed start."""
        self._hub.stop()  # first: its sinks call into the loop
        self._sound.stop()
        if self._loop is not None and self._stopping is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stopping.set)
        if self._thread is not None:
            self._thread.join(STOP_S)

    def _network(self, now: float) -> Health:
        alive = self._thread is not None and self._thread.is_alive()
        return Health(Condition.RUNNING if alive else Condition.STOPPED, max(0.0, now - self._heartbeat), 0, None)

    def _listen(self) -> socket.socket:
        host, port = self._settings.host, self._settings.port
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            return socket.create_server((host, port), family=family, backlog=64)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UserError(f"port {port} is taken by another program; choose a free one with --port") from error
            reason = (error.strerror or str(error)).lower()
            raise UserError(f"cannot listen on {host} port {port}: {reason}; choose another with --port") from error

    def _run(self, listener: socket.socket, ready: Future[None]) -> None:
        try:
            asyncio.run(self._serve(listener, ready))
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    async def _serve(self, port: socket.socket, ready: Future[None]) -> None:
        from telepresence.streaming.http import routes
        from telepresence.streaming.http.access import Access
        from telepresence.streaming.http.listener import serve
        from telepresence.streaming.rtc import aiortc_hooks
        from telepresence.streaming.rtc.ice import IceServers
        from telepresence.streaming.rtc.peer_stream import Feed
        from telepresence.streaming.rtc.peers import Peers
        from telepresence.streaming.rtc.whip_client import Publisher
        from telepresence.streaming.video.audience import Audience

        aiortc_hooks.quieten()
        if not aiortc_hooks.missing():
            aiortc_hooks.offer_loopback()
            aiortc_hooks.offer_no_delay()
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        ice = IceServers(self._settings.ice)
        self._audience = audience = Audience(self._hub, self._settings.adapt)
        link = LinkPlan.parse(self._settings.link) if self._settings.link else None
        feed = Feed(audience, _can_share(), self._sound, link)
        self._peers = peers = Peers(feed, self._settings.viewers, self._hooks, ice)
        access = Access(self._settings.access, self._settings.host, self._port)
        app = routes.application(peers, self._hooks, access, ice, lambda: self._hub.alive)
        runner = await serve(app, port, self._tls)
        tasks = [asyncio.create_task(peers.watchdog()), asyncio.create_task(self._beat())]
        if self._settings.publish.url:
            self._publisher = Publisher(self._settings.publish, feed, ice)
            tasks.append(asyncio.create_task(self._publisher.run()))
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


def _can_share() -> bool:
    """Whether one encode can serve all viewers: x264 works, and aiortc is the one that the hooks were made for."""
    from telepresence.streaming.rtc import aiortc_hooks
    from telepresence.streaming.video.encoder import x264_trouble

    lacking = aiortc_hooks.missing()
    if (trouble := x264_trouble()) is not None:
        lacking.append(f"libx264 in PyAV ({trouble})")
    if lacking:
        log.warning("every viewer gets an encoder of its own, which costs more; missing: %s", ", ".join(lacking))
    return not lacking
