"""Somebody else's expressions on the avatar's face: neutral on neutral, range on range, head where it was learned."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from insta_runtime.field.expression_stats import Repertoire
from insta_runtime.geometry import axis_angle, rotation_matrix
from insta_runtime.head import HeadModel, fingerprint, load_head
from insta_runtime.types import Float32, HeadState
from telepresence.client import ParameterClient
from telepresence.drivers.transfer import GAIN, Habits, LiveTransfer, Transfer
from telepresence.drivers.zeromq import ZeroMqDriver

SMILE = ("mouthSmileLeft", "mouthSmileRight")
BLINK = ("eyeBlinkLeft", "eyeBlinkRight")


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head()


def units(head: HeadModel, **values: float) -> Float32:
    expression = np.zeros(len(head.expression_names), np.float32)
    for name, value in values.items():
        expression[head.expression_names.index(name)] = value
    return expression


def take(head: HeadModel, *, rest: Float32, smile: float, jaw: float, turn: float, place: float) -> list[HeadState]:
    """Somebody who mostly rests, smiles, talks and blinks, turned by ``turn`` rad, ``place`` m beside the camera."""
    base = axis_angle(np.array([[np.cos(turn), 0, -np.sin(turn)], [0, 1, 0], [np.sin(turn), 0, np.cos(turn)]]) @ FRONT)
    states = []
    for i in range(200):
        smiles = smile * max(0.0, np.sin(0.17 * i)) ** 3
        talks = jaw * max(0.0, np.sin(0.9 * i)) if i % 50 > 25 else 0.0
        blinks = 0.9 if i % 40 < 2 else 0.0
        done = units(head, jawOpen=talks, **dict.fromkeys(SMILE, smiles), **dict.fromkeys(BLINK, blinks))
        states.append(
            HeadState(
                (rest + done).clip(0.0, 1.0),
                rotation=base.astype(np.float32),
                translation=np.array([place + 0.01 * np.sin(0.1 * i), 0.0, 0.6], np.float32),
                t_capture_ns=i,
            )
        )
    return states


FRONT = rotation_matrix(np.array([np.pi, 0.0, 0.0]))


def seen(states: list[HeadState]) -> Repertoire:
    repertoire = Repertoire(len(states[0].expression))
    for state in states:
        repertoire.observe(state)
    return repertoire


def column(head: HeadModel, states: list[HeadState], name: str) -> Float32:
    return np.array([state.expression[head.expression_names.index(name)] for state in states])


@pytest.fixture(scope="module")
def broad(head: HeadModel) -> list[HeadState]:
    """Rests with raised corners of the mouth, smiles broadly, sits to the left and looks past the camera."""
    rest = units(head, browInnerUp=0.3, **dict.fromkeys(SMILE, 0.2))
    return take(head, rest=rest, smile=0.8, jaw=0.6, turn=0.3, place=0.1)


@pytest.fixture(scope="module")
def shy(head: HeadModel) -> list[HeadState]:
    return take(head, rest=units(head, jawOpen=0.05), smile=0.5, jaw=0.5, turn=-0.1, place=-0.02)


def test_neutral_falls_on_neutral_and_range_on_range(head, broad, shy) -> None:
    transfer = Transfer(Habits.of(seen(broad), head), Habits.of(seen(shy), head), head)
    shown = [transfer(state) for state in broad]
    calm = shown[30].expression if broad[30].expression.sum() < 1.0 else shown[0].expression
    np.testing.assert_allclose(calm, shy[0].expression, atol=0.02)
    for name in (*SMILE, "jawOpen"):
        assert np.quantile(column(head, shown, name), 0.95) == pytest.approx(
            np.quantile(column(head, shy, name), 0.95), abs=0.06
        )
    for name in BLINK:
        assert column(head, shown, name).max() == pytest.approx(column(head, shy, name).max(), abs=0.05)
    assert column(head, shown, "browInnerUp").max() < 0.05, "the source's resting brows do not travel"


def test_the_head_sits_where_the_avatar_was_learned_and_moves_as_the_source_does(head, broad, shy) -> None:
    transfer = Transfer(Habits.of(seen(broad), head), Habits.of(seen(shy), head), head)
    shown = transfer(broad[0])
    np.testing.assert_allclose(rotation_matrix(shown.rotation), rotation_matrix(shy[0].rotation), atol=1e-4)
    np.testing.assert_allclose(shown.translation, shy[0].translation, atol=0.012)
    nod = rotation_matrix(np.array([0.2, 0.0, 0.0]))  # about the head's own axis
    nodded = replace(broad[0], rotation=axis_angle(rotation_matrix(broad[0].rotation) @ nod).astype(np.float32))
    expected = rotation_matrix(shy[0].rotation) @ nod
    np.testing.assert_allclose(rotation_matrix(transfer(nodded).rotation), expected, atol=1e-4)


def test_faces_with_the_same_habits_stay_as_they_are(head, shy) -> None:
    habits = Habits.of(seen(shy), head)
    transfer = Transfer(habits, habits, head)
    for state in shy[::20]:
        for name, value in transfer(state).arrays().items():
            np.testing.assert_allclose(value, getattr(state, name), atol=1e-5, err_msg=name)


def test_gaze_and_lids_travel_and_weights_stay_weights(head, broad, shy) -> None:
    transfer = Transfer(Habits.of(seen(broad), head), Habits.of(seen(shy), head), head)
    gaze = np.array([[0.1, 0.2, 0.0], [0.1, 0.2, 0.0]], np.float32)
    moved = transfer(
        replace(broad[0], eye_pose=gaze, eyelids=np.ones(2, np.float32), expression=np.ones(52, np.float32))
    )
    np.testing.assert_allclose(moved.eye_pose, gaze, atol=1e-6)
    assert moved.eyelids.min() > 0.9
    assert moved.expression.min() >= 0.0
    assert moved.expression.max() <= 1.0


def test_what_is_not_known_is_not_stretched(head, broad, shy) -> None:
    few = Habits.of(seen(shy[:10]), head)
    state = replace(broad[0], expression=broad[0].expression + units(head, jawOpen=0.4))
    source = Habits.of(seen(broad), head)
    shown = Transfer(source, few, head)(state)
    jaw = head.expression_names.index("jawOpen")
    assert shown.expression[jaw] - few.expression[jaw] == pytest.approx(0.4, abs=0.01)
    nobody = Habits.unknown(head, np.array([0.0, 0.0, 0.5], np.float32))
    assert Transfer(source, nobody, head)(state).expression[jaw] == pytest.approx(0.4, abs=0.01)
    np.testing.assert_allclose(rotation_matrix(Transfer(source, nobody, head)(broad[0]).rotation), FRONT, atol=1e-4)


def test_a_range_is_stretched_within_bounds(head, shy) -> None:
    still = take(head, rest=units(head), smile=0.0, jaw=0.06, turn=0.0, place=0.0)
    wild = take(head, rest=units(head), smile=1.0, jaw=1.0, turn=0.0, place=0.0)
    jaw = head.expression_names.index("jawOpen")
    calm, lively = Habits.of(seen(still), head), Habits.of(seen(wild), head)
    opened = replace(still[0], expression=units(head, jawOpen=0.1))
    assert Transfer(calm, lively, head)(opened).expression[jaw] == pytest.approx(0.1 * GAIN[1], abs=0.01)
    assert Transfer(lively, calm, head)(opened).expression[jaw] == pytest.approx(0.1 * GAIN[0], abs=0.01)


def test_a_live_source_is_known_better_and_better_without_a_jump(head, broad, shy) -> None:
    target = "0" * 16, Habits.of(seen(shy), head)
    live = LiveTransfer(head, lambda: target)
    shown = [live(state, "f" * 16, 40_000_000 * i) for i, state in enumerate(broad * 5)]
    settled = Transfer(Habits.of(seen(broad), head), target[1], head)
    last = [settled(state).expression for state in broad]
    np.testing.assert_allclose([state.expression for state in shown[-200:]], last, atol=0.08)
    # A still face is shown as a face that hardly moves, though more and more is known of it.
    still = [live(broad[0], "f" * 16, 40_000_000 * (1000 + i)).expression for i in range(100)]
    assert np.abs(np.diff(still, axis=0)).max() < 0.02


def test_the_avatars_own_person_and_unknown_ones_stay_as_they_are(head, shy) -> None:
    me = fingerprint(np.ones(60, np.float32))
    live = LiveTransfer(head, lambda: (me, Habits.of(seen(shy), head)))
    assert live(shy[3], me) is shy[3]
    assert live(shy[3], None) is shy[3]
    assert LiveTransfer(head, lambda: None)(shy[3], "f" * 16) is shy[3]
    assert fingerprint(np.zeros(60, np.float32)) != me


def test_messages_of_somebody_else_are_mapped_and_those_of_nobody_known_are_not(head, broad, shy) -> None:
    me, other = fingerprint(np.ones(60, np.float32)), fingerprint(np.zeros(60, np.float32))
    habits = Habits.of(seen(shy), head)
    driver = ZeroMqDriver(
        "tcp://127.0.0.1:*",
        basis=head.basis,
        head_sha256=head.sha256,
        expressions=52,
        refused=pytest.fail,
        transfer=LiveTransfer(head, lambda: (me, habits)),
    )
    driver.start()
    try:
        for person, mapped in ((None, False), (me, False), (other, True)):
            with ParameterClient(driver.address, head.sha256, "arkit52", person) as client:
                assert client.wait(10)
                before = driver.received
                deadline = time.monotonic() + 10
                while driver.received == before and time.monotonic() < deadline:
                    client.send(broad[0])  # heeded once the one before has fallen silent
                    time.sleep(0.02)
                assert driver.received > before
            newest = driver.newest()
            assert newest is not None
            assert newest.transferred == mapped
            place = habits.translation if mapped else broad[0].translation
            np.testing.assert_allclose(newest.state.translation, place, atol=1e-5)
    finally:
        driver.stop()
