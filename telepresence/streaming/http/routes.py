"""HTTP routes of the media server: the page, WHEP and WHIP signalling, status, background and face-tracking files."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import PurePath
from typing import Any, Final

from aiohttp import web

from insta_runtime.errors import UserError
from telepresence.streaming.daemon_interface import DaemonInterface
from telepresence.streaming.http.access import AccessPolicy
from telepresence.streaming.http.middleware import AccessMiddleware, error_response
from telepresence.streaming.rtc.ice import IceServers
from telepresence.streaming.rtc.offer import MAX_BYTES, Offer, parse_offer
from telepresence.streaming.rtc.peers import CameraInUse, Peers, TooManyViewers

MEDIA_TYPES: Final = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
    ".task": "application/octet-stream",
}
"""Media types of the files of the page, by suffix."""
TRACKING_FILE_S: Final = 86400
"""Seconds that a browser may cache the files with which it tracks faces; their content never changes."""

HEADERS: Final = {
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
"""Security headers of every answer, unless a route sets its own."""

BODY_S: Final = 5.0
"""Maximum number of seconds in which the body of a request must arrive."""
MAX_JSON: Final = 1024
"""Maximum size in bytes of a JSON request body."""


def create_application(
    peers: Peers, daemon: DaemonInterface, access: AccessPolicy, ice: IceServers, is_healthy: Callable[[], bool]
) -> web.Application:
    """The aiohttp application with all routes and the access rules; ``is_healthy`` answers `GET /healthz`."""
    app = web.Application(middlewares=[AccessMiddleware(access).middleware], client_max_size=MAX_BYTES)
    app.on_response_prepare.append(_add_headers)
    app.add_routes([*_signalling_routes(peers, ice), *_daemon_routes(daemon, is_healthy), *_page_routes()])
    return app


def _signalling_routes(peers: Peers, ice: IceServers) -> list[web.RouteDef]:
    """Routes that open and end WebRTC sessions."""

    async def whep(request: web.Request) -> web.Response:
        return await _answer_offer(request, peers.answer_viewer, ice)

    async def whip(request: web.Request) -> web.Response:
        return await _answer_offer(request, peers.answer_camera, ice)

    async def call(request: web.Request) -> web.Response:
        return await _answer_offer(request, peers.answer_call, ice)

    async def options(_request: web.Request) -> web.Response:
        return web.Response(status=204, headers={"Accept-Post": "application/sdp", "Allow": "OPTIONS, POST"})

    async def ice_servers(_request: web.Request) -> web.Response:
        return web.json_response({"iceServers": [server.as_json() for server in ice.servers()]})

    async def end_session(request: web.Request) -> web.Response:
        if await peers.close(request.match_info["session"]):
            return web.Response(text="the session has ended\n")
        return error_response(404, "there is no such session")

    return [
        web.post("/whep", whep),
        web.post("/whip", whip),
        web.post("/call", call),
        *(web.options(path, options) for path in ("/whep", "/whip", "/call")),
        web.get("/ice", ice_servers),
        web.delete("/session/{session:[0-9a-f]{32}}", end_session),
    ]


def _daemon_routes(daemon: DaemonInterface, is_healthy: Callable[[], bool]) -> list[web.RouteDef]:
    """Routes that read the state of the daemon, or send it commands."""

    async def status(_request: web.Request) -> web.Response:
        return web.json_response(_without_nan(daemon.status()), dumps=lambda value: json.dumps(value, allow_nan=False))

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(text=daemon.metrics(), content_type="text/plain")

    async def background(_request: web.Request) -> web.Response:
        return web.json_response(daemon.background())

    async def choose_background(request: web.Request) -> web.Response:
        text = await _read_value(request, "background")
        if not isinstance(text, str):
            return error_response(400, 'send a JSON object like {"background": "room"}')
        try:
            daemon.choose_background(text)
        except UserError as error:
            return error_response(400, str(error))
        return web.Response(status=204)

    async def answer_identity(request: web.Request) -> web.Response:
        same = await _read_value(request, "same")
        if not isinstance(same, bool):
            return error_response(400, 'send {"same": true} or {"same": false}')
        try:
            daemon.answer_identity(same)
        except UserError as error:
            return error_response(409, str(error))
        return web.Response(status=204)

    async def tracking_file(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        try:
            body = await asyncio.to_thread(daemon.tracking_file, name)
        except KeyError:
            return error_response(404, "there is no such file")
        except UserError as error:
            return error_response(503, str(error))
        response = _file_response(name, body)
        response.headers["Cache-Control"] = f"private, max-age={TRACKING_FILE_S}"
        return response

    async def health(_request: web.Request) -> web.Response:
        return web.Response(text="ok\n") if is_healthy() else error_response(503, "the encoder has stopped")

    return [
        web.get("/status", status),
        web.get("/metrics", metrics),
        web.get("/background", background),
        web.put("/background", choose_background),
        web.post("/person", answer_identity),
        web.get("/healthz", health),
        web.get("/vision/{name}", tracking_file),
    ]


async def _answer_offer(
    request: web.Request, answer_offer: Callable[[Offer], Awaitable[tuple[str, str]]], ice: IceServers
) -> web.Response:
    """Answer the SDP offer of a WHEP or WHIP request: 201 with SDP answer and path of the session (RFC 9725)."""
    if request.content_type != "application/sdp":
        return error_response(415, "send the SDP offer as application/sdp")
    try:
        session, answer = await answer_offer(parse_offer(await _read_body(request), request.remote or "127.0.0.1"))
    except TooManyViewers as error:
        return error_response(503, str(error), {"Retry-After": "5"})
    except CameraInUse as error:
        return error_response(409, str(error))
    except UserError as error:
        return error_response(400, str(error))
    response = web.Response(status=201, text=answer, content_type="application/sdp")
    response.headers["Location"] = f"/session/{session}"
    for server in ice.servers():
        response.headers.add("Link", server.as_link())
    return response


async def _read_body(request: web.Request) -> bytes:
    """Body of ``request``; HTTPRequestTimeout (408) if it does not arrive within `BODY_S`."""
    try:
        return await asyncio.wait_for(request.read(), BODY_S)
    except TimeoutError as error:
        raise web.HTTPRequestTimeout from error


async def _read_value(request: web.Request, key: str) -> Any:
    """Value of ``key`` in the JSON object that ``request`` carries; None if there is none.

    HTTPUnsupportedMediaType (415) for any other media type: a foreign page can send those without a preflight request.
    """
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(reason=f"Send the value of {key} as application/json")
    body = await _read_body(request)
    try:
        value = json.loads(body) if len(body) <= MAX_JSON else None
    except (ValueError, RecursionError):
        value = None
    return value.get(key) if isinstance(value, dict) else None


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)


def _page_routes() -> list[web.RouteDef]:
    """A route for each file of the page."""
    folder = files("telepresence.streaming").joinpath("page")
    return [_asset("/" if file.name == "index.html" else f"/{file.name}", file) for file in folder.iterdir()]


def _asset(path: str, file: Traversable) -> web.RouteDef:
    body = file.read_bytes()

    async def asset(_request: web.Request) -> web.Response:
        return _file_response(file.name, body)

    return web.get(path, asset)


def _file_response(name: str, body: bytes) -> web.Response:
    media_type = MEDIA_TYPES[PurePath(name).suffix]
    text = media_type.startswith("text/")
    return web.Response(body=body, content_type=media_type, charset="utf-8" if text else None)


def _without_nan(value: Any) -> Any:
    """``value`` with NaN and infinity, which JSON cannot express, replaced by null."""
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
