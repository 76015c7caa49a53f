"""Detection of appearance changes: on frames of the actor, and over time."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from insta_runtime.backends import Backend, choose_backend, make_trainer
from insta_runtime.render.model import AvatarModel
from insta_runtime.render.renderer import Snapshot
from insta_runtime.types import Bytes, Camera, Float32, Float64, HeadState, Observation
from telepresence.actor.actor import Actor
from telepresence.actor.performance import Performance
from telepresence.learning import appearance
from telepresence.learning.appearance import (
    LASTING_S,
    MIN_OUTLIERS,
    MIN_SAMPLES,
    AppearanceBaseline,
    AppearanceChange,
    AppearanceMonitor,
    AppearanceProbe,
    AppearanceSample,
    compare,
    match_light,
)
from tests.support.small_person import SMALL, open_head, paint, performance, photograph, small_model

SIDE = 96


@pytest.fixture(autouse=True)
def comparisons_take_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the clock with which comparisons are timed: on a busy machine they would become less frequent."""
    monkeypatch.setattr(appearance, "time", SimpleNamespace(monotonic=lambda: 0.0))


@pytest.fixture(scope="module")
def actor() -> Actor:
    return Actor(0)


@pytest.fixture(scope="module")
def moments(actor: Actor) -> list[tuple[Float32, Bytes, Bytes, Float64]]:
    """Rendering (the actor 20 ms later), frame, matte and eyes at several times of a performance."""
    performance = Performance(actor.head.expression_names, 0)
    camera = actor.camera(SIDE)
    found = []
    for moment in range(MIN_SAMPLES + 6):
        state = performance(0.7 * moment)
        before, alpha = actor.render(performance(0.7 * moment + 0.02), camera, background=False, samples=1)
        shown = premultiplied(before, alpha)
        rgb, matte = actor.render(state, camera, samples=1)
        found.append((shown, rgb, matte, eyes_in(actor, state, camera)))
    return found


def premultiplied(rgb: Bytes, alpha: Bytes) -> Float32:
    part = alpha[..., None].astype(np.float32) / 255.0
    return np.concatenate([rgb.astype(np.float32) / 255.0 * part, part], axis=2)


def eyes_in(actor: Actor, state: HeadState, camera: Camera) -> Float64:
    from insta_runtime.geometry import rotation_matrix

    joints = actor._joints[3:5].numpy().astype(np.float64)
    at = joints @ rotation_matrix(state.rotation).T + state.translation
    return np.column_stack([camera.fx * at[:, 0] / at[:, 2] + camera.cx, camera.fy * at[:, 1] / at[:, 2] + camera.cy])


