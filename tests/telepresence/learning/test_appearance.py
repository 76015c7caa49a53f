"""What changed about a person: told from pictures of the actor, and over time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from insta_runtime.backends import Backend, choose_backend, make_trainer
from insta_runtime.render.model import AvatarModel
from insta_runtime.render.renderer import Snapshot
from insta_runtime.types import Bytes, Camera, Float32, Float64, HeadState, Observation
from telepresence.actor.actor import Actor
from telepresence.actor.performance import Performance
from telepresence.learning.appearance import (
    ENOUGH,
    LASTING,
    LASTING_S,
    AppearanceBaseline,
    AppearanceChange,
    AppearanceSample,
    AppearanceProbe,
    AppearanceMonitor,
    compare,
    match_light,
)
from tests.support.small_person import SMALL, open_head, paint, performance, photograph, small_model

SIDE = 96


@pytest.fixture(scope="module")
def actor() -> Actor:
    return Actor(0)


@pytest.fixture(scope="module")
def moments(actor: Actor) -> list[tuple[Float32, Bytes, Bytes, Float64]]:
    """What an avatar might show (the actor a moment earlier), picture, matte and eyes, of moments of a performance."""
    performance = Performance(actor.head.expression_names, 0)
    camera = actor.camera(SIDE)
    found = []
    for moment in range(ENOUGH + 6):
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


def look(shown: Float32, rgb: Bytes, alpha: Bytes, eyes: Float64) -> AppearanceSample:
    found = compare(shown, premultiplied(rgb, alpha), eyes)
    assert found is not None
    return found


def seen(looks: list[AppearanceSample]) -> AppearanceBaseline:
    appearance = AppearanceBaseline()
    for second, each in enumerate(looks):
        appearance, change = appearance.after(each, float(second))
        assert change is None
    return appearance


@pytest.mark.parametrize(("gamma", "gain"), [(1.7, (0.8, 0.8, 0.8)), (0.7, (1.0, 1.0, 1.0)), (1.0, (1.0, 0.8, 0.55))])
def test_light_can_be_matched(moments, gamma, gain):
    shown, rgb, alpha, eyes = moments[0]
    plain = look(shown, rgb, alpha, eyes)
    other = look(shown, relit(rgb, gamma, gain), alpha, eyes)
    assert other.lit_db > other.plain_db + 2.5
    assert other.lit_db > plain.lit_db - 2.0


def test_matching_keeps_what_is_equal(moments):
    shown, *_ = moments[0]
    again = match_light(shown, shown, shown[..., 3] > 0.9)
    solid = (shown[..., 3:] > 0.9) & (shown[..., :3] > 0.05)
    assert np.abs(again[..., :3] - shown[..., :3])[solid].max() < 1e-3


@pytest.mark.parametrize("change", [AppearanceChange.LIGHT, AppearanceChange.EYES, AppearanceChange.TOP])
def test_lasting_changes_are_named_once(moments, change):
    appearance = seen([look(*moment) for moment in moments[:-4]])
    changed = []
    for number in range(3 * LASTING):
        shown, rgb, alpha, eyes = moments[-1 - number % 4]
        other = {
            AppearanceChange.LIGHT: lambda rgb, _, __: relit(rgb, 1.8),
            AppearanceChange.EYES: lambda rgb, _, eyes: with_glasses(rgb, eyes),
            AppearanceChange.TOP: with_hat,
        }[change](rgb, alpha, eyes)
        appearance, named = appearance.after(look(shown, other, alpha, eyes), 100.0 + 2.0 * number)
        changed.append(named)
    assert [each for each in changed if each is not None] == [change]
    assert changed.index(change) == LASTING - 1


USUAL = AppearanceSample(25.0, 25.2, 26.0, 24.0, 27.0)


def varied(centre: AppearanceSample, number: int) -> AppearanceSample:
    """Looks differ by a decibel or so from picture to picture."""
    by = np.random.default_rng(number).normal(0.0, 0.8)
    return replace(centre, **{name: getattr(centre, name) + by for name in AppearanceSample.__dataclass_fields__})


@pytest.fixture
def usual() -> AppearanceBaseline:
    return seen([varied(USUAL, number) for number in range(12)])


def test_nothing_is_usual_before_enough_was_seen():
    appearance = AppearanceBaseline()
    for number in range(ENOUGH - 1):
        appearance, _ = appearance.after(varied(USUAL, number), float(number))
        assert appearance.usual_db is None
    assert appearance.after(AppearanceSample(5.0, 5.0, 5.0, 5.0, 5.0), 9.0)[1] is None


def test_what_passes_is_no_change(usual):
    dark = replace(USUAL, plain_db=14.0, lit_db=24.0)
    now = 20.0
    for _ in range(3):
        for number in range(LASTING - 1):
            usual, change = usual.after(varied(dark, number), now)
            assert change is None
            now += LASTING_S
        usual, change = usual.after(varied(USUAL, 3), now)
        assert change is None
        now += 1.0


def test_a_pose_that_is_new_is_no_change(usual):
    """All of the head is rendered worse, whatever the light."""
    turned = AppearanceSample(17.0, 17.3, 18.5, 16.0, 19.0)
    for number in range(3 * LASTING):
        usual, change = usual.after(varied(turned, number), 20.0 + 2.0 * number)
        assert change is None


def test_a_place_that_is_not_in_the_picture_says_nothing(usual):
    for number in range(2 * LASTING):
        bald = replace(varied(USUAL, number), top_db=float("nan"))
        usual, change = usual.after(bald, 20.0 + 2.0 * number)
        assert change is None


@pytest.fixture(scope="module")
def learned() -> tuple[AvatarModel, Backend, Snapshot, list[Observation]]:
    """A small avatar of a painted head, and pictures of that."""
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
    """The colours of somebody else, whom no light makes the same."""
    y, x = np.mgrid[: picture.rgb.shape[0], : picture.rgb.shape[1]]
    painted = np.where(((x // 4 + y // 4) % 2 == 0)[..., None], np.uint8([255, 0, 255]), np.uint8([0, 255, 0]))
    return replace(picture, rgb=painted)


def test_a_watch_says_how_much_worse_a_face_is_and_what_changed(learned):
    model, backend, snapshot, pictures = learned
    watch = AppearanceMonitor(lambda: AppearanceProbe(model, backend), learned=False)
    assert watch.work(snapshot, 0.0) is None  # there is nothing to look at
    now = 10.0

    def show(change, *, known: bool) -> list[AppearanceChange]:
        nonlocal now
        changes = []
        for picture in pictures[:8]:
            (watch.offer if known else watch.consider)(change(picture))
            changes.append(watch.work(snapshot, now))
            now += 30.0
        return [each for each in changes if each is not None]

    assert show(lambda picture: picture, known=True) == []
    assert watch.worse_db is None
    show(lambda picture: picture, known=False)
    assert abs(watch.worse_db) < 1.5
    show(lambda picture: picture, known=True)
    assert watch.worse_db is None  # of whoever came before
    show(darker, known=False)
    assert watch.worse_db < 3.0
    show(lambda picture: picture, known=True)
    show(of_another, known=False)
    assert watch.worse_db > 8.0
    show(lambda picture: picture, known=True)
    assert show(darker, known=True) == [AppearanceChange.LIGHT]


def test_who_is_well_known_is_seldom_looked_at_while_nothing_is_learned(learned):
    model, backend, snapshot, pictures = learned
    watch = AppearanceMonitor(lambda: AppearanceProbe(model, backend), learned=True)

    def looks(start: float, *, seldom: bool) -> int:
        """How many there are of fifty pictures, five seconds apart."""
        count = 0
        for number in range(50):
            watch.offer(pictures[number % len(pictures)])
            watch.work(snapshot, start + 5.0 * number, seldom=seldom)
            count += watch._newest is None
        return count

    assert looks(1000.0, seldom=True) > 30, "until it is known what is usual"
    assert looks(2000.0, seldom=True) <= 25
    assert looks(3000.0, seldom=False) > 40
