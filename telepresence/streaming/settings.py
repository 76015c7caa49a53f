"""Every knob of the stream."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from insta_runtime.config import setting
from insta_runtime.errors import UserError


@dataclass(frozen=True)
class StreamSettings:
    """Where the daemon listens, and what it sends to viewers."""

    host: str = setting("127.0.0.1", "address to listen on; this machine's own only")
    port: int = setting(8080, "TCP port of the page and the signalling; 0 takes a free one", ge=0, le=65535)
    size: int = setting(512, "side of the streamed picture, even", unit="px", ge=64, le=1024)
    fps: int = setting(30, "pictures a second that leave, new or repeated", unit="1/s", ge=5, le=60)
    bitrate: int = setting(1500, "rate of the shared H.264 encode", unit="kbit/s", ge=100, le=8000)
    preset: str = setting("superfast", "x264 preset", choices=("ultrafast", "superfast", "veryfast", "faster"))
    sound: int = setting(64, "rate of the sound", unit="kbit/s", ge=16, le=256)
    viewers: int = setting(8, "viewers at most; the next one is told to come back later", ge=1, le=64)

    def check(self) -> None:
        """Raise UserError for what the bounds of a single field cannot express."""
        if not is_loopback(self.host):
            raise UserError(
                f"cannot listen on {self.host}: that needs a token and TLS, which are not available yet; use 127.0.0.1"
            )
        if self.size % 2:
            raise UserError(f"stream size {self.size} is odd: H.264 needs an even number of pixels")


def is_loopback(host: str) -> bool:
    """Whether ``host`` (a name or a literal address, without brackets) means this very machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
