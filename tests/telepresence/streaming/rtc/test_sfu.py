"""Publishing to an SFU: the daemon publishes once to Janus, and browsers watch there.

Janus has an API of its own; the WHIP front end of this file stands for the one that an operator of Janus runs.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web

from telepresence.runtime.failure_policy import Condition
from telepresence.streaming.rtc.settings import PublishSettings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

TOKEN = "publish-here-and-now"
ROOM = 1234

CONFIG = """
general: {{
    configs_folder = "{folder}"
    plugins_folder = "{lib}/plugins"
    transports_folder = "{lib}/transports"
    events_folder = "{folder}"
    loggers_folder = "{folder}"
    debug_level = 3
    session_timeout = 0
}}
media: {{ }}
plugins: {{ disable = "{plugins}" }}
transports: {{ disable = "{transports}" }}
"""
HTTP = """
general: {{ http = true, ip = "127.0.0.1", port = {port}, https = false }}
admin: {{ admin_http = false }}
"""

PAGE = """<!doctype html><video id="avatar" autoplay muted playsinline></video><script type="module">
const pc = new RTCPeerConnection();
pc.ontrack = ({streams}) => { document.querySelector('video').srcObject = streams[0]; };
const offer = await (await fetch('/watch', {method: 'POST'})).json();
await pc.setRemoteDescription(offer.jsep);
await pc.setLocalDescription();
await new Promise((done) => {
  pc.onicegatheringstatechange = () => pc.iceGatheringState === 'complete' && done();
  setTimeout(done, 1000);
});
await fetch(`/watch/${offer.id}`, {method: 'POST', body: pc.localDescription.sdp});
window.watched = async () => {
  const reports = [...(await pc.getStats()).values()];
  const video = reports.find((r) => r.type === 'inbound-rtp' && r.kind === 'video') ?? {};
  const codec = reports.find((r) => r.id === video.codecId) ?? {};
  return {frames: video.framesDecoded ?? 0, width: video.frameWidth, codec: codec.mimeType};
};
</script>"""


class Janus:
    """HTTP API of Janus, as far as a video room needs it."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self._http, self._url = http, url

    async def _ask(self, path: str, **body: Any) -> dict[str, Any]:
        message = {"transaction": uuid.uuid4().hex, **body}
        async with self._http.post(f"{self._url}{path}", json=message) as answer:
            result: dict[str, Any] = await answer.json()
        assert result["janus"] in ("success", "ack"), result
        return result

    async def attach(self) -> str:
        """Path of a new handle of the video room plug-in, in a new session."""
        session = (await self._ask("", janus="create"))["data"]["id"]
        handle = (await self._ask(f"/{session}", janus="attach", plugin="janus.plugin.videoroom"))["data"]["id"]
        return f"/{session}/{handle}"

    async def message(self, handle: str, jsep: dict[str, str] | None = None, **body: Any) -> dict[str, Any]:
        """Send a request to the room and wait for its result."""
        result = await self._ask(handle, janus="message", body=body, **({"jsep": jsep} if jsep else {}))
        while result["janus"] != "success" and result["janus"] != "event":
            async with self._http.get(f"{self._url}/{handle.split('/')[1]}?maxev=1") as events:
                result = await events.json()
        assert "error" not in result["plugindata"]["data"], result
        return result

    async def leave(self, handle: str) -> None:
        await self._ask(f"/{handle.split('/')[1]}", janus="destroy")


