"""Expression transfer: neutral to neutral, range to range, head pose about the one in which the avatar was learned."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from insta_runtime.field.state_reservoir import StateReservoir
from insta_runtime.geometry import axis_angle, rotation_matrix
from insta_runtime.head import HeadModel, fingerprint, load_head
from insta_runtime.types import Float32, HeadState
from telepresence.client import ParameterClient
from telepresence.drivers.expression_transfer import GAIN, ExpressionStats, ExpressionTransfer, LiveTransfer
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
    """States of a subject who rests, smiles, talks and blinks, rotated by ``turn`` rad, ``place`` m to the side."""
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


def seen(states: list[HeadState]) -> StateReservoir:
    reservoir = StateReservoir(len(states[0].expression))
    for state in states:
        reservoir.observe(state)
    return reservoir


def column(head: HeadModel, states: list[HeadState], name: str) -> Float32:
    return np.array([state.expression[head.expression_names.index(name)] for state in states])


@pytest.fixture(scope="module")
def broad(head: HeadModel) -> list[HeadState]:
    """A subject with raised mouth corners at rest and a broad smile, to the left of and facing past the camera."""
    rest = units(head, browInnerUp=0.3, **dict.fromkeys(SMILE, 0.2))
    return take(head, rest=rest, smile=0.8, jaw=0.6, turn=0.3, place=0.1)


@pytest.fixture(scope="module")
def shy(head: HeadModel) -> list[HeadState]:
    return take(head, rest=units(head, jawOpen=0.05), smile=0.5, jaw=0.5, turn=-0.1, place=-0.02)


def test_neutral_is_mapped_to_neutral_and_range_to_range(head, broad, shy) -> None:
    transfer = ExpressionTransfer(
        ExpressionStats.of_states(seen(broad), head), ExpressionStats.of_states(seen(shy), head), head
    )
    shown = [transfer(state) for state in broad]
    calm = shown[30].expression if broad[30].expression.sum() < 1.0 else shown[0].expression
    np.testing.assert_allclose(calm, shy[0].expression, atol=0.02)
    for name in (*SMILE, "jawOpen"):
        assert np.quantile(column(head, shown, name), 0.95) == pytest.approx(
            np.quantile(column(head, shy, name), 0.95), abs=0.06
        )
    for name in BLINK:
        assert column(head, shown, name).max() == pytest.approx(column(head, shy, name).max(), abs=0.05)
    assert column(head, shown, "browInnerUp").max() < 0.05, "the source's resting brows are not transferred"


def test_the_head_moves_like_the_source_about_the_learned_pose(head, broad, shy) -> None:
    transfer = ExpressionTransfer(
        ExpressionStats.of_states(seen(broad), head), ExpressionStats.of_states(seen(shy), head), head
    )
    shown = transfer(broad[0])
    np.testing.assert_allclose(rotation_matrix(shown.rotation), rotation_matrix(shy[0].rotation), atol=1e-4)
    np.testing.assert_allclose(shown.translation, shy[0].translation, atol=0.012)
    nod = rotation_matrix(np.array([0.2, 0.0, 0.0]))  # about the head's own axis
    nodded = replace(broad[0], rotation=axis_angle(rotation_matrix(broad[0].rotation) @ nod).astype(np.float32))
    expected = rotation_matrix(shy[0].rotation) @ nod
    np.testing.assert_allclose(rotation_matrix(transfer(nodded).rotation), expected, atol=1e-4)


def test_the_transfer_between_equal_statistics_is_the_identity(head, shy) -> None:
    stats = ExpressionStats.of_states(seen(shy), head)
    transfer = ExpressionTransfer(stats, stats, head)
    for state in shy[::20]:
        for name, value in transfer(state).arrays().items():
            np.testing.assert_allclose(value, getattr(state, name), atol=1e-5, err_msg=name)


def test_gaze_and_eyelids_are_transferred_and_weights_stay_in_range(head, broad, shy) -> None:
    transfer = ExpressionTransfer(
        ExpressionStats.of_states(seen(broad), head), ExpressionStats.of_states(seen(shy), head), head
    )
    gaze = np.array([[0.1, 0.2, 0.0], [0.1, 0.2, 0.0]], np.float32)
    moved = transfer(
        replace(broad[0], eye_pose=gaze, eyelids=np.ones(2, np.float32), expression=np.ones(52, np.float32))
    )
    np.testing.assert_allclose(moved.eye_pose, gaze, atol=1e-6)
    assert moved.eyelids.min() > 0.9
    assert moved.expression.min() >= 0.0
    assert moved.expression.max() <= 1.0


def test_unknown_ranges_are_not_scaled(head, broad, shy) -> None:
    few = ExpressionStats.of_states(seen(shy[:10]), head)
    state = replace(broad[0], expression=broad[0].expression + units(head, jawOpen=0.4))
    source = ExpressionStats.of_states(seen(broad), head)
    shown = ExpressionTransfer(source, few, head)(state)
    jaw = head.expression_names.index("jawOpen")
    assert shown.expression[jaw] - few.expression[jaw] == pytest.approx(0.4, abs=0.01)
    unknown = ExpressionStats.unknown(head, np.array([0.0, 0.0, 0.5], np.float32))
    assert ExpressionTransfer(source, unknown, head)(state).expression[jaw] == pytest.approx(0.4, abs=0.01)
    np.testing.assert_allclose(
        rotation_matrix(ExpressionTransfer(source, unknown, head)(broad[0]).rotation), FRONT, atol=1e-4
    )


def test_a_range_is_scaled_within_bounds(head, shy) -> None:
    still = take(head, rest=units(head), smile=0.0, jaw=0.06, turn=0.0, place=0.0)
    wild = take(head, rest=units(head), smile=1.0, jaw=1.0, turn=0.0, place=0.0)
    jaw = head.expression_names.index("jawOpen")
    calm, lively = ExpressionStats.of_states(seen(still), head), ExpressionStats.of_states(seen(wild), head)
    opened = replace(still[0], expression=units(head, jawOpen=0.1))
    assert ExpressionTransfer(calm, lively, head)(opened).expression[jaw] == pytest.approx(0.1 * GAIN[1], abs=0.01)
    assert ExpressionTransfer(lively, calm, head)(opened).expression[jaw] == pytest.approx(0.1 * GAIN[0], abs=0.01)


def test_statistics_of_a_live_source_improve_without_a_jump(head, broad, shy) -> None:
    target = "0" * 16, ExpressionStats.of_states(seen(shy), head)
    live = LiveTransfer(head, lambda: target)
    shown = [live(state, "f" * 16, 40_000_000 * i) for i, state in enumerate(broad * 5)]
    settled = ExpressionTransfer(ExpressionStats.of_states(seen(broad), head), target[1], head)
    last = [settled(state).expression for state in broad]
    np.testing.assert_allclose([state.expression for state in shown[-200:]], last, atol=0.08)
    # A still face hardly moves while its statistics change.
    still = [live(broad[0], "f" * 16, 40_000_000 * (1000 + i)).expression for i in range(100)]
    assert np.abs(np.diff(still, axis=0)).max() < 0.02


def test_states_of_the_avatars_own_and_of_unknown_subjects_are_unchanged(head, shy) -> None:
    me = fingerprint(np.ones(60, np.float32))
    live = LiveTransfer(head, lambda: (me, ExpressionStats.of_states(seen(shy), head)))
    assert live(shy[3], me) is shy[3]
    assert live(shy[3], None) is shy[3]
    assert LiveTransfer(head, lambda: None)(shy[3], "f" * 16) is shy[3]
    assert fingerprint(np.zeros(60, np.float32)) != me


def test_messages_of_another_subject_are_mapped_and_those_of_unknown_ones_are_not(head, broad, shy) -> None:
    me, other = fingerprint(np.ones(60, np.float32)), fingerprint(np.zeros(60, np.float32))
    stats = ExpressionStats.of_states(seen(shy), head)
    driver = ZeroMqDriver(
        "tcp://127.0.0.1:*",
        basis=head.basis,
        head_sha256=head.sha256,
        expressions=52,
        on_refused=pytest.fail,
        transfer=LiveTransfer(head, lambda: (me, stats)),
    )
    driver.start()
    try:
        for person, mapped in ((None, False), (me, False), (other, True)):
            with ParameterClient(driver.address, head.sha256, "arkit52", person) as client:
                assert client.wait(120)
                before = driver.received
                deadline = time.monotonic() + 120
                while driver.received == before and time.monotonic() < deadline:
                    client.send(broad[0])  # accepted once the previous sender is silent
                    time.sleep(0.02)
                assert driver.received > before
            newest = driver.newest()
            assert newest is not None
            assert newest.transferred == mapped
            place = stats.translation if mapped else broad[0].translation
            np.testing.assert_allclose(newest.state.translation, place, atol=1e-5)
    finally:
        driver.stop()
