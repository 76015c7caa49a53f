"""The data channels of a page: what it asks for, the round trip, and landmarks in place of pictures.

``control`` is ordered and reliable and carries JSON, ``landmarks`` is neither and carries packets
(docs/protocols-page.md).  Nothing that comes in is believed before it has been checked here.
"""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
import numpy as np
from aiortc import RTCDataChannel

from insta_runtime.errors import UserError
from telepresence.runtime.frames import Landmarks
from telepresence.runtime.rate_limiter import RateLimiter
from telepresence.streaming.hooks import Controls

log = logging.getLogger(__name__)

MAX_REQUEST: Final = 512
"""Bytes of a request."""
MAX_UNSENT: Final = 16 * 1024
"""Bytes of answers that may wait for a page; it gets no more until it has taken them."""
MAX_WRONG: Final = 20
"""Messages that cannot be read before a channel is closed."""
REQUESTS_S: Final = 90.0
PACKETS_S: Final = 75.0
"""So many a second are listened to, and no more than a second's worth at once."""

YAW, PITCH = 1.05, 0.5
"""By how much a head may be turned, rad: nobody was seen from behind."""

POINTS: Final = 478
SCORES: Final = 52
HEADER: Final = struct.Struct("<BBHHHI")  # version, whether there is a face, width, height, age in ms, number
VERSION: Final = 1
BODY: Final = POINTS * 3 * 2 + SCORES
SIDES: Final = (16, 8192)  # pixels of a camera's picture
MAX_AGE_MS: Final = 500


class _Request(msgspec.Struct, tag_field="type", tag=str.lower, frozen=True, forbid_unknown_fields=True):
    pass


class Ping(_Request, frozen=True):
    """Comes back as it is: ``t`` is the page's own time."""

    t: Annotated[float, msgspec.Meta(ge=0, le=1e15)]


class Freeze(_Request, frozen=True):
    on: bool


class Mute(_Request, frozen=True):
    on: bool


class Recalibrate(_Request, frozen=True):
    pass


class Orbit(_Request, frozen=True):
    """Turn the head that is seen, on top of its own motion: rad to the right of the picture, and up."""

    yaw: Annotated[float, msgspec.Meta(ge=-YAW, le=YAW)]
    pitch: Annotated[float, msgspec.Meta(ge=-PITCH, le=PITCH)]


class Withhold(_Request, frozen=True):
    """The page would like to keep its pictures and send landmarks: is that enough?"""


Request = Ping | Freeze | Mute | Recalibrate | Orbit | Withhold

_REQUESTS: Final = msgspec.json.Decoder(Request)


@dataclass(frozen=True)
class Withheld:
    """What a browser found in a picture of ``width`` x ``height`` pixels, taken ``age_ms`` before it was sent."""

    number: int
    width: int
    height: int
    age_ms: int
    landmarks: Landmarks | None


def read_request(message: str | bytes) -> Request:
    """A request of a page.  ValueError if it is none."""
    if len(message) > MAX_REQUEST:
        raise ValueError("too long")
    return _REQUESTS.decode(message)  # msgspec's errors are ValueErrors


def read_withheld(packet: str | bytes) -> Withheld:
    """A packet of landmarks.  ValueError if it is none."""
    if not isinstance(packet, bytes) or len(packet) < HEADER.size:
        raise ValueError("too short")
    version, found, width, height, age_ms, number = HEADER.unpack_from(packet)
    if version != VERSION or found > 1 or len(packet) != HEADER.size + (BODY if found else 0):
        raise ValueError("of another version or size")
    if not all(SIDES[0] <= side <= SIDES[1] for side in (width, height)) or age_ms > MAX_AGE_MS:
        raise ValueError("of no camera")
    landmarks = None
    if found:
        numbers = np.frombuffer(packet, "<u2", POINTS * 3, HEADER.size).reshape(POINTS, 3)
        points = numbers.astype(np.float32) / 32768.0 - np.array([0.5, 0.5, 1.0], np.float32)
        scores = np.frombuffer(packet, np.uint8, SCORES, HEADER.size + POINTS * 6)
        landmarks = Landmarks(points, scores.astype(np.float32) / 255.0)
    return Withheld(number, width, height, age_ms, landmarks)


class PageChannels:
    """The data channels of one peer; lives on the event loop.  `open` is for aiortc's ``datachannel`` event."""

    def __init__(self, controls: Controls, take: Callable[[Withheld], None] | None) -> None:
        """``take`` gets what is found in withheld pictures; None of a peer that gives no camera."""
        self._controls = controls
        self._take = take
        self._labels: set[str] = set()
        self._newest = -1
        self.dropped = 0  # messages that were too many, too late or wrong

    def open(self, channel: RTCDataChannel) -> None:
        """Listen to a channel that the page has opened; one of each kind, and no other."""
        listen = {"control": self._control, "landmarks": self._landmarks}.get(channel.label)
        if listen is None or channel.label in self._labels:
            channel.close()
            return
        self._labels.add(channel.label)
        rate = REQUESTS_S if channel.label == "control" else PACKETS_S
        limiter = RateLimiter(rate, burst=rate)
        wrong = 0

        def on_message(message: str | bytes) -> None:
            nonlocal wrong
            if wrong >= MAX_WRONG:
                return
            if not limiter.acquire(time.monotonic()):
                self.dropped += 1
                return
            try:
                listen(channel, message)
            except ValueError:
                self.dropped += 1
                wrong += 1
                if wrong == MAX_WRONG:
                    log.warning("a page sends what cannot be read: its channel %s is closed", channel.label)
                    channel.close()

        channel.on("message", on_message)

    def _control(self, channel: RTCDataChannel, message: str | bytes) -> None:
        request = read_request(message)
        if isinstance(request, Ping):
            _send(channel, {"type": "pong", "t": request.t})
            return
        kind = type(request).__name__.lower()
        try:
            self._do(request)
        except UserError as error:
            _send(channel, {"type": "refused", "of": kind, "text": str(error)})
        else:
            _send(channel, {"type": "done", "of": kind})

    def _do(self, request: Request) -> None:
        controls = self._controls
        match request:
            case Freeze(on):
                controls.freeze(on)
            case Mute(on):
                controls.mute(on)
            case Recalibrate():
                controls.recalibrate()
            case Orbit(yaw, pitch):
                controls.orbit(yaw, pitch)
            case Withhold():
                controls.withhold()

    def _landmarks(self, _channel: RTCDataChannel, message: str | bytes) -> None:
        withheld = read_withheld(message)
        if self._take is None:
            raise ValueError("of a page without a camera")
        if withheld.number <= self._newest:
            self.dropped += 1
            return
        self._newest = withheld.number
        self._take(withheld)


def _send(channel: RTCDataChannel, message: dict[str, object]) -> None:
    if channel.readyState == "open" and channel.bufferedAmount < MAX_UNSENT:
        channel.send(msgspec.json.encode(message).decode())
