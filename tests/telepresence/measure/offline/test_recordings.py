"""Views of the actor that were not learned, and the format of figures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from insta_runtime.evaluation.protocol import METRICS, REGIONS, Scores, Steadiness
from telepresence.display.orbit import pitch, pitch_turn, turned, yaw
from telepresence.measure.offline.fit_figures import figures_file, load_training
from telepresence.measure.offline.recordings import UNSEEN, unseen_turns
from telepresence.measure.offline.scoring import Lpips, figures_of, print_figures, without_nan
from tests.support.small_person import open_head, pose


def facing(yaw_deg: float, pitch_deg: float = 0.0):
    return turned(pose(open_head(), yaw=math.radians(yaw_deg)), pitch_turn(math.radians(pitch_deg)))


def test_unseen_views_lie_beyond_all_learned_ones() -> None:
    learned = [facing(-20, -8), facing(5, 0), facing(23, 11)]
    moments = [facing(-10, -2), facing(0.5, 3), facing(15, 10)]
    turns = unseen_turns(learned, moments)
    assert turns.keys() == UNSEEN.keys()

    def angles(name: str, angle_of) -> list[float]:
        return [math.degrees(angle_of(turned(m, t))) for m, t in zip(moments, turns[name], strict=True)]

    sides = angles("unseen_yaw30", yaw)
    assert [abs(s - math.degrees(yaw(m))) for s, m in zip(sides, moments, strict=True)] == pytest.approx(
        [30] * 3, abs=0.1
    )
    assert (sides[0] < -20, sides[1] > 23, sides[2] > 23) == (True, True, True)
    heights = angles("unseen_pitch15", pitch)
    assert heights[0] < -15
    assert min(heights[1:]) > 15
    twenty = angles("unseen_yaw20", yaw)
    outermost = max(abs(math.degrees(yaw(state))) for state in learned)
    assert twenty == pytest.approx([-outermost - 20, outermost + 20, -outermost - 20], abs=0.1)


def test_a_turn_that_is_not_enough_goes_to_the_outermost_view() -> None:
    turn = unseen_turns([facing(-60), facing(50)], [facing(2)])["unseen_yaw30"][0]
    assert math.degrees(yaw(turned(facing(2), turn))) == pytest.approx(50, abs=0.5)


def scores(value: float) -> Scores:
    means = {region: dict.fromkeys(METRICS, value) for region in REGIONS}
    return Scores(means, [means], [7], Steadiness(0.02, 0.04, 3))


def test_figures_are_flat_and_valid_json() -> None:
    figures = without_nan(figures_of(scores(math.nan)))
    assert figures["psnr_db"] is None
    assert figures["eyes_flip"] is None
    assert (figures["steadiness"], figures["steadiness_pairs"]) == (0.5, 3)
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert without_nan({"a": [1.23456, math.inf, {"b": math.nan}]}) == {"a": [1.2346, None, {"b": None}]}


def test_missing_figures_are_printed_as_missing(capsys: pytest.CaptureFixture[str]) -> None:
    figures = without_nan(figures_of(scores(math.nan))) | {"steadiness_pairs": 0, "protocol": {"lpips": "[no] weights"}}
    print_figures(figures)
    printed = capsys.readouterr().out
    assert "steadiness: none" in printed
    assert "[no] weights" in printed, "text of a file is not interpreted as markup"


def test_lpips_is_never_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    lpips = Lpips.load(torch.device("cpu"))
    assert lpips.measure is None
    assert "not measured" in lpips.description


def test_the_figures_of_fit_lie_beside_the_avatar(tmp_path: Path) -> None:
    assert figures_file(tmp_path / "me") == tmp_path / "me" / "fit.json"
    assert figures_file(tmp_path / "me.safetensors") == tmp_path / "me.fit.json"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "[]",
        "{}",
        '{"curve": 3, "steps": 7}',
        '{"curve": [{"seconds": 1}], "backend": "cuda", "steps": 7}',
        "[" * 100_000,
        "\ud800",
    ],
)
def test_a_damaged_file_of_figures_is_ignored(tmp_path: Path, text: str) -> None:
    (tmp_path / "fit.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert load_training(tmp_path, 7) == {}


def test_invalid_values_of_a_stored_curve_are_left_out(tmp_path: Path) -> None:
    point = '{"seconds": 1, "psnr_db": NaN, "head_psnr_db": "<script>"}'
    (tmp_path / "fit.json").write_text(f'{{"curve": [{point}], "backend": "cuda", "source": "me", "steps": 7}}')
    assert load_training(tmp_path, 8) == {}, "it has been trained since"
    assert load_training(tmp_path, 7)["curve"] == [{"seconds": 1.0, "psnr_db": None, "head_psnr_db": None}]
