"""The ablation study: its switches exist, an interrupted study is continued, its tables show what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ablate
import pytest

from telepresence.config import load_config
from telepresence.measure.offline.video_tracking import write_ground_truth_folder
from telepresence.runtime.frames import CameraFrame, GroundTruth
from tests.support.small_avatar import SMALL_AVATAR
from tests.support.small_person import neutral_shape, open_head, paint, performance, photograph

SMALL = (
    "avatar.warp.cell=0.025",
    "avatar.radiance.finest=64",
    *SMALL_AVATAR,
)


@pytest.mark.parametrize("name", ablate.SWITCHES)
def test_every_switch_is_a_configuration_of_its_own(name: str) -> None:
    switch = ablate.SWITCHES[name]
    config = load_config(switch.preset or "default", switch.settings, "cpu")
    assert (config != load_config("default", (), "cpu")) == (name != "default")


def figures(clip: str, switch: str, head: float, **more: Any) -> dict[str, Any]:
    record = dict.fromkeys(ablate.KEPT, 0.5) | {
        "clip": clip,
        "switch": switch,
        "settings": [],
        "seconds": 15.0,
        "size": 512,
        "head_psnr_db": head,
        "steps": 900,
        "curve": [{"seconds": 1.0, "psnr_db": 26.0}, {"seconds": 10.0, "psnr_db": 29.5}],
        "commit": "abc",
        "machine": "a card",
        "time": "2026-01-02T03:04:05Z",
        "unseen_yaw30_psnr_db": None,
    }
    return record | more


def test_tables_compare_presets_with_each_other_and_switches_with_the_default() -> None:
    records = [
        figures("d18", "default", 24.0),
        figures("d18", "default", 25.0),  # measured again
        figures("d18", "paper", 23.5),
        figures("d18", "no-depth", 24.5),
        {"clip": "d18", "switch": "mouth-1", "failed": "no"},
        figures("synthetic", "default", 30.0, unseen_yaw30_psnr_db=27.25),
    ]
    text = ablate.tables(records)
    assert "| d18 | default | 15 | 0.50 | 25.00 |" in text
    assert "| no depth loss | +0.00 | -0.50 |" in text
    assert "27.25" in text
    assert "a card" in text
    assert "mouth" in text
    assert "24.00" not in text
    assert ablate.tables([]) == "Nothing has been measured yet.\n"


def test_only_the_text_between_the_markers_is_replaced(tmp_path: Path) -> None:
    document = tmp_path / "quality.md"
    document.write_text(f"before\n{ablate.BEGIN}\nold\n{ablate.END}\nafter\n")
    ablate.write_between(document, "new", ablate.BEGIN, ablate.END)
    assert document.read_text() == f"before\n{ablate.BEGIN}\n\nnew\n{ablate.END}\nafter\n"
    document.write_text("nothing")
    with pytest.raises(SystemExit):
        ablate.write_between(document, "new", ablate.BEGIN, ablate.END)


def test_an_interrupted_study_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    head, tracked, results = open_head(), tmp_path / "someone", tmp_path / "results.jsonl"
    seen = photograph(head, performance(head, 6), 48, paint(head))
    frames = (CameraFrame(o.frame_id, o.frame_id * 10**8, o.rgb, GroundTruth(o.state, o.alpha, o.camera)) for o in seen)
    write_ground_truth_folder(frames, tracked, head=head, shape=neutral_shape(head), fps=10.0, size=48, source="test")
    switches = {
        "default": ablate.Switch("the default", SMALL),
        "no-depth": ablate.Switch("no depth loss", (*SMALL, "avatar.learn.depth_weight=0.0")),
        "broken": ablate.Switch("a setting that does not exist", ("avatar.nothing=1",)),
    }
    monkeypatch.setattr(ablate, "SWITCHES", {"default": switches["default"]})
    arguments = [str(tracked), "--seconds", "0.2", "--size", "32", "--device", "cpu", "--commit", "abc"]
    arguments += ["--results", str(results)]
    ablate.main(arguments)
    monkeypatch.setattr(ablate, "SWITCHES", switches)
    with pytest.raises(SystemExit):  # the last one failed
        ablate.main([*arguments, "--reports", str(tmp_path / "pages")])
    records = [json.loads(line) for line in results.read_text().splitlines()]
    assert [record["switch"] for record in records] == ["default", "no-depth", "broken"]
    assert records[1]["head_psnr_db"] > 0.0
    assert records[1]["commit"] == "abc"
    assert "nothing" in records[2]["failed"]
    assert [page.name for page in (tmp_path / "pages").iterdir()] == ["someone-no-depth-0.2s.html"]
    assert "someone" in capsys.readouterr().out
