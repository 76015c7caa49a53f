"""The scripted call: which subject is before the camera when, in which light, and whose frames an avatar learned."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scripted_call
from scripted_call import PAUSE_S, SCRIPT, GroundTruthCamera, Scene, open_camera, shortened

from insta_runtime.errors import UserError
from insta_runtime.types import HeadState, Observation
from telepresence.measure.offline.video_tracking import write_ground_truth_folder
from telepresence.measure.rehearsal.call_record import CallRecord, MeasuredObservation, PublishedSnapshot
from telepresence.measure.rehearsal.measurement_plan import MeasurementPlan
from telepresence.runtime.frames import CameraFrame, GroundTruth
from tests.support.small_person import camera, neutral_shape, open_head

SIZE, FPS, COUNT = 32, 10.0, 30
SHORT = (Scene(0, 2.0), Scene(None, 1.0), Scene(1, 1.0), Scene(0, 1.0, gamma=2.0), Scene(0, 1.0))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Tracked folders of two subjects whose frames are grey: a frame is 3 levels brighter than the last one."""
    head, paths = open_head(), []
    for person in (0, 1):

        def frames(base: int = 100 * person) -> Iterator[CameraFrame]:
            for number in range(COUNT):
                rgb = np.full((SIZE, SIZE, 3), base + 3 * number, np.uint8)
                truth = GroundTruth(HeadState.neutral(52), rgb[..., 0], camera(SIZE))
                yield CameraFrame(number, number * 100_000_000, rgb, truth)

        path = tmp_path_factory.mktemp("script") / f"person{person}"
        shape = neutral_shape(head) + np.float32(person)
        write_ground_truth_folder(frames(), path, head=head, shape=shape, fps=FPS, size=SIZE, source="test")
        paths.append(path)
    return paths


def test_the_whole_script_takes_eight_minutes_and_may_be_shortened() -> None:
    assert sum(scene.seconds for scene in SCRIPT) == 480.0
    assert {scene.gamma for scene in SCRIPT} == {1.0, 1.6, 0.7}
    short = shortened(SCRIPT, 60.0)
    assert sum(scene.seconds for scene in short) == pytest.approx(60.0)
    assert [scene.who for scene in short] == [scene.who for scene in SCRIPT]
    assert all(scene.seconds == PAUSE_S for scene in short if scene.who is None)
    with pytest.raises(UserError, match="too few"):
        shortened(SCRIPT, 8.0)


def test_scenes_follow_one_another_and_clips_continue_where_they_were_left(folders: list[Path]) -> None:
    script = open_camera(folders, SHORT)
    assert isinstance(script, GroundTruthCamera)
    assert (script.identity.shape == 0.0).all()
    assert [script.subject(number) for number in (0, 19, 20, 29, 30, 39, 40, 50, 1000)] == [
        0,
        0,
        None,
        None,
        1,
        1,
        0,
        0,
        0,
    ]

    first, chair, second, dark, again = (script.frame(number, 7) for number in (5, 25, 33, 45, 55))
    assert [f.frame_id for f in (first, chair, second, dark, again)] == [5, 25, 33, 45, 55]
    assert chair.truth is None
    for frame, level, person in ((first, 15, 0.0), (second, 109, 1.0), (again, 3 * (35 - COUNT), 0.0)):
        assert abs(float(frame.rgb.mean()) - level) < 2
        assert frame.truth is not None
        assert frame.truth.shape is not None
        assert (frame.truth.shape == person).all()
    assert dark.rgb.mean() == pytest.approx(255.0 * (75.0 / 255.0) ** 2, abs=2), "in other light"


def test_folders_and_videos_do_not_mix(folders: list[Path], shared: Path) -> None:
    with pytest.raises(UserError, match="not one of each"):
        open_camera([folders[0], shared / "clips" / "d18.mp4"], SHORT)
    script = open_camera([shared / "clips" / "d18.mp4", shared / "clips" / "d18.mp4"], SHORT)
    frames = [script.frame(number, number) for number in (0, 10, 11)]
    assert [frame.frame_id for frame in frames] == [0, 10, 11]
    assert len({frame.rgb.shape for frame in frames}) == 1
    assert not (frames[1].rgb == frames[2].rgb).all()


def test_frames_of_another_subject_in_a_replay_are_counted_and_left_out_of_the_figures(folders: list[Path]) -> None:
    script = open_camera(folders, SHORT)
    trainer = SimpleNamespace(steps=9, replay=SimpleNamespace(frame_ids=[1, 4, 12, 18, 33]))
    learner: Any = SimpleNamespace(trainer=trainer, path=Path("avatars/me"))
    record = CallRecord(MeasurementPlan.of(6.0), 0.8)
    picture = np.zeros((4, 4, 3), np.uint8)
    for number in (2, 33, 51):
        observation = Observation(number, picture, picture[..., 0], camera(4), HeadState.neutral(52))
        record.observations.append(MeasuredObservation(number / FPS, observation, learner))
    code: Any = None
    record.snapshots.append(PublishedSnapshot(1.0, 1, learner, {}, code, 5))
    call: Any = SimpleNamespace(record=record)
    found = scripted_call.avatar_figures(call, script)
    assert found == [
        {"avatar": "me", "person": 0, "pictures_of": {"0": 4, "1": 1}, "strangers": 1, "steps": 9},
    ]
    assert [seen.observation.frame_id for seen in record.observations] == [2, 51]


def test_the_page_draws_every_curve() -> None:
    points = [
        {"seconds": float(n), "psnr_db": 20.0 + n, "head_psnr_db": 18.0 + n, "mesh_psnr_db": 9.0} for n in range(4)
    ]
    figures: dict[str, Any] = {
        "device": "a card",
        "backend": "cuda",
        "commit": "abc",
        "scenes": [{"from": 0.0, "who": "a<b", "seconds": 2.0, "gamma": 1.0}],
        "avatars": [{"avatar": "me", "person": 0, "pictures_of": {"0": 4}, "steps": 9}],
        "curve": points,
        "held_back": points,
        "interval_curve": [{"seconds": n, "p50": 33.0, "p99": 34.0, "max": 40.0} for n in range(3)],
        "publish_change": {"each": [[1.0, 1.1], [2.0, 1.05]]},
        "resources": {"curve": [{"seconds": n, "host_mb": 500.0, "device_mb": None} for n in range(3)]},
        "broken": ["something < bad"],
    }
    text = scripted_call.page(figures)
    assert text.count('<svg class="chart"') == 5
    assert "a&lt;b" in text
    assert "something &lt; bad" in text
    figures |= {"curve": [], "publish_change": None}
    assert scripted_call.page(figures).count('<svg class="chart"') == 3
