"""The avatar goes to a server that has room for everybody: the daemon as a WHIP client (RFC 9725)."""

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

from telepresence.runtime.policy import POLICIES, Condition, Health
from telepresence.streaming.access_settings import PublishSettings
from telepresence.streaming.rtc.ice import IceServers
from telepresence.streaming.rtc.offer import MAX_BYTES
from telepresence.streaming.rtc.peer_stream import Feed
from telepresence.streaming.rtc.peers import CONNECT_S, end, received

log = logging.getLogger("telepresence")

ANSWER_S: Final = 10.0
GOODBYE_S: Final = 2.0
LOOK_S: Final = 0.5
PUBLISH: Final = POLICIES["publish"]
"""Its pauses are taken a fifth longer or shorter, so that many daemons do not come back to a server at once."""
LONGEST_S: Final = 120.0
"""A server that asks for more patience than this is asked again nevertheless."""
REDIRECTS: Final = 3


class _Trouble(Exception):
    """Why it cannot be published now, in words; ``wait_s`` is how long the server asks to be left alone."""

    def __init__(self, text: str, wait_s: float = 0.0) -> None:
        super().__init__(text)
        self.wait_s = wait_s


@dataclass(frozen=True)
class _Session:
    pc: RTCPeerConnection
    address: str | None  # to be deleted at the end


