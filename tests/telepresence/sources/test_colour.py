"""Colours of video files: HDR and wide gamut to sRGB, SDR as it is coded, and what is refused."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from insta_runtime.errors import UserError
from telepresence.sources.colour import SrgbConverter
from telepresence.sources.video_file import VideoFrames, VideoSource

av = pytest.importorskip("av")

PATCHES = np.array(
    [
        [255, 255, 255],
        [190, 190, 190],
        [128, 128, 128],
        [0, 0, 0],
        [200, 30, 30],
        [30, 200, 30],
        [30, 30, 200],
        [220, 170, 140],
        [60, 40, 30],
    ]
)
"""Colours in sRGB: greys, saturated colours, and skin."""
SIDE = 32
BT2020_FROM_BT709 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
P3_FROM_BT709 = np.array([[0.8225, 0.1774, 0.0], [0.0332, 0.9669, 0.0], [0.0171, 0.0724, 0.9108]])
LUMINANCE_2020 = np.array([0.2627, 0.6780, 0.0593])
LUMINANCE_709 = np.array([0.2126, 0.7152, 0.0722])


def linear(srgb):
    part = srgb / 255
    return np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)


def hlg(light):
    """HLG signal of light in units of the HDR white of 203 of 1000 nits (BT.2100)."""
    shown = light * 0.203
    luminance = (shown @ LUMINANCE_2020)[:, None]
    scene = shown * np.maximum(luminance, 1e-9) ** (1 / 1.2 - 1)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-9)) + c)


def pq(light):
    power = (light * 203 / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def gamma(light):
    return light ** (1 / 2.4)


def planes(coded, luminance, full_range=False, bits=10):
    """Y, Cb, Cr (N, 3) of R'G'B' in [0, 1]."""
    y = coded @ luminance
    cb = (coded[:, 2] - y) / (2 * (1 - luminance[2]))
    cr = (coded[:, 0] - y) / (2 * (1 - luminance[0]))
    scale = 2 ** (bits - 8)
    if full_range:
        top = 256 * scale - 1
        values = [top * y, top * cb + 128 * scale, top * cr + 128 * scale]
    else:
        values = [scale * (16 + 219 * y), scale * (128 + 224 * cb), scale * (128 + 224 * cr)]
    return np.stack(values, 1).round().astype(np.uint16)


