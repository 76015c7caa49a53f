"""HTML report: complete without other files, and text from recordings never becomes markup."""

from __future__ import annotations

import io
import os
import re
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from insta_runtime.errors import UserError
from insta_runtime.evaluation.protocol import score
from insta_runtime.evaluation.regions import FaceRegions
from insta_runtime.head import HeadRig
from insta_runtime.types import Camera, HeadState, Observation, RenderedFrame
from telepresence.measure.offline import scoring
from telepresence.measure.report.charts import Curve, chart
from telepresence.measure.report.images import HEAT, heat, shrunk
from telepresence.measure.report.page import write_report
from tests.support.small_person import neutral_shape, open_head, paint, performance, photograph

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CPU = torch.device("cpu")
SIZE, COUNT = 64, 14


@pytest.fixture(scope="module")
def observations() -> list[Observation]:
    return photograph(open_head(), performance(open_head(), COUNT), SIZE, paint(open_head()))


@pytest.fixture(scope="module")
def face() -> FaceRegions:
    return FaceRegions(HeadRig(open_head()), neutral_shape(open_head()))


def grey(state: HeadState, view: Camera) -> RenderedFrame:
    return RenderedFrame(0, 0, np.full((view.height, view.width, 4), 0.5, np.float32))


@pytest.fixture(scope="module")
def figures(observations: list[Observation], face: FaceRegions) -> dict[str, Any]:
    scores = score(grey, observations, SIZE, face)
    protocol = scoring.protocol_of(
        "<b>me</b> & 'you'", {"crop": "center"}, 100, observations, 0.14, SIZE, "not measured: <i>"
    )
    curve = [{"seconds": s, "psnr_db": 20.0 + s, "head_psnr_db": None} for s in (0.5, 1.0, 2.0)]
    whole = {**scoring.figures_of(scores), "seconds": 2.0, "size": SIZE, "curve": curve, "protocol": protocol}
    return scoring.without_nan({**whole, "unseen_yaw30_psnr_db": 26.5, "each": scoring.figures_of_frames(scores)})