class Publisher:
    """Keeps the avatar published from `run` to its cancellation, however often the server goes away."""

    def __init__(self, settings: PublishSettings, feed: Feed, ice: IceServers) -> None:
        self._url, self._token = settings.url, settings.token
        self._feed = feed
        self._ice = ice
        self._condition = Condition.RESTARTING
        self._error: str | None = None
        self._restarts = 0
        self._heard = time.monotonic()

    def health(self, now: float) -> Health:
        """How it goes; any thread."""
        return Health(self._condition, max(0.0, now - self._heard), self._restarts, self._error)

    async def run(self) -> None:
        """Publish, again and again; ends by cancellation only."""
        failures = 0
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_S)) as http:
            while True:
                session: _Session | None = None
                try:
                    session = await self._open(http)
                    await self._connected(session.pc)
                    failures = 0
                    self._tell(None)
                    await self._lost(session.pc)
                except Exception as error:  # a server may answer anything, which aiortc's parser may trip over
                    no_use = _Trouble(f"its answer is no use ({type(error).__name__})")
                    trouble = error if isinstance(error, _Trouble) else no_use
                    self._tell(str(trouble))
                    wait = max(PUBLISH.pauses[min(failures, len(PUBLISH.pauses) - 1)], min(trouble.wait_s, LONGEST_S))
                    failures += 1
                finally:
                    if session is not None:
                        await self._close(http, session)
                self._restarts += 1
                await asyncio.sleep(wait * random.uniform(0.8, 1.2))  # noqa: S311 - no secret

    def _tell(self, trouble: str | None) -> None:
        """Remember how it goes, and tell the log where that is new; neither token nor path, which may be a secret."""
        host = urlsplit(self._url).netloc
        condition = Condition.RUNNING if trouble is None else Condition.RESTARTING
        if (condition, trouble) == (self._condition, self._error):
            return
        self._condition, self._error = condition, trouble
        fields = {"host": host, "error": trouble}
        if trouble is None:
            log.info("published to %s", host, extra={"event": "published", "stage": "publish", "fields": fields})
        else:
            log.warning(
                "cannot publish to %s: %s; trying again",
                host,
                trouble,
                extra={"event": "trouble", "stage": "publish", "fields": fields},
            )

    async def _open(self, http: aiohttp.ClientSession) -> _Session:
        """Offer, and take the answer."""
        pc = RTCPeerConnection(self._ice.configuration())
        address: str | None = None
        try:
            video = self._feed.add(pc, "sendonly")
            self._feed.add_sound(pc, "sendonly")
            await pc.setLocalDescription(await pc.createOffer())
            address, body = await self._post(http, pc.localDescription.sdp)
            answer = _sdp(body)
            self._feed.attach(video.sender, answer)
            await pc.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        except BaseException:
            await self._close(http, _Session(pc, address))
            raise
        return _Session(pc, address)

    async def _post(self, http: aiohttp.ClientSession, offer: str) -> tuple[str | None, bytes]:
        """The address of the session, and what is to be its SDP answer."""
        url = self._url
        for _ in range(1 + REDIRECTS):
            headers = {"Content-Type": "application/sdp", **self._authorization(url)}
            try:
                async with http.post(url, data=offer, headers=headers, allow_redirects=False) as response:
                    if response.status in (307, 308):
                        url = _follow(url, response.headers.get("Location", ""))
                        continue
                    if response.status != 201:
                        raise _Trouble(_refused(response.status), _seconds(response.headers.get("Retry-After")))
                    place = response.headers.get("Location")
                    return (urljoin(url, place) if place else None), await _read(response)
            except aiohttp.ClientConnectorCertificateError as error:
                raise _Trouble("its certificate is not valid for that name") from error
            except aiohttp.ClientConnectionError as error:
                raise _Trouble("it cannot be reached") from error
            except TimeoutError as error:
                raise _Trouble(f"it has not answered within {ANSWER_S:.0f} s") from error
        raise _Trouble("it sends from one address to the next")

    def _authorization(self, url: str) -> dict[str, str]:
        """The token, for nobody but the server that it was given for."""
        same = urlsplit(url)[:2] == urlsplit(self._url)[:2]
        return {"Authorization": f"Bearer {self._token}"} if self._token and same else {}

    async def _connected(self, pc: RTCPeerConnection) -> None:
        end = time.monotonic() + CONNECT_S
        while pc.connectionState != "connected":
            if time.monotonic() > end or pc.connectionState in ("failed", "closed"):
                raise _Trouble("it answers, but no media gets through to it")
            await asyncio.sleep(0.05)

    async def _lost(self, pc: RTCPeerConnection) -> None:
        """Raises once the server is gone."""
        quiet_s, packets = 0.0, -1
        while pc.connectionState == "connected" and quiet_s < PUBLISH.silent_s:
            await asyncio.sleep(LOOK_S)
            quiet_s += LOOK_S
            if (now := await received(pc)) != packets:
                quiet_s, packets, self._heard = 0.0, now, time.monotonic()
        raise _Trouble("the connection to it was lost")

    async def _close(self, http: aiohttp.ClientSession, session: _Session) -> None:
        """End a session on both sides, as far as that can be."""

        async def delete(address: str) -> None:
            headers = self._authorization(address)
            try:
                async with http.delete(address, headers=headers, timeout=aiohttp.ClientTimeout(total=GOODBYE_S)):
                    pass
            except (aiohttp.ClientError, TimeoutError, ValueError):
                log.debug("the server did not hear that the session has ended")

        try:
            if session.address is not None:
                await delete(session.address)
        finally:
            await end(session.pc)


def _follow(url: str, place: str) -> str:
    """Where a redirect leads; never from https to http."""
    target = urljoin(url, place)
    if urlsplit(target).scheme != "https" and urlsplit(target).scheme != urlsplit(url).scheme:
        raise _Trouble("it sends to an address that is not safe")
    return target


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body, of which at most one byte more than is allowed; empty if it does not call itself SDP."""
    body = b""
    while len(body) <= MAX_BYTES and (more := await response.content.read(MAX_BYTES + 1 - len(body))):
        body += more
    return body if response.content_type == "application/sdp" else b""


def _sdp(body: bytes) -> str:
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise _Trouble("its answer is not SDP") from error
    if not text.startswith("v=0") or len(body) > MAX_BYTES:
        raise _Trouble("its answer is not SDP")
    return text


def _refused(status: int) -> str:
    words = {
        401: "it wants another token (--publish-token)",
        403: "it does not allow that with this token (--publish-token)",
        404: "there is nothing at that address",
        409: "somebody else publishes there",
        503: "it has no room now",
    }
    return words.get(status, f"it answers with status {status}")


def _seconds(retry_after: str | None) -> float:
    return float(retry_after) if retry_after is not None and retry_after.isdecimal() and len(retry_after) < 7 else 0.0
