"""aiohttp middleware that enforces the access rules, adds CORS headers, serves the login page and logs refusals."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files
from typing import Final

from aiohttp import web

from telepresence.streaming.http.access import AccessPolicy, ClientRequest, Refusal
from telepresence.streaming.rtc.offer import MAX_BYTES

CORS_HEADERS: Final = {
    "Access-Control-Expose-Headers": "Location, Link, Retry-After, WWW-Authenticate",
    "Vary": "Origin",
}
"""CORS headers of answers to pages of an allowed foreign origin; they exclude cookies."""
PREFLIGHT_HEADERS: Final = {
    "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE",
    "Access-Control-Allow-Headers": "Authorization, Content-Type",
    "Access-Control-Allow-Private-Network": "true",  # from a public page to this machine
    "Access-Control-Max-Age": "600",
}
"""CORS headers of the answer to a preflight request."""
LOGIN_POLICY: Final = (
    "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""Content-Security-Policy of the login page."""
LOG_S: Final = 10.0
"""Seconds between two log lines about refusals for the same reason; those in between are counted."""

log = logging.getLogger("telepresence")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """HTTP response with ``status`` and one line of plain text."""
    return web.Response(status=status, text=message + "\n", headers=headers)


class AccessMiddleware:
    """Refuses requests that the `AccessPolicy` does not allow, with one line of text, and logs refusals.

    A browser that opens the page without a token gets the login page instead.
    """

    def __init__(self, access: AccessPolicy) -> None:
        self._access = access
        self._refusals = RefusalLog()
        self._login_page = files("telepresence.streaming").joinpath("page", "login.html").read_text("utf-8")

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer ``request`` by ``handler`` if it is allowed."""
        checked = _client_request(request)
        refusal = self._access.check(checked)
        if refusal is not None:
            self._refusals.log(request, refusal.reason)
            return self._add_cors(checked, self._refuse(request, refusal))
        if (cookie := self._access.login_cookie(checked)) is not None:  # redirect: removes the token from the URL
            return web.Response(status=303, headers={"Location": "/", "Set-Cookie": cookie})
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            return self._add_cors(checked, web.Response(status=204, headers=PREFLIGHT_HEADERS))
        try:
            response = await handler(request)
        except web.HTTPException as error:
            message = f"at most {MAX_BYTES} bytes are allowed" if error.status == 413 else error.reason.lower()
            allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
            response = error_response(error.status, message, allow)
        if response.status == 404 and request.method == "DELETE":
            self._refusals.log(request, "no such session")
        return self._add_cors(checked, response)

    def _refuse(self, request: web.Request, refusal: Refusal) -> web.Response:
        if refusal.status != 401 or request.path != "/" or "text/html" not in request.headers.get("Accept", ""):
            return error_response(refusal.status, refusal.message, refusal.headers)
        text = self._login_page.replace(" hidden>", ">") if "token" in request.query else self._login_page
        headers = {**refusal.headers, "Content-Security-Policy": LOGIN_POLICY}
        return web.Response(status=401, text=text, content_type="text/html", headers=headers)

    def _add_cors(self, checked: ClientRequest, response: web.StreamResponse) -> web.StreamResponse:
        if checked.origin is not None and self._access.allows_origin(checked.origin):
            response.headers.update({"Access-Control-Allow-Origin": checked.origin, **CORS_HEADERS})
        return response


class RefusalLog:
    """Log of refused requests, at most one line in `LOG_S` seconds for each reason.

    The lines contain nothing secret and nothing that a client can choose: the route, never query or session.
    """

    def __init__(self) -> None:
        self._logged: dict[str, tuple[float, int]] = {}  # by reason: time of the last line, refusals since then

    def log(self, request: web.Request, reason: str) -> None:
        """Log or count the refusal of ``request``."""
        now = time.monotonic()
        when, count = self._logged.get(reason, (-LOG_S, 0))
        if now - when < LOG_S:
            self._logged[reason] = when, count + 1
            return
        self._logged[reason] = now, 0
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


def _client_request(request: web.Request) -> ClientRequest:
    return ClientRequest(
        request.method,
        request.path,
        request.query_string,
        request.remote or "",
        request.host,
        request.headers.get("Origin"),
        request.headers.get("Authorization"),
        request.headers.get("Cookie"),
    )
