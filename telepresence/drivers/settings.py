"""Every knob of what moves the face from outside."""

from __future__ import annotations

from dataclasses import dataclass

from insta_runtime.config import setting
from insta_runtime.errors import UserError


@dataclass(frozen=True)
class DriverSettings:
    """Where head states come from and go to, besides ``run.zmq``; empty: not at all."""

    livelink: str = setting("", "where Live Link Face sends to (UDP): on (127.0.0.1:11111), PORT or HOST:PORT")
    vmc: str = setting("", "where VMC senders such as VSeeFace send to (OSC): on (127.0.0.1:39539), PORT or HOST:PORT")
    openseeface: str = setting("", "where OpenSeeFace sends to (UDP): on (127.0.0.1:11573), PORT or HOST:PORT")
    only_from: str = setting("", "address of the one machine whose UDP packets count; needed to listen beyond this one")
    take: str = setting("", "recorded take, or its tracked folder, that moves the face over and over")
    subscribe: str = setting("", "ZeroMQ address of a daemon whose published states move the face")
    publish: str = setting("", "ZeroMQ address at which tracked states are published for others")
    keys: str = setting("", "folder with CURVE keys, made at first: encrypts ZeroMQ, and admits other machines")
    fade_s: float = setting(0.4, "time in which one driver hands over to the next", unit="s", ge=0.0, le=5.0)
    idle: bool = setting(True, "breathe and blink while nobody moves the face that was moved before")

    def check(self) -> None:
        """Raise UserError for what the bounds of a single field cannot express."""
        from telepresence.drivers.udp import BRIDGES, check_endpoint

        for name in BRIDGES:
            check_endpoint(name, getattr(self, name), self.only_from)


NAMES = ("livelink", "vmc", "openseeface", "take")
"""What ``--driver`` takes."""


def parse_drivers(texts: list[str]) -> dict[str, str]:
    """The settings that ``--driver NAME[=WHERE]`` stand for.  UserError for what is no driver."""
    found: dict[str, str] = {}
    for text in texts:
        name, _, where = text.partition("=")
        if name not in NAMES:
            raise UserError(f"there is no driver '{name}': they are {', '.join(NAMES)}")
        if name == "take" and not where:
            raise UserError("--driver take needs a recording: --driver take=take.npz")
        found[f"drivers.{name}"] = where or "on"
    return found
