"""Every knob of the stream."""

from __future__ import annotations

from dataclasses import dataclass, field

from insta_runtime.config import setting
from insta_runtime.errors import UserError
from telepresence.streaming.access_settings import AccessSettings, IceSettings, PublishSettings
from telepresence.streaming.rtc.network_simulation import LinkPlan


@dataclass(frozen=True)
class StreamSettings:
    """Where the daemon listens, and what it sends to viewers."""

    host: str = setting("127.0.0.1", "address to listen on; one that others reach needs a token and TLS")
    port: int = setting(8080, "TCP port of the page and the signalling; 0 takes a free one", ge=0, le=65535)
    size: int = setting(512, "side of the streamed picture, even", unit="px", ge=64, le=1024)
    fps: int = setting(30, "pictures a second that leave, new or repeated", unit="1/s", ge=5, le=60)
    bitrate: int = setting(1500, "rate of the pictures, for those who can take it", unit="kbit/s", ge=100, le=8000)
    adapt: bool = setting(True, "give viewers what their link can take; false: the best to all of them")
    encoder: str = setting(
        "auto", "what makes H.264; auto: NVENC where it works, else x264", choices=("auto", "x264", "nvenc")
    )
    preset: str = setting("superfast", "x264 preset", choices=("ultrafast", "superfast", "veryfast", "faster"))
    sound: int = setting(64, "rate of the sound", unit="kbit/s", ge=16, le=256)
    viewers: int = setting(8, "viewers at most; the next one is told to come back later", ge=1, le=64)
    link: str = setting(
        "",
        "a worse network to each viewer, for trying out: rate=600,delay=20,loss=5,queue=300 in kbit/s, ms, %;"
        " rate=2000:15/500:15/2000 steps every 15 s; empty: none",
    )

    access: AccessSettings = field(default_factory=AccessSettings)
    ice: IceSettings = field(default_factory=IceSettings)
    publish: PublishSettings = field(default_factory=PublishSettings)

    def check(self) -> None:
        """Raise UserError for what the bounds of a single field cannot express."""
        self.access.check(self.host)
        self.ice.check()
        self.publish.check()
        if self.link:
            LinkPlan.parse(self.link)
        if self.size % 2:
            raise UserError(f"stream size {self.size} is odd: H.264 needs an even number of pixels")