def relit(rgb: Bytes, gamma: float, gain: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Bytes:
    light = (rgb / 255.0) ** gamma * gain
    return (np.clip(light, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def with_glasses(rgb: Bytes, eyes: Float64) -> Bytes:
    """Sunglasses: two dark discs around the eyes."""
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    apart = np.hypot(*(eyes[0] - eyes[1]))
    worn = rgb.copy()
    for eye in eyes:
        worn[np.hypot(x - eye[0], y - eye[1]) < 0.42 * apart] = 20
    return worn


def with_hat(rgb: Bytes, alpha: Bytes, eyes: Float64) -> Bytes:
    """A bright cap: all of the head that is well above the eyes."""
    y = np.mgrid[:SIDE, :SIDE][0]
    apart = np.hypot(*(eyes[0] - eyes[1]))
    worn = rgb.copy()
    worn[(y < eyes[:, 1].mean() - 0.95 * apart) & (alpha > 0)] = (240, 220, 40)
    return worn


def sample(shown: Float32, rgb: Bytes, alpha: Bytes, eyes: Float64) -> AppearanceSample:
    found = compare(shown, premultiplied(rgb, alpha), eyes)
    assert found is not None
    return found


def baseline_of(samples: list[AppearanceSample]) -> AppearanceBaseline:
    baseline = AppearanceBaseline()
    for second, each in enumerate(samples):
        baseline, change = baseline.after(each, float(second))
        assert change is None
    return baseline


@pytest.mark.parametrize(("gamma", "gain"), [(1.7, (0.8, 0.8, 0.8)), (0.7, (1.0, 1.0, 1.0)), (1.0, (1.0, 0.8, 0.55))])
def test_light_can_be_matched(moments, gamma, gain):
    shown, rgb, alpha, eyes = moments[0]
    plain = sample(shown, rgb, alpha, eyes)
    other = sample(shown, relit(rgb, gamma, gain), alpha, eyes)
    assert other.lit_db > other.plain_db + 2.5
    assert other.lit_db > plain.lit_db - 2.0


def test_matching_keeps_equal_images(moments):
    shown, *_ = moments[0]
    again = match_light(shown, shown, shown[..., 3] > 0.9)
    solid = (shown[..., 3:] > 0.9) & (shown[..., :3] > 0.05)
    assert np.abs(again[..., :3] - shown[..., :3])[solid].max() < 1e-3


@pytest.mark.parametrize("change", [AppearanceChange.LIGHT, AppearanceChange.EYES, AppearanceChange.TOP])
def test_lasting_changes_are_named_once(moments, change):
    baseline = baseline_of([sample(*moment) for moment in moments[:-4]])
    changed = []
    for number in range(3 * MIN_OUTLIERS):
        shown, rgb, alpha, eyes = moments[-1 - number % 4]
        other = {
            AppearanceChange.LIGHT: lambda rgb, _, __: relit(rgb, 1.8),
            AppearanceChange.EYES: lambda rgb, _, eyes: with_glasses(rgb, eyes),
            AppearanceChange.TOP: with_hat,
        }[change](rgb, alpha, eyes)
        baseline, named = baseline.after(sample(shown, other, alpha, eyes), 100.0 + 2.0 * number)
        changed.append(named)
    assert [each for each in changed if each is not None] == [change]
    assert changed.index(change) == MIN_OUTLIERS - 1


USUAL = AppearanceSample(25.0, 25.2, 26.0, 24.0, 27.0)


def varied(centre: AppearanceSample, number: int) -> AppearanceSample:
    """A sample that differs by about a decibel, as between frames."""
    by = np.random.default_rng(number).normal(0.0, 0.8)
    return replace(centre, **{name: getattr(centre, name) + by for name in AppearanceSample.__dataclass_fields__})


@pytest.fixture
def usual() -> AppearanceBaseline:
    return baseline_of([varied(USUAL, number) for number in range(12)])


def test_there_is_no_baseline_before_enough_samples():
    baseline = AppearanceBaseline()
    for number in range(MIN_SAMPLES - 1):
        baseline, _ = baseline.after(varied(USUAL, number), float(number))
        assert baseline.usual_db is None
    assert baseline.after(AppearanceSample(5.0, 5.0, 5.0, 5.0, 5.0), 9.0)[1] is None


def test_a_short_difference_is_no_change(usual):
    dark = replace(USUAL, plain_db=14.0, lit_db=24.0)
    now = 20.0
    for _ in range(3):
        for number in range(MIN_OUTLIERS - 1):
            usual, change = usual.after(varied(dark, number), now)
            assert change is None
            now += LASTING_S
        usual, change = usual.after(varied(USUAL, 3), now)
        assert change is None
        now += 1.0


def test_a_new_pose_is_no_change(usual):
    """All regions of the head are rendered worse, in any light."""
    turned = AppearanceSample(17.0, 17.3, 18.5, 16.0, 19.0)
    for number in range(3 * MIN_OUTLIERS):
        usual, change = usual.after(varied(turned, number), 20.0 + 2.0 * number)
        assert change is None


def test_a_region_outside_the_frame_is_ignored(usual):
    for number in range(2 * MIN_OUTLIERS):
        bald = replace(varied(USUAL, number), top_db=float("nan"))
        usual, change = usual.after(bald, 20.0 + 2.0 * number)
        assert change is None


@pytest.fixture(scope="module")
def learned() -> tuple[AvatarModel, Backend, Snapshot, list[Observation]]:
    """A small trained avatar of a painted head, and its training frames."""
    head = open_head()
    pictures = photograph(head, performance(head, 12), 48, paint(head))
    model = small_model(config=replace(SMALL, learn=replace(SMALL.learn, learning_rate=0.02)))
    backend = choose_backend("auto", model)
    trainer = make_trainer(model, backend)
    for picture in pictures:
        trainer.add(picture)
    for _ in range(120):
        trainer.step()
    return model, backend, trainer.snapshot(), pictures


def darker(picture: Observation) -> Observation:
    return replace(picture, rgb=relit(picture.rgb, 1.8))


def of_another(picture: Observation) -> Observation:
    """Colours of another subject, which no light matches."""
    y, x = np.mgrid[: picture.rgb.shape[0], : picture.rgb.shape[1]]
    painted = np.where(((x // 4 + y // 4) % 2 == 0)[..., None], np.uint8([255, 0, 255]), np.uint8([0, 255, 0]))
    return replace(picture, rgb=painted)


def test_the_monitor_measures_unverified_faces_and_reports_changes(learned):
    model, backend, snapshot, pictures = learned
    monitor = AppearanceMonitor(lambda: AppearanceProbe(model, backend), loaded=False)
    assert monitor.run_once(snapshot, 0.0) is None  # there is no frame yet
    now = 10.0

    def show(change, *, known: bool) -> list[AppearanceChange]:
        nonlocal now
        changes = []
        for picture in pictures[:8]:
            (monitor.set_observation if known else monitor.set_unverified)(change(picture))
            changes.append(monitor.run_once(snapshot, now))
            now += 30.0
        return [each for each in changes if each is not None]

    assert show(lambda picture: picture, known=True) == []
    assert monitor.worse_db is None
    show(lambda picture: picture, known=False)
    assert abs(monitor.worse_db) < 1.5
    show(lambda picture: picture, known=True)
    assert monitor.worse_db is None  # the earlier value is dropped
    show(darker, known=False)
    assert monitor.worse_db < 3.0
    show(lambda picture: picture, known=True)
    show(of_another, known=False)
    assert monitor.worse_db > 8.0
    show(lambda picture: picture, known=True)
    assert show(darker, known=True) == [AppearanceChange.LIGHT]


def test_a_frozen_avatar_is_seldom_compared_once_the_baseline_is_complete(learned):
    model, backend, snapshot, pictures = learned
    monitor = AppearanceMonitor(lambda: AppearanceProbe(model, backend), loaded=True)

    def samples(start: float, *, seldom: bool) -> int:
        """Number of comparisons of fifty frames, five seconds apart."""
        count = 0
        for number in range(50):
            monitor.set_observation(pictures[number % len(pictures)])
            monitor.run_once(snapshot, start + 5.0 * number, seldom=seldom)
            count += monitor._newest is None
        return count

    assert samples(1000.0, seldom=True) > 30, "until the baseline is complete"
    assert samples(2000.0, seldom=True) <= 25
    assert samples(3000.0, seldom=False) > 40