def picture(yuv, bits=10):
    """Video frame of vertical stripes, 4:2:0."""
    width = SIDE * len(yuv)
    frame = av.VideoFrame(width, SIDE, "yuv420p10le" if bits == 10 else "yuv420p")
    for number, plane in enumerate(frame.planes):
        part = SIDE // 2 if number else SIDE
        kind = np.uint16 if bits == 10 else np.uint8
        rows = np.zeros((part, plane.line_size // np.dtype(kind).itemsize), kind)
        rows[:, : part * len(yuv)] = np.repeat(yuv[:, number], part)
        plane.update(rows.tobytes())
    return frame


def write(
    path, frames, matrix, transfer, primaries, *, full_range=False, codec="ffv1", tag=None, rotation=0, aspect=None
):
    """A file of the frames with these tags."""
    tags = {"colorspace": matrix, "color_trc": transfer, "color_primaries": primaries}
    tags["color_range"] = 2 if full_range else 1
    with av.open(str(path), "w") as container:
        options = {"x265-params": "lossless=1:log-level=none"} if codec == "libx265" else {}
        stream = container.add_stream(codec, rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, frames[0].format.name
        if tag:
            stream.codec_context.codec_tag = tag
        if rotation:
            stream.set_display_rotation(rotation)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for number, frame in enumerate(frames):
            for name, value in tags.items():
                setattr(frame, name, value)
            frame.pts, frame.time_base = number, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def stripes(rgb):
    return rgb[SIDE // 2, SIDE // 2 :: SIDE].astype(int)


def yuv_of(coded, luminance, bits=10, **more):
    return picture(planes(coded, luminance, bits=bits, **more), bits)


@pytest.mark.parametrize(
    ("signal", "transfer", "matrix", "primaries", "full_range", "codec"),
    [
        (hlg, 18, 9, 9, False, "ffv1"),
        (pq, 16, 9, 9, False, "ffv1"),
        (pq, 16, 9, 9, True, "ffv1"),
        (hlg, 18, 2, 2, False, "ffv1"),  # matrix and primaries not stated
        (hlg, 18, 9, 9, False, "libx265"),  # as phones record it
    ],
)
def test_hdr_has_the_colours_of_sdr(tmp_path, signal, transfer, matrix, primaries, full_range, codec):
    coded = signal(linear(PATCHES) @ BT2020_FROM_BT709.T)
    frame = yuv_of(coded, LUMINANCE_2020, full_range=full_range)
    path = tmp_path / ("hdr.mp4" if codec == "libx265" else "hdr.mkv")
    tag = "hvc1" if codec == "libx265" else None
    write(path, [frame], matrix, transfer, primaries, full_range=full_range, codec=codec, tag=tag)
    found = stripes(next(VideoFrames(path)).rgb)
    assert np.abs(found - PATCHES).max() <= 6, found.tolist()
    source = VideoSource(path)
    played = source.read(2.0)
    source.close()
    assert np.array_equal(stripes(played.rgb), found)


def test_highlights_of_hdr_are_compressed_and_keep_their_hue(tmp_path):
    light = np.array([[1.0, 1.0, 1.0], [4.0, 4.0, 4.0], [3.0, 1.5, 0.75]])
    path = write(tmp_path / "bright.mkv", [yuv_of(pq(light), LUMINANCE_2020)], 9, 16, 9)
    white, brighter, orange = stripes(next(VideoFrames(path)).rgb)
    assert 245 <= white.min() < 255
    assert brighter.min() >= 253
    assert orange[0] > 240 > orange[1] > orange[2] + 20


@pytest.mark.parametrize(
    ("transfer", "primaries", "matrix", "from_bt709", "luminance"),
    [
        (14, 9, 9, BT2020_FROM_BT709, LUMINANCE_2020),
        (1, 9, 9, BT2020_FROM_BT709, LUMINANCE_2020),
        (2, 9, 9, BT2020_FROM_BT709, LUMINANCE_2020),
        (1, 12, 1, P3_FROM_BT709, LUMINANCE_709),
    ],
)
def test_wide_primaries_become_those_of_srgb(tmp_path, transfer, primaries, matrix, from_bt709, luminance):
    wanted = (PATCHES / 255) ** 2.4
    frame = yuv_of(gamma(wanted @ from_bt709.T), luminance)
    path = write(tmp_path / "wide.mkv", [frame], matrix, transfer, primaries)
    found = stripes(next(VideoFrames(path)).rgb)
    assert np.abs(found - PATCHES).max() <= 5, found.tolist()


LUMINANCE_601 = np.array([0.299, 0.587, 0.114])


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize(
    ("matrix", "transfer", "primaries", "luminance"),
    [(1, 1, 1, LUMINANCE_709), (5, 6, 5, LUMINANCE_601), (6, 6, 6, LUMINANCE_601), (2, 2, 2, LUMINANCE_601)],
)
def test_sdr_is_shown_as_it_is_coded(tmp_path, matrix, transfer, primaries, luminance, full_range):
    frame = yuv_of(PATCHES / 255, luminance, bits=8, full_range=full_range)
    path = write(tmp_path / "sdr.mkv", [frame], matrix, transfer, primaries, full_range=full_range)
    found = next(VideoFrames(path)).rgb
    assert np.abs(stripes(found) - PATCHES).max() <= 3
    with av.open(str(path)) as container:
        plain = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.array_equal(found, plain), "bit for bit what libswscale makes of it"


@pytest.mark.parametrize(
    ("matrix", "transfer", "primaries", "word"),
    [
        (14, 16, 9, "ICtCp"),
        (15, 16, 9, "Dolby"),
        (10, 14, 9, "constant luminance"),
        (8, 1, 1, "YCgCo"),
        (1, 8, 1, "linear"),
        (1, 9, 1, "logarithmic"),
        (1, 17, 10, "SMPTE 428"),
        (9, 99, 9, "99"),
        (9, 18, 15, "15"),
    ],
)
def test_colours_that_cannot_be_converted_are_refused_in_one_line(matrix, transfer, primaries, word):
    frame = yuv_of(PATCHES / 255, LUMINANCE_709)
    frame.colorspace, frame.color_trc, frame.color_primaries = matrix, transfer, primaries
    with pytest.raises(UserError, match=word) as caught:
        SrgbConverter().convert(frame)
    assert "\n" not in str(caught.value)
    assert "SDR" in str(caught.value)


def test_a_file_that_is_refused_is_named(tmp_path):
    path = write(tmp_path / "ictcp.mkv", [yuv_of(PATCHES / 255, LUMINANCE_709)], 14, 18, 9)
    with pytest.raises(UserError, match=r"ictcp\.mkv: .*ICtCp"):
        VideoFrames(path)


def test_dolby_vision_without_a_base_layer_is_refused_and_with_one_is_shown(tmp_path):
    coded = hlg(linear(PATCHES) @ BT2020_FROM_BT709.T)
    frame = yuv_of(coded, LUMINANCE_2020)
    compatible = write(tmp_path / "profile8.mp4", [frame], 9, 18, 9, codec="libx265", tag="dvh1")
    assert np.abs(stripes(next(VideoFrames(compatible)).rgb) - PATCHES).max() <= 6
    alone = write(tmp_path / "profile5.mp4", [frame], 2, 2, 2, codec="libx265", tag="dvh1", full_range=True)
    with pytest.raises(UserError, match="Dolby Vision"):
        VideoFrames(alone)


def test_rotation_and_pixel_shape_hold_for_hdr(tmp_path):
    coded = hlg(linear(PATCHES) @ BT2020_FROM_BT709.T)
    frame = yuv_of(coded, LUMINANCE_2020)
    path = write(tmp_path / "turned.mp4", [frame], 9, 18, 9, codec="libx265", rotation=90, aspect=Fraction(4, 3))
    rgb = next(VideoFrames(path)).rgb
    assert rgb.shape == (SIDE * len(PATCHES) * 4 // 3, SIDE, 3)
    assert rgb[-8:].mean() > 250, "white, at the left of the coded picture, is below"
