"""What stands before every route: the access rules, the door for people without a token, the log of refusals."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files
from typing import Final

from aiohttp import web

from telepresence.streaming.http.access import Access, Asked, Refusal
from telepresence.streaming.rtc.offer import MAX_BYTES

SHARED: Final = {
    "Access-Control-Expose-Headers": "Location, Link, Retry-After, WWW-Authenticate",
    "Vary": "Origin",
}
"""What pages of other origins, where they are allowed, may read of an answer; no cookie counts for them."""
PREFLIGHT: Final = {
    "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE",
    "Access-Control-Allow-Headers": "Authorization, Content-Type",
    "Access-Control-Allow-Private-Network": "true",  # from a public page to this machine
    "Access-Control-Max-Age": "600",
}
DOOR_POLICY: Final = (
    "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
LOG_S: Final = 10.0
"""Seconds between two lines in the log about refusals for the same reason."""

log = logging.getLogger("telepresence")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def refuse(status: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """One line of text."""
    return web.Response(status=status, text=message + "\n", headers=headers)


class Guard:
    """Lets `Access` decide, tells the log of refusals, and keeps every refusal to one line.

    People at a browser get a page instead that asks them for the token.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._refusals = RefusalLog()
        self._door = files("telepresence.streaming").joinpath("page", "door.html").read_text("utf-8")

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        asked = _asked(request)
        refusal = self._access.refuse(asked)
        if refusal is not None:
            self._refusals.tell(request, refusal.reason)
            return self._share(asked, self._refuse(request, refusal))
        if (cookie := self._access.cookie(asked)) is not None:  # the token is not to stay in the address bar
            return web.Response(status=303, headers={"Location": "/", "Set-Cookie": cookie})
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            return self._share(asked, web.Response(status=204, headers=PREFLIGHT))
        try:
            response = await handler(request)
        except web.HTTPException as error:
            message = f"at most {MAX_BYTES} bytes are allowed" if error.status == 413 else error.reason.lower()
            allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
            response = refuse(error.status, message, allow)
        if response.status == 404 and request.method == "DELETE":
            self._refusals.tell(request, "no such session")
        return self._share(asked, response)

    def _refuse(self, request: web.Request, refusal: Refusal) -> web.Response:
        if refusal.status != 401 or request.path != "/" or "text/html" not in request.headers.get("Accept", ""):
            return refuse(refusal.status, refusal.message, refusal.headers)
        text = self._door.replace(" hidden>", ">") if "token" in request.query else self._door
        headers = {**refusal.headers, "Content-Security-Policy": DOOR_POLICY}
        return web.Response(status=401, text=text, content_type="text/html", headers=headers)

    def _share(self, asked: Asked, response: web.StreamResponse) -> web.StreamResponse:
        if asked.origin is not None and self._access.shares(asked.origin):
            response.headers.update({"Access-Control-Allow-Origin": asked.origin, **SHARED})
        return response


class RefusalLog:
    """Lines in the log that hold no secret: neither query nor session, nothing that a peer could have made up."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[float, int]] = {}  # reason: when the log was told last, how many since

    def tell(self, request: web.Request, reason: str) -> None:
        """Say it, unless that was said lately; then count it."""
        now = time.monotonic()
        when, count = self._told.get(reason, (-LOG_S, 0))
        if now - when < LOG_S:
            self._told[reason] = when, count + 1
            return
        self._told[reason] = now, 0
        resource = request.match_info.route.resource
        path = resource.canonical if resource is not None else "an unknown path"
        more = f" ({count} more lately)" if count else ""
        fields = {"reason": reason, "address": request.remote, "path": path, "more": count}
        log.warning(
            "refused %s for %s: %s%s",
            path,
            request.remote,
            reason,
            more,
            extra={"event": "refused", "stage": "network", "fields": fields},
        )


def _asked(request: web.Request) -> Asked:
    return Asked(
        request.method,
        request.path,
        request.query_string,
        request.remote or "",
        request.host,
        request.headers.get("Origin"),
        request.headers.get("Authorization"),
        request.headers.get("Cookie"),
    )
