"""A WHIP sender: FFmpeg's own muxer, run as ``python -m tests.support.whip_sender URL PROFILE FRAMES [CERT KEY]``.

It is a process of its own, because PyAV holds the interpreter's lock while FFmpeg waits for the server's answer.
Sends grey frames of 160 x 120 pixels, 20 a second, encoded by x264 in ``PROFILE`` (``baseline``, ``main``, ``high``).
"""

from __future__ import annotations

import sys
import time

import av
import numpy as np


def main(url: str, profile: str, frames: str, *certificate: str) -> None:
    """Send ``frames`` frames to ``url``; ``certificate``: files of the certificate and its key."""
    options = dict(zip(("cert_file", "key_file"), certificate, strict=False))
    with av.open(url, "w", format="whip", options=options) as out:
        stream = out.add_stream("libx264", rate=20)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        stream.codec_context.gop_size = 10
        stream.options = {"profile": profile, "preset": "veryfast", "tune": "zerolatency"}
        for index in range(int(frames)):
            image = np.full((120, 160, 3), 90, np.uint8)
            image[:, 8 * (index % 20) : 8 * (index % 20) + 8] = 200
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = index
            out.mux(stream.encode(frame))
            time.sleep(0.05)


if __name__ == "__main__":
    main(*sys.argv[1:])
