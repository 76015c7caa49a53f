"""Settings of the media server."""

from __future__ import annotations

from dataclasses import dataclass, field

from insta_runtime.config import setting
from insta_runtime.errors import UserError
from telepresence.runtime.addresses import resolve, without_brackets
from telepresence.streaming.http.settings import AccessSettings
from telepresence.streaming.rtc.network_simulation import LinkProfile
from telepresence.streaming.rtc.settings import IceSettings, PublishSettings


@dataclass(frozen=True)
class StreamSettings:
    """Settings of the media server: where it listens, and which video and audio it sends to viewers."""

    host: str = setting("127.0.0.1", "address to listen on; an address of a network needs a token and TLS")
    port: int = setting(8080, "TCP port of the page and of signalling; 0: any free port", ge=0, le=65535)
    size: int = setting(512, "side of the streamed frames, even", unit="px", ge=64, le=1024)
    fps: int = setting(
        30, "frame rate of the stream; frames are repeated where the avatar is slower", unit="1/s", ge=5, le=60
    )
    bitrate: int = setting(1500, "maximum bitrate of the video", unit="kbit/s", ge=100, le=8000)
    adapt: bool = setting(True, "adapt the stream to the bandwidth of each viewer; false: the best tier for all")
    encoder: str = setting(
        "auto", "H.264 encoder; auto: NVENC where it works, else x264", choices=("auto", "x264", "nvenc")
    )
    preset: str = setting("superfast", "x264 preset", choices=("ultrafast", "superfast", "veryfast", "faster"))
    audio_bitrate: int = setting(64, "bitrate of the audio", unit="kbit/s", ge=16, le=256)
    viewers: int = setting(8, "maximum number of viewers; further ones are refused with 503", ge=1, le=64)
    link: str = setting(
        "",
        "simulate a worse network to each viewer: rate=600,delay=20,loss=5,queue=300 in kbit/s, ms, %, ms;"
        " rate=2000:15/500:15/2000 changes every 15 s; empty: no simulation",
    )

    access: AccessSettings = field(default_factory=AccessSettings)
    ice: IceSettings = field(default_factory=IceSettings)
    publish: PublishSettings = field(default_factory=PublishSettings)

    def check(self) -> None:
        """Raise UserError for settings that are invalid although each one is within its range."""
        self.access.check(without_brackets(self.host))
        if self.host:
            resolve(without_brackets(self.host))
        self.ice.check()
        self.publish.check()
        if self.link:
            LinkProfile.parse(self.link)
        if self.size % 2:
            raise UserError(f"stream.size {self.size} is odd: H.264 needs an even number of pixels")
