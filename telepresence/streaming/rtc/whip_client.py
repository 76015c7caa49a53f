"""WHIP client (RFC 9725): publishes the avatar to a server that distributes it to many viewers."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass
from typing import Final
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiortc import RTCPeerConnection, RTCSessionDescription

from telepresence.runtime.failure_policy import POLICIES, Condition, Health
from telepresence.streaming.rtc import aiortc_hooks
from telepresence.streaming.rtc.ice import IceServers
from telepresence.streaming.rtc.offer import MAX_BYTES
from telepresence.streaming.rtc.peer_stream import PeerStream
from telepresence.streaming.rtc.peers import CONNECT_S, close_connection, packets_received
from telepresence.streaming.rtc.settings import PublishSettings

log = logging.getLogger("telepresence")

ANSWER_S: Final = 10.0
"""Seconds within which the WHIP server must answer an HTTP request."""
DELETE_S: Final = 2.0
"""Seconds to wait for the answer to the DELETE that ends a WHIP session."""
CHECK_S: Final = 0.5
"""Seconds between two checks whether the WHIP server still sends packets."""
PUBLISH: Final = POLICIES["publish"]
"""Restart policy of publishing; pauses vary by ±20 %, so that many daemons do not reconnect at the same moment."""
MAX_RETRY_AFTER_S: Final = 120.0
"""Longest pause in seconds that a server can ask for by ``Retry-After``."""
MAX_REDIRECTS: Final = 3
"""Maximum number of redirects that are followed."""


class _PublishError(Exception):
    """Reason why publishing failed; ``retry_after_s`` is the pause that the server asked for, in seconds."""

    def __init__(self, text: str, retry_after_s: float = 0.0) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class _WhipSession:
    pc: RTCPeerConnection
    url: str | None  # for DELETE at the end


class WhipClient:
    """Publishes the avatar to a WHIP server while `run` runs, and reconnects after every failure."""

    def __init__(self, settings: PublishSettings, stream: PeerStream, ice: IceServers) -> None:
        self._url, self._token = settings.url, settings.token
        self._stream = stream
        self._ice = ice
        self._condition = Condition.RESTARTING
        self._error: str | None = None
        self._restarts = 0
        self._last_packet = time.monotonic()

    def health(self, now: float) -> Health:
        """Health of the stage ``publish``; any thread.  ``now``: monotonic seconds."""
        return Health(self._condition, max(0.0, now - self._last_packet), self._restarts, self._error)

    async def run(self) -> None:
        """Publish, and reconnect after every failure; runs until it is cancelled."""
        failures = 0
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_S)) as http:
            while True:
                session: _WhipSession | None = None
                try:
                    session = await self._open(http)
                    await self._wait_until_connected(session.pc)
                    failures = 0
                    self._report(None)
                    await self._wait_until_lost(session.pc)
                except Exception as caught:  # a server may answer anything, and aiortc's parser may raise anything
                    unusable = _PublishError(f"its answer cannot be used ({type(caught).__name__})")
                    error = caught if isinstance(caught, _PublishError) else unusable
                    self._report(str(error))
                    pause = PUBLISH.pauses[min(failures, len(PUBLISH.pauses) - 1)]
                    wait = max(pause, min(error.retry_after_s, MAX_RETRY_AFTER_S))
                    failures += 1
                finally:
                    if session is not None:
                        await self._close(http, session)
                self._restarts += 1
                await asyncio.sleep(wait * random.uniform(0.8, 1.2))  # noqa: S311 - not used for security

    def _report(self, error: str | None) -> None:
        """Store the state of publishing, and log it if it has changed; without token and path, which may be secret."""
        host = urlsplit(self._url).netloc
        condition = Condition.RUNNING if error is None else Condition.RESTARTING
        if (condition, error) == (self._condition, self._error):
            return
        self._condition, self._error = condition, error
        fields = {"host": host, "error": error}
        if error is None:
            log.info("published to %s", host, extra={"event": "published", "stage": "publish", "fields": fields})
        else:
            log.warning(
                "cannot publish to %s: %s; trying again",
                host,
                error,
                extra={"event": "error", "stage": "publish", "fields": fields},
            )

    async def _open(self, http: aiohttp.ClientSession) -> _WhipSession:
        """Send an SDP offer and apply the answer."""
        pc = RTCPeerConnection(self._ice.configuration())
        url: str | None = None
        try:
            video = self._stream.add_video(pc, "sendonly")
            self._stream.add_audio(pc, "sendonly")
            await pc.setLocalDescription(await pc.createOffer())
            url, body = await self._post(http, pc.localDescription.sdp)
            answer = _decode_sdp(body)
            self._stream.attach(video.sender, answer)
            await pc.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        except BaseException:
            await self._close(http, _WhipSession(pc, url))
            raise
        return _WhipSession(pc, url)

    async def _post(self, http: aiohttp.ClientSession, offer: str) -> tuple[str | None, bytes]:
        """POST the offer, following redirects; returns the URL of the session and the body of the answer."""
        url = self._url
        for _ in range(1 + MAX_REDIRECTS):
            headers = {"Content-Type": "application/sdp", **self._authorization(url)}
            try:
                async with http.post(url, data=offer, headers=headers, allow_redirects=False) as response:
                    if response.status in (307, 308):
                        url = _redirect_target(url, response.headers.get("Location", ""))
                        continue
                    if response.status != 201:
                        retry_after_s = _parse_retry_after(response.headers.get("Retry-After"))
                        raise _PublishError(_status_text(response.status), retry_after_s)
                    location = response.headers.get("Location")
                    return (urljoin(url, location) if location else None), await _read_sdp(response)
            except aiohttp.ClientConnectorCertificateError as error:
                raise _PublishError("its TLS certificate is not valid for that name") from error
            except aiohttp.ClientConnectionError as error:
                raise _PublishError("it cannot be reached") from error
            except TimeoutError as error:
                raise _PublishError(f"it has not answered within {ANSWER_S:.0f} s") from error
        raise _PublishError(f"it redirects more than {MAX_REDIRECTS} times")

    def _authorization(self, url: str) -> dict[str, str]:
        """Header with the token, for the configured server only."""
        same = urlsplit(url)[:2] == urlsplit(self._url)[:2]
        return {"Authorization": f"Bearer {self._token}"} if self._token and same else {}

    async def _wait_until_connected(self, pc: RTCPeerConnection) -> None:
        end = time.monotonic() + CONNECT_S
        while pc.connectionState != "connected":
            if time.monotonic() > end or pc.connectionState in ("failed", "closed"):
                reason = aiortc_hooks.connection_failure(pc)
                raise _PublishError(f"it answers, but no media connection to it can be made ({reason})")
            await asyncio.sleep(0.05)

    async def _wait_until_lost(self, pc: RTCPeerConnection) -> None:
        """Raises _PublishError once the connection is lost."""
        silent_s, packets = 0.0, -1
        while pc.connectionState == "connected" and silent_s < PUBLISH.silent_s:
            await asyncio.sleep(CHECK_S)
            silent_s += CHECK_S
            if (received := await packets_received(pc)) != packets:
                silent_s, packets, self._last_packet = 0.0, received, time.monotonic()
        raise _PublishError("the connection to it was lost")

    async def _close(self, http: aiohttp.ClientSession, session: _WhipSession) -> None:
        """End a session: DELETE on the server, if it can be reached, and close the connection."""

        async def delete(url: str) -> None:
            timeout = aiohttp.ClientTimeout(total=DELETE_S)
            try:
                async with http.delete(url, headers=self._authorization(url), timeout=timeout):
                    pass
            except (aiohttp.ClientError, TimeoutError, ValueError):
                log.debug("the WHIP server could not be informed of the end of the session")

        try:
            if session.url is not None:
                await delete(session.url)
        finally:
            await close_connection(session.pc)


def _redirect_target(url: str, location: str) -> str:
    """URL that a redirect leads to; _PublishError if it leads from https to another scheme."""
    target = urljoin(url, location)
    if urlsplit(target).scheme != "https" and urlsplit(target).scheme != urlsplit(url).scheme:
        raise _PublishError("it redirects to an unencrypted address")
    return target


async def _read_sdp(response: aiohttp.ClientResponse) -> bytes:
    """Body of ``response``, cut off one byte above the maximum; empty if its media type is not SDP."""
    body = b""
    while len(body) <= MAX_BYTES and (more := await response.content.read(MAX_BYTES + 1 - len(body))):
        body += more
    return body if response.content_type == "application/sdp" else b""


def _decode_sdp(body: bytes) -> str:
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise _PublishError("its answer is not SDP") from error
    if not text.startswith("v=0") or len(body) > MAX_BYTES:
        raise _PublishError("its answer is not SDP")
    return text


def _status_text(status: int) -> str:
    """Meaning of a status other than 201, in words."""
    texts = {
        401: "it refuses the token; give the right one with --publish-token",
        403: "it does not allow publishing with this token; give another with --publish-token",
        404: "there is no WHIP endpoint at that address",
        409: "another client publishes there",
        503: "it is overloaded",
    }
    return texts.get(status, f"it answers with status {status}")


def _parse_retry_after(text: str | None) -> float:
    """Seconds of a ``Retry-After`` header; 0.0 if there is none, or a date."""
    return float(text) if text is not None and text.isdecimal() and len(text) < 7 else 0.0
