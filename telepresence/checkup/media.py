"""Probes of media: camera, codecs, WebRTC and the virtual camera."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from telepresence.checkup.finding import Finding

DEVICES: Final = Path("/sys/class/video4linux")
"""Folder in which Linux lists its video devices."""
LOOPBACK: Final = Path("/sys/module/v4l2loopback")
"""Folder of the kernel module v4l2loopback; exists while it is loaded."""


def camera() -> Iterator[Finding]:
    """The first camera of the machine; it is not opened, so its light stays off."""
    from telepresence.sources.webcam import default_webcam

    found = default_webcam()
    if found is None:
        advice = "run uses the synthetic actor; or use --source file:VIDEO, or a browser's camera on the page"
        yield Finding("camera", "none", ok=None, advice=advice)
    elif Path(found).exists() and not os.access(found, os.R_OK | os.W_OK):
        advice = "add this user to the group video and log in again: usermod -aG video USER"
        yield Finding("camera", f"{found}, without permission for this user", ok=False, advice=advice)
    else:
        yield Finding("camera", found)


def codecs() -> Iterator[Finding]:
    """Codecs of FFmpeg; each encoder encodes a test frame, since a listed one may still not work."""
    import av

    from telepresence.streaming.video.encoder import nvenc_error, x264_error

    x264 = x264_error()
    yield Finding(
        "H.264",
        f"x264 {'encodes' if x264 is None else f'does not encode: {x264}'}, FFmpeg {av.ffmpeg_version_info}",
        ok=x264 is None,
        advice="" if x264 is None else "pip install --force-reinstall av",
    )
    nvenc = nvenc_error()
    found = "encodes" if nvenc is None else f"not usable ({nvenc}); x264 is used"
    yield Finding("NVENC", found, ok=True if nvenc is None else None)
    for topic, error in (("VP8", _vp8_error()), ("Opus", _opus_error())):
        found = "encodes" if error is None else f"does not encode: {error}"
        yield Finding(topic, found, ok=error is None, advice="" if error is None else "pip install 'av>=14,<20'")
    missing = [name for name in ("h264", "vp8", "opus", "aac") if name not in av.codecs_available]
    yield Finding(
        "decoders",
        f"missing: {', '.join(missing)}" if missing else "H.264, VP8, Opus, AAC",
        ok=not missing,
        advice="pip install 'av>=14,<20'" if missing else "",
    )


def webrtc() -> Iterator[Finding]:
    """Whether the installed aiortc has the internals that shared encoding needs."""
    import importlib.metadata

    from telepresence.streaming.rtc import aiortc_hooks

    lacking = aiortc_hooks.missing_names()
    version = importlib.metadata.version("aiortc")
    if lacking:
        advice = "pip install 'aiortc==1.16.*'"
        text = f"aiortc {version} lacks {', '.join(lacking)}: each viewer needs a separate encoder"
        yield Finding("WebRTC", text, ok=False, advice=advice)
    else:
        yield Finding("WebRTC", f"aiortc {version}; one encode serves all viewers")


def virtual_camera() -> Iterator[Finding]:
    """Whether the avatar can be a virtual camera of this machine, for programs without WebRTC."""
    package = find_spec("pyvirtualcam") is not None
    advice = "" if package else "pip install pyvirtualcam"
    if sys.platform.startswith("linux"):
        yield _loopback(package, advice)
    elif package:
        yield Finding("virtual camera", "pyvirtualcam is installed; OBS is needed too", ok=None)
    else:
        yield Finding("virtual camera", "no pyvirtualcam", ok=None, advice=f"{advice}, and OBS")


def _loopback(package: bool, advice: str) -> Finding:
    topic = "virtual camera"
    if not LOOPBACK.exists():
        module = "apt-get install v4l2loopback-dkms, modprobe v4l2loopback exclusive_caps=1"
        text = "no kernel module v4l2loopback" + ("" if package else ", no pyvirtualcam")
        return Finding(topic, text, ok=None, advice=", ".join(filter(None, (module, advice))))
    caps = LOOPBACK / "parameters" / "exclusive_caps"
    exclusive = caps.exists() and "Y" in caps.read_text().split(",")[0]
    devices = [f"/dev/{path.name}" for path in sorted(DEVICES.glob("video*")) if not (path / "device").exists()]
    denied = [device for device in devices if not os.access(device, os.W_OK)]
    if not devices:
        return Finding(
            topic,
            "v4l2loopback without a device",
            ok=None,
            advice="modprobe -r v4l2loopback, then modprobe v4l2loopback exclusive_caps=1",
        )
    if denied:
        return Finding(
            topic, f"{denied[0]}, without permission for this user", ok=None, advice="usermod -aG video USER"
        )
    if not exclusive:
        advice = ", ".join(filter(None, ("for Chromium: modprobe v4l2loopback exclusive_caps=1", advice)))
    return Finding(topic, ", ".join(devices), ok=(package and exclusive) or None, advice=advice)


def _vp8_error() -> str | None:
    import av
    import numpy as np

    from telepresence.streaming.video.encoder import PROBE_SIDE, Converter, Vp8Encoder

    grey = np.full((PROBE_SIDE, PROBE_SIDE, 3), 128, dtype=np.uint8)
    try:
        packet = Vp8Encoder(PROBE_SIDE, 30, 500_000).encode(Converter().convert(grey, PROBE_SIDE), 0, True)
    except (av.FFmpegError, ValueError) as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None if packet.is_keyframe else "it does not make keyframes on request"


def _opus_error() -> str | None:
    import av
    import numpy as np

    try:
        codec = av.CodecContext.create("libopus", "w")
        codec.sample_rate, codec.layout, codec.format = 48_000, "stereo", "s16"
        codec.open()
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 960), np.int16), format="s16", layout="stereo")
        silence.sample_rate, silence.time_base, silence.pts = 48_000, Fraction(1, 48_000), 0
        packets = [*codec.encode(silence), *codec.encode(None)]
    except (av.FFmpegError, ValueError) as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None if packets else "it produces no packets"