def front_end(janus: Janus, handles: dict[str, str]) -> web.Application:
    """WHIP for publishers, and the offers of Janus for viewers."""
    feed: dict[str, int] = {}

    async def whip(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.Response(status=401)
        handle = await janus.attach()
        offer = {"type": "offer", "sdp": await request.text()}
        joined = await janus.message(
            handle, offer, request="joinandconfigure", room=ROOM, ptype="publisher", audio=True, video=True
        )
        feed["id"] = joined["plugindata"]["data"]["id"]
        session = uuid.uuid4().hex
        handles[session] = handle
        headers = {"Location": f"/session/{session}"}
        return web.Response(status=201, text=joined["jsep"]["sdp"], content_type="application/sdp", headers=headers)

    async def end(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.Response(status=401)
        await janus.leave(handles.pop(request.match_info["session"]))
        return web.Response()

    async def watch(_request: web.Request) -> web.Response:
        handle = await janus.attach()
        streams = [{"feed": feed["id"]}]
        joined = await janus.message(handle, request="join", room=ROOM, ptype="subscriber", streams=streams)
        return web.json_response({"id": handle.strip("/").replace("/", "-"), "jsep": joined["jsep"]})

    async def start(request: web.Request) -> web.Response:
        answer = {"type": "answer", "sdp": await request.text()}
        await janus.message("/" + request.match_info["id"].replace("-", "/"), answer, request="start")
        return web.Response(status=204)

    async def page(_request: web.Request) -> web.Response:
        return web.Response(text=PAGE, content_type="text/html")

    app = web.Application()
    app.add_routes(
        [
            web.post("/whip", whip),
            web.delete("/session/{session}", end),
            web.post("/watch", watch),
            web.post("/watch/{id}", start),
            web.get("/", page),
        ]
    )
    return app


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def running_janus(folder: Path) -> Iterator[str]:
    """Run Janus; yields the address of its API."""
    lib = next(iter(glob("/usr/lib/*/janus")), "/usr/lib/janus")
    port = free_port()

    def others(kind: str, wanted: str) -> str:
        return ",".join(sorted(Path(p).name for p in glob(f"{lib}/{kind}/*.so") if wanted not in p))

    config = CONFIG.format(
        folder=folder, lib=lib, plugins=others("plugins", "videoroom"), transports=others("transports", "_http")
    )
    (folder / "janus.jcfg").write_text(config)
    (folder / "janus.transport.http.jcfg").write_text(HTTP.format(port=port))
    with (folder / "log").open("wb") as log:
        janus = subprocess.Popen(
            ["janus", "-F", str(folder), "-C", str(folder / "janus.jcfg"), "--disable-colors"], stdout=log, stderr=log
        )
    try:
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", port), 1.0).close()
                break
            except OSError:
                assert janus.poll() is None, (folder / "log").read_text()
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/janus"
    finally:
        janus.terminate()
        janus.wait(10)


@contextmanager
def serving(url: str, handles: dict[str, str]) -> Iterator[str]:
    """Run the front end in a thread; yields its address."""
    loop, listener = asyncio.new_event_loop(), socket.create_server(("127.0.0.1", 0))

    async def begin() -> tuple[web.AppRunner, aiohttp.ClientSession]:
        http = aiohttp.ClientSession()
        janus = Janus(http, url)
        handle = await janus.attach()
        await janus.message(handle, request="create", room=ROOM, videocodec="h264", audiocodec="opus", publishers=1)
        runner = web.AppRunner(front_end(janus, handles))
        await runner.setup()
        await web.SockSite(runner, listener).start()
        return runner, http

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    runner, http = asyncio.run_coroutine_threadsafe(begin(), loop).result(20)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        for closing in (runner.cleanup(), http.close()):
            asyncio.run_coroutine_threadsafe(closing, loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def end_publisher_session(api: str, handle: str) -> None:
    """End a publisher's session on the side of the SFU."""
    body = json.dumps({"janus": "destroy", "transaction": uuid.uuid4().hex}).encode()
    urllib.request.urlopen(urllib.request.Request(f"{api}/{handle.split('/')[1]}", body), timeout=600).close()


@pytest.mark.skipif(shutil.which("janus") is None, reason="needs an SFU: apt-get install janus")
def test_three_browsers_watch_one_published_stream_through_an_sfu(
    studio_type: type[Any], chromium: Browser, launch_chromium: Callable[..., Browser], tmp_path: Path
) -> None:
    handles: dict[str, str] = {}
    with running_janus(tmp_path) as api, serving(api, handles) as address:
        with studio_type(publish=PublishSettings(f"{address}/whip", TOKEN)) as studio:
            studio.until(lambda: studio.server.health(time.monotonic())["publish"].condition is Condition.RUNNING)
            pages = [browser.new_page() for browser in (chromium, launch_chromium(), launch_chromium())]
            for page in pages:
                page.goto(address)
            for page in pages:
                page.wait_for_function("window.watched")
                studio.until(lambda page=page: page.evaluate("watched()")["frames"] > 30)
                result = page.evaluate("watched()")
                assert result["codec"] == "video/H264"
                assert result["width"] == 512
                assert studio.likeness(studio.grab(page)) > 30.0
            stats = studio.server.stream_stats()
            assert studio.server.viewers == 0  # the daemon has no viewers of its own
            assert sum(rendition.viewers for rendition in stats.renditions.values()) == 1

            ((session, handle),) = handles.items()
            end_publisher_session(api, handle)
            studio.until(lambda: handles.keys() - {session})
            studio.until(lambda: studio.server.health(time.monotonic())["publish"].condition is Condition.RUNNING)
            pages[0].reload()
            pages[0].wait_for_function("window.watched")
            studio.until(lambda: pages[0].evaluate("watched()")["frames"] > 10)
            handles.pop(session, None)
            for page in pages:
                page.close()
        studio.until(lambda: not handles)  # the daemon has ended its session
