"""The HTTP side: the page, WHEP and WHIP signalling, status; and who may ask for them."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from aiohttp import web

from insta_runtime.errors import UserError
from telepresence.streaming.offer import MAX_BYTES, Offer, read_offer
from telepresence.streaming.peers import Full, Peers, Taken
from telepresence.streaming.settings import is_loopback

if TYPE_CHECKING:
    from telepresence.streaming.hooks import StreamHooks

PAGE = {
    "/": ("index.html", "text/html"),
    "/app.js": ("app.js", "text/javascript"),
    "/chart.js": ("chart.js", "text/javascript"),
    "/guide.js": ("guide.js", "text/javascript"),
    "/question.js": ("question.js", "text/javascript"),
    "/style.css": ("style.css", "text/css"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

MAX_WISH = 1024
"""Bytes that it takes to wish for a background, or to answer."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def application(peers: Peers, hooks: StreamHooks, healthy: Callable[[], bool]) -> web.Application:
    """All routes.  What they call of ``hooks`` is called on the event loop and must not block."""

    async def whep(request: web.Request) -> web.Response:
        return await _answer(request, peers.watch)

    async def whip(request: web.Request) -> web.Response:
        return await _answer(request, peers.publish)

    async def call(request: web.Request) -> web.Response:
        return await _answer(request, peers.call)

    async def end(request: web.Request) -> web.Response:
        if await peers.close(request.match_info["session"]):
            return web.Response(text="the session has ended\n")
        return _refuse(404, "there is no such session")

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
            return _refuse(400, 'send {"same": true} or {"same": false}')
        try:
            hooks.answer(same)
        except UserError as error:
            return _refuse(409, str(error))
        return web.Response(status=204)

    async def health(_request: web.Request) -> web.Response:
        return web.Response(text="ok\n") if healthy() else _refuse(503, "the encoder has stopped")

    app = web.Application(middlewares=[_guard], client_max_size=MAX_BYTES)
    app.on_response_prepare.append(_add_headers)
    app.add_routes(
        [
            web.post("/whep", whep),
            web.post("/whip", whip),
            web.post("/call", call),
            web.delete("/session/{session:[0-9a-f]{32}}", end),
            web.get("/status", show_status),
            web.get("/metrics", show_metrics),
            web.get("/background", show_background),
            web.put("/background", choose_background),
            web.post("/person", answer),
            web.get("/healthz", health),
            *(web.get(path, _asset(name, media_type)) for path, (name, media_type) in PAGE.items()),
        ]
    )
    return app


async def _answer(request: web.Request, take: Callable[[Offer], Awaitable[tuple[str, str]]]) -> web.Response:
    """WHEP and WHIP (RFC 9725) alike: an SDP offer comes in, 201 with the SDP answer and the session's address."""
    if request.content_type != "application/sdp":
        return _refuse(415, "send the SDP offer as application/sdp")
    try:
        session, answer = await take(read_offer(await request.read(), request.remote or "127.0.0.1"))
    except Full as error:
        return _refuse(503, str(error), {"Retry-After": "5"})
    except Taken as error:
        return _refuse(409, str(error))
    except UserError as error:
        return _refuse(400, str(error))
    headers = {"Location": f"/session/{session}"}
    return web.Response(status=201, text=answer, content_type="application/sdp", headers=headers)


async def _choose(request: web.Request, choose: Callable[[str], None]) -> web.Response:
    """``{"background": "room"}`` comes in, 204 goes out."""
    text = await _wish(request, "background", "background")
    if isinstance(text, web.Response):
        return text
    if not isinstance(text, str):
        return _refuse(400, 'send {"background": "room"} or the like')
    try:
        choose(text)
    except UserError as error:
        return _refuse(400, str(error))
    return web.Response(status=204)


async def _wish(request: web.Request, what: str, key: str) -> Any:
    """The value of ``key`` in a small JSON table; None if there is none, a refusal where it is no JSON.

    JSON is what no page of another origin may send unasked.
    """
    if request.content_type != "application/json":
        return _refuse(415, f"send the {what} as application/json")
    body = await request.read()
    try:
        wanted = json.loads(body) if len(body) <= MAX_WISH else None
    except (ValueError, RecursionError):
        wanted = None
    return wanted.get(key) if isinstance(wanted, dict) else None


@web.middleware
async def _guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Only pages of this very daemon may talk to it: the Host check stops DNS rebinding, the Origin check the rest."""
    try:
        host = urlsplit(f"//{request.host}").hostname
    except ValueError:
        host = None
    if host is None or not is_loopback(host):
        return _refuse(403, "this daemon answers to localhost and 127.0.0.1 only")
    origin = request.headers.get("Origin")
    if origin is not None and origin != f"http://{request.host}":
        return _refuse(403, "this daemon does not answer to other web pages")
    try:
        return await handler(request)
    except web.HTTPException as error:
        message = f"at most {MAX_BYTES} bytes are allowed" if error.status == 413 else error.reason.lower()
        allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        return _refuse(error.status, message, allow)


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)


def _refuse(status: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(status=status, text=message + "\n", headers=headers)


def _asset(name: str, media_type: str) -> Handler:
    body = files("telepresence.streaming").joinpath("page", name).read_bytes()

    async def asset(_request: web.Request) -> web.Response:
        return web.Response(body=body, content_type=media_type, charset="utf-8")

    return asset


def _finite(value: Any) -> Any:
    """``value`` with NaN and infinity as null, which JSON has no words for."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