@pytest.fixture(scope="module")
def page(
    observations: list[Observation],
    face: FaceRegions,
    figures: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    path = tmp_path_factory.mktemp("report") / "new" / "page.html"
    write_report(path, figures, grey, observations, SIZE, face, CPU, 10.0)
    return path


class Tags(HTMLParser):
    """Parser that collects every tag with its attributes, and the tags that were never closed."""

    VOID = ("meta", "img", "input", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else(page: Path) -> None:
    tags = Tags(page.read_text(encoding="utf-8"))
    assert not tags.open
    sources = [attributes["src"] for _, attributes in tags.found if "src" in attributes]
    assert len(sources) > 4 * 10
    assert all(str(source).startswith("data:image/") for source in sources)
    assert not any(attributes.get("href") for _, attributes in tags.found)
    assert "http" not in re.sub(r"http-equiv", "", page.read_text(encoding="utf-8"))


def test_names_are_text_and_never_markup(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "<b>me</b>" not in text
    assert "&lt;b&gt;me&lt;/b&gt; &amp; &#39;you&#39;" in text
    assert "not measured: &lt;i&gt;" in text


def test_names_of_curves_and_axes_are_text_and_never_markup() -> None:
    hostile = '<script>"&'
    text = chart([Curve(hostile, [(0.0, 1.0), (1.0, 2.0)])], hostile, hostile)
    assert "<script>" not in text
    assert "&lt;script&gt;&#34;&amp;" in text
    assert not Tags(text).open


def test_it_shows_frames_of_the_whole_recording_and_the_worst(page: Path, figures: dict[str, Any]) -> None:
    text = page.read_text(encoding="utf-8")
    shown = [int(number) for number in re.findall(r"frame (\d+) &middot;", text)]
    assert shown[:6] == [0, 3, 5, 8, 10, 13]
    others = [each for each in figures["each"] if each["frame"] not in shown[:6]]
    assert shown[6] == min(others, key=lambda each: each["head_psnr_db"])["frame"]
    assert len(set(shown)) == len(shown)
    assert "26.50" in text, "views outside the learned ones"


def test_the_film_has_every_frame(page: Path) -> None:
    encoded = re.search(r'class="film" src="data:image/webp;base64,([^"]+)"', page.read_text(encoding="utf-8"))
    assert encoded
    with Image.open(io.BytesIO(b64decode(encoded[1]))) as film:
        assert film.size == (3 * SIZE, SIZE)
        assert film.n_frames == COUNT  # type: ignore[attr-defined]


def test_frames_can_be_viewed_with_mouse_and_keyboard(page: Path, chromium: Browser) -> None:
    view = chromium.new_page()
    wrong: list[str] = []
    view.on("pageerror", lambda error: wrong.append(str(error)))
    view.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    view.goto(page.as_uri())
    view.click(".strip >> nth=2")
    large = view.locator("#large")
    first = large.get_attribute("src")
    view.keyboard.press("1")
    assert large.get_attribute("src") != first
    view.keyboard.press("ArrowRight")
    view.keyboard.press(" ")
    before = large.get_attribute("src")
    view.wait_for_function("before => document.getElementById('large').src !== before", arg=before, timeout=120_000)
    view.keyboard.press("Escape")
    assert view.evaluate("() => document.getElementById('look').open") is False
    view.uncheck("#outline")
    assert view.locator(".regions").first.is_hidden()
    assert not wrong


def test_names_that_are_not_utf8_are_shown_with_replacements(
    observations: list[Observation], face: FaceRegions, figures: dict[str, Any], tmp_path: Path
) -> None:
    named = {**figures, "protocol": {**figures["protocol"], "clip": os.fsdecode(b"av\xff")}}
    write_report(tmp_path / "page.html", named, grey, observations, SIZE, face, CPU, 10.0)
    assert "av?" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_page_that_cannot_be_written_is_one_line(
    observations: list[Observation], face: FaceRegions, figures: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(tmp_path / "file" / "page.html", figures, grey, observations, SIZE, face, CPU, 10.0)


def test_a_curve_leaves_out_what_is_not_known() -> None:
    text = chart(
        [Curve("whole", [(1, 20.0), (2, None), (10, 25.0)]), Curve("head", [(1, None)])], "s", "dB", logarithmic=True
    )
    tags = [tag for tag, _ in Tags(text).found]
    assert tags.count("circle") == 2
    assert tags.count("polyline") == 1
    assert chart([Curve("head", [(1, None)])], "s", "dB") == ""
    assert "<circle" in chart([Curve("whole", [(0.0, 20.0)])], "s", "dB", logarithmic=False)


def test_curves_rise_upwards_and_to_the_right() -> None:
    tags = Tags(chart([Curve("a", [(0, 1.0), (5, 2.0), (10, 4.0)])], "x", "y")).found
    points = next(str(attributes["points"]) for tag, attributes in tags if tag == "polyline")
    places = [tuple(map(float, pair.split(","))) for pair in points.split()]
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert [y for _, y in places] == sorted((y for _, y in places), reverse=True)
    assert places[1][0] - places[0][0] == pytest.approx(places[2][0] - places[1][0])


def test_errors_grow_lighter() -> None:
    rgb = heat(torch.linspace(0.0, 1.0, 9)[None])
    assert "".join(f"{value:02x}" for value in rgb[0, 0]) == HEAT[0][1:]
    assert "".join(f"{value:02x}" for value in rgb[0, -1]) == HEAT[-1][1:]
    light = rgb[0].astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light) > 0).all()


def test_images_are_downsampled_but_never_enlarged() -> None:
    picture = torch.arange(32.0).view(4, 8, 1)
    assert shrunk(picture, 4).shape == (2, 4, 1)
    assert shrunk(picture, 4)[0, 0, 0] == picture[:2, :2].mean()
    assert shrunk(picture, 100).equal(picture)
