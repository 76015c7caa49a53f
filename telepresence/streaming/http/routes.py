"""The HTTP side: the page, WHEP and WHIP signalling, status; and who may ask for them."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from aiohttp import web

from insta_runtime.errors import UserError
from telepresence.streaming.http.access import Access
from telepresence.streaming.http.guard import Guard, refuse
from telepresence.streaming.rtc.ice import IceServers
from telepresence.streaming.rtc.offer import MAX_BYTES, Offer, read_offer
from telepresence.streaming.rtc.peers import Full, Peers, Taken

if TYPE_CHECKING:
    from telepresence.streaming.hooks import StreamHooks

MEDIA_TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
    ".task": "application/octet-stream",
}
VISION_S = 86400
"""Seconds that a browser may keep the files with which it tracks faces: their content never changes."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; style-src 'self'; "
        "img-src 'self'; media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Permissions-Policy": "camera=(self), microphone=(self), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

BODY_S = 5.0
"""Seconds in which the body of a request must be there."""
MAX_WISH = 1024
"""Bytes that it takes to wish for a background, or to answer."""


def application(
    peers: Peers, hooks: StreamHooks, access: Access, ice: IceServers, healthy: Callable[[], bool]
) -> web.Application:
    """All routes.  What they call of ``hooks`` is called on the event loop and must not block."""

    async def whep(request: web.Request) -> web.Response:
        return await _answer(request, peers.watch, ice)

    async def whip(request: web.Request) -> web.Response:
        return await _answer(request, peers.publish, ice)

    async def call(request: web.Request) -> web.Response:
        return await _answer(request, peers.call, ice)

    async def describe(_request: web.Request) -> web.Response:
        return web.Response(status=204, headers={"Accept-Post": "application/sdp", "Allow": "OPTIONS, POST"})

    async def show_ice(_request: web.Request) -> web.Response:
        return web.json_response({"iceServers": [server.as_json() for server in ice.now()]})

    async def end(request: web.Request) -> web.Response:
        if await peers.close(request.match_info["session"]):
            return web.Response(text="the session has ended\n")
        return refuse(404, "there is no such session")

    async def show_status(_request: web.Request) -> web.Response:
        return web.json_response(_finite(hooks.status()), dumps=lambda value: json.dumps(value, allow_nan=False))

    async def show_metrics(_request: web.Request) -> web.Response:
        return web.Response(text=hooks.metrics(), content_type="text/plain")

    async def show_background(_request: web.Request) -> web.Response:
        return web.json_response(hooks.background())

    async def choose_background(request: web.Request) -> web.Response:
        return await _choose(request, hooks.choose_background)

    async def answer(request: web.Request) -> web.Response:
        same = await _wish(request, "person", "same")
        if isinstance(same, web.Response):
            return same
        if not isinstance(same, bool):
            return refuse(400, 'send {"same": true} or {"same": false}')
        try:
            hooks.answer(same)
        except UserError as error:
            return refuse(409, str(error))
        return web.Response(status=204)

    async def vision(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        try:
            body = await asyncio.to_thread(hooks.vision, name)
        except KeyError:
            return refuse(404, "there is no such file")
        except UserError as error:
            return refuse(503, str(error))
        response = _file(name, body)
        response.headers["Cache-Control"] = f"private, max-age={VISION_S}"
        return response

    async def health(_request: web.Request) -> web.Response:
        return web.Response(text="ok\n") if healthy() else refuse(503, "the encoder has stopped")

    app = web.Application(middlewares=[Guard(access).middleware], client_max_size=MAX_BYTES)
    app.on_response_prepare.append(_add_headers)
    app.add_routes(
        [
            web.post("/whep", whep),
            web.post("/whip", whip),
            web.post("/call", call),
            *(web.options(path, describe) for path in ("/whep", "/whip", "/call")),
            web.get("/ice", show_ice),
            web.delete("/session/{session:[0-9a-f]{32}}", end),
            web.get("/status", show_status),
            web.get("/metrics", show_metrics),
            web.get("/background", show_background),
            web.put("/background", choose_background),
            web.post("/person", answer),
            web.get("/healthz", health),
            web.get("/vision/{name}", vision),
            *_page(),
        ]
    )
    return app


async def _answer(
    request: web.Request, take: Callable[[Offer], Awaitable[tuple[str, str]]], ice: IceServers
) -> web.Response:
    """WHEP and WHIP (RFC 9725) alike: an SDP offer comes in, 201 with the SDP answer and the session's address."""
    if request.content_type != "application/sdp":
        return refuse(415, "send the SDP offer as application/sdp")
    try:
        session, answer = await take(read_offer(await _body(request), request.remote or "127.0.0.1"))
    except Full as error:
        return refuse(503, str(error), {"Retry-After": "5"})
    except Taken as error:
        return refuse(409, str(error))
    except UserError as error:
        return refuse(400, str(error))
    response = web.Response(status=201, text=answer, content_type="application/sdp")
    response.headers["Location"] = f"/session/{session}"
    for server in ice.now():
        response.headers.add("Link", server.as_link())
    return response


async def _body(request: web.Request) -> bytes:
    """All of it, soon: who sends it drop by drop is not waited for."""
    try:
        return await asyncio.wait_for(request.read(), BODY_S)
    except TimeoutError as error:
        raise web.HTTPRequestTimeout from error


async def _choose(request: web.Request, choose: Callable[[str], None]) -> web.Response:
    """``{"background": "room"}`` comes in, 204 goes out."""
    text = await _wish(request, "background", "background")
    if isinstance(text, web.Response):
        return text
    if not isinstance(text, str):
        return refuse(400, 'send {"background": "room"} or the like')
    try:
        choose(text)
    except UserError as error:
        return refuse(400, str(error))
    return web.Response(status=204)


async def _wish(request: web.Request, what: str, key: str) -> Any:
    """The value of ``key`` in a small JSON table; None if there is none, a refusal where it is no JSON.

    JSON is what no page of another origin may send unasked.
    """
    if request.content_type != "application/json":
        return refuse(415, f"send the {what} as application/json")
    body = await _body(request)
    try:
        wanted = json.loads(body) if len(body) <= MAX_WISH else None
    except (ValueError, RecursionError):
        wanted = None
    return wanted.get(key) if isinstance(wanted, dict) else None


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)


def _page() -> list[web.RouteDef]:
    """A route for each file of the page."""
    folder = files("telepresence.streaming").joinpath("page")
    return [_asset("/" if file.name == "index.html" else f"/{file.name}", file) for file in folder.iterdir()]


def _asset(path: str, file: Traversable) -> web.RouteDef:
    body = file.read_bytes()

    async def asset(_request: web.Request) -> web.Response:
        return _file(file.name, body)

    return web.get(path, asset)


def _file(name: str, body: bytes) -> web.Response:
    media_type = MEDIA_TYPES[PurePath(name).suffix]
    text = media_type.startswith("text/")
    return web.Response(body=body, content_type=media_type, charset="utf-8" if text else None)


def _finite(value: Any) -> Any:
    """``value`` with NaN and infinity as null, which JSON has no words for."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
