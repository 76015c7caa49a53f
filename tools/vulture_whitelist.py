"""Names that are used although vulture sees no use of them, grouped by the reason; read by `make lint`."""

from typing import Any


class _Anything:
    """Stands for any object, so that the names below are attributes."""

    def __getattr__(self, name: str) -> Any: ...


used = _Anything()

# Attributes of PyAV's codec contexts and frames, which FFmpeg reads.
used.bit_rate
used.color_primaries
used.color_range
used.color_trc
used.colorspace
used.framerate
used.gop_size
used.pict_type
used.pix_fmt
used.qmax
used.qmin
used.sample_rate
used.thread_type

# Attributes of other libraries: pygame's rectangles, zipfile's entries, tiny-cuda-nn's modules.
used.compress_type
used.jit_fusion
used.midright
used.topleft

# Read by Typer and the logging module.
used.__annotations__
used.__signature__
used.msg

# Methods that a library calls: Prometheus, pickle, logging, aiohttp, MkDocs, Typer.
used._root
used.connection_made
used.describe
used.enqueue
used.find_class
used.on_page_markdown

# References that keep an object alive, or replace an attribute of a library's class.
used._server
used.microphone_task

# Members that are reached through their class: an enum's values, fields of records that are written as a whole.
used.H264
used.cells_dropped
used.licence
used.rays_cut
used.registers
used.spilled
used.steps_dropped

# Called through an instance of a protocol.
used.__call__

# Public interface of insta_runtime, for programs that measure; the reference that tests compare kernels with.
used.load_frame
used.nearest_brute_force
used.ssim
