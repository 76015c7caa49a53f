"""WebRTC data channels of the page: JSON requests with answers, round-trip probes, and packets of face landmarks.

``control`` is ordered and reliable and carries JSON; ``landmarks`` is unordered and unreliable and carries binary
packets (docs/protocols-page.md).  All messages are validated here.
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
from telepresence.streaming.daemon_interface import DaemonInterface

log = logging.getLogger(__name__)

MAX_REQUEST: Final = 512
"""Maximum size in bytes of a request on the control channel."""
MAX_UNSENT: Final = 16 * 1024
"""Maximum number of bytes of answers queued for a page; further answers are dropped until it has received these."""
MAX_MALFORMED: Final = 20
"""Number of malformed messages after which a data channel is closed."""
MAX_REQUEST_RATE: Final = 90.0
"""Maximum number of requests a second that are read from a control channel."""
MAX_PACKET_RATE: Final = 75.0
"""Maximum number of packets a second that are read from a landmarks channel."""

MAX_YAW, MAX_PITCH = 1.05, 0.5
"""Maximum angles in radians by which viewers can turn the head; the avatar is not learned from behind."""

POINTS: Final = 478
"""Number of face landmarks of MediaPipe."""
SCORES: Final = 52
"""Number of blendshape scores of MediaPipe."""
HEADER: Final = struct.Struct("<BBHHHI")
"""Header of a landmark packet: version, face found (0 or 1), width, height, age in ms, sequence number."""
VERSION: Final = 1
"""Version of the landmark packet format."""
BODY: Final = POINTS * 3 * 2 + SCORES
"""Size in bytes of the part of a landmark packet after the header, where a face was found."""
SIDES: Final = (16, 8192)
"""Smallest and largest side in pixels of a camera frame that landmarks may belong to."""
MAX_AGE_MS: Final = 500
"""Maximum time in milliseconds between the capture of a frame and the sending of its landmark packet."""


def _tag(name: str) -> str:
    """Value of ``type`` in the JSON of a request class, like ``freeze`` for FreezeRequest."""
    return name.removesuffix("Request").lower()


class _Request(msgspec.Struct, tag_field="type", tag=_tag, frozen=True, forbid_unknown_fields=True):
    pass


class PingRequest(_Request, frozen=True):
    """Probe of the round-trip time: returned with ``t``, a number on the clock of the page."""

    t: Annotated[float, msgspec.Meta(ge=0, le=1e15)]


class FreezeRequest(_Request, frozen=True):
    """Stop learning (``on``), or go on with it."""

    on: bool


class MuteRequest(_Request, frozen=True):
    """Mute the audio of the call for all viewers (``on``), or unmute it."""

    on: bool


class RecalibrateRequest(_Request, frozen=True):
    """Calibrate the subject again."""


class OrbitRequest(_Request, frozen=True):
    """Turn the rendered head, in addition to its own motion, by radians to the right of the image and up."""

    yaw: Annotated[float, msgspec.Meta(ge=-MAX_YAW, le=MAX_YAW)]
    pitch: Annotated[float, msgspec.Meta(ge=-MAX_PITCH, le=MAX_PITCH)]


class WithholdRequest(_Request, frozen=True):
    """Ask whether the page may send landmarks in place of camera frames."""


PageRequest = PingRequest | FreezeRequest | MuteRequest | RecalibrateRequest | OrbitRequest | WithholdRequest

_REQUESTS: Final = msgspec.json.Decoder(PageRequest)


@dataclass(frozen=True)
class LandmarkPacket:
    """Face landmarks of a camera frame of ``width`` x ``height`` pixels that stays in the browser.

    ``age_ms`` is the time from the capture of the frame to the sending of the packet, ``number`` a growing sequence
    number; ``landmarks`` is None where no face was found.
    """

    number: int
    width: int
    height: int
    age_ms: int
    landmarks: Landmarks | None


def parse_request(message: str | bytes) -> PageRequest:
    """Parse a JSON request of a page.  ValueError if it is malformed, unknown or too long."""
    if len(message) > MAX_REQUEST:
        raise ValueError(f"a request may have at most {MAX_REQUEST} bytes, this one has {len(message)}")
    return _REQUESTS.decode(message)  # msgspec's errors are ValueErrors


def parse_landmarks(packet: str | bytes) -> LandmarkPacket:
    """Parse a binary landmark packet.  ValueError if it is malformed."""
    if not isinstance(packet, bytes) or len(packet) < HEADER.size:
        raise ValueError("a landmark packet is shorter than its header")
    version, found, width, height, age_ms, number = HEADER.unpack_from(packet)
    if version != VERSION or found > 1 or len(packet) != HEADER.size + (BODY if found else 0):
        raise ValueError("a landmark packet has an unknown version or a wrong size")
    if not all(SIDES[0] <= side <= SIDES[1] for side in (width, height)) or age_ms > MAX_AGE_MS:
        raise ValueError("a landmark packet has an image size or an age out of range")
    landmarks = None
    if found:
        numbers = np.frombuffer(packet, "<u2", POINTS * 3, HEADER.size).reshape(POINTS, 3)
        points = numbers.astype(np.float32) / 32768.0 - np.array([0.5, 0.5, 1.0], np.float32)
        scores = np.frombuffer(packet, np.uint8, SCORES, HEADER.size + POINTS * 6)
        landmarks = Landmarks(points, scores.astype(np.float32) / 255.0)
    return LandmarkPacket(number, width, height, age_ms, landmarks)


class PageChannels:
    """Data channels of one peer; used on the event loop only.

    Attributes:
        dropped: number of messages that were dropped: malformed, out of order, or above the rate limit.
    """

    def __init__(self, daemon: DaemonInterface, on_landmarks: Callable[[LandmarkPacket], None] | None) -> None:
        """``daemon`` carries out requests; ``on_landmarks`` receives packets (None: this peer sends no camera)."""
        self._daemon = daemon
        self._on_landmarks = on_landmarks
        self._labels: set[str] = set()
        self._newest = -1
        self.dropped = 0

    def open(self, channel: RTCDataChannel) -> None:
        """Handle aiortc's event ``datachannel``: accept one channel of each kind, and close any other."""
        handle = {"control": self._on_request, "landmarks": self._on_packet}.get(channel.label)
        if handle is None or channel.label in self._labels:
            channel.close()
            return
        self._labels.add(channel.label)
        rate = MAX_REQUEST_RATE if channel.label == "control" else MAX_PACKET_RATE
        limiter = RateLimiter(rate, burst=rate)
        malformed = 0

        def on_message(message: str | bytes) -> None:
            nonlocal malformed
            if malformed >= MAX_MALFORMED:
                return
            if not limiter.acquire(time.monotonic()):
                self.dropped += 1
                return
            try:
                handle(channel, message)
            except ValueError:
                self.dropped += 1
                malformed += 1
                if malformed == MAX_MALFORMED:
                    log.warning("a page sends malformed messages: its data channel %s is closed", channel.label)
                    channel.close()

        channel.on("message", on_message)

    def _on_request(self, channel: RTCDataChannel, message: str | bytes) -> None:
        request = parse_request(message)
        if isinstance(request, PingRequest):
            _send(channel, {"type": "pong", "t": request.t})
            return
        kind = _tag(type(request).__name__)
        try:
            self._execute(request)
        except UserError as error:
            _send(channel, {"type": "refused", "of": kind, "text": str(error)})
        else:
            _send(channel, {"type": "done", "of": kind})

    def _execute(self, request: PageRequest) -> None:
        match request:
            case FreezeRequest(on):
                self._daemon.freeze(on)
            case MuteRequest(on):
                self._daemon.mute(on)
            case RecalibrateRequest():
                self._daemon.recalibrate()
            case OrbitRequest(yaw, pitch):
                self._daemon.orbit(yaw, pitch)
            case WithholdRequest():
                self._daemon.withhold()

    def _on_packet(self, _channel: RTCDataChannel, message: str | bytes) -> None:
        packet = parse_landmarks(message)
        if self._on_landmarks is None:
            raise ValueError("landmarks from a peer that sends no camera")
        if packet.number <= self._newest:
            self.dropped += 1
            return
        self._newest = packet.number
        self._on_landmarks(packet)


def _send(channel: RTCDataChannel, message: dict[str, object]) -> None:
    if channel.readyState == "open" and channel.bufferedAmount < MAX_UNSENT:
        channel.send(msgspec.json.encode(message).decode())
