"""Record of a rehearsed call, and how visible publications are in the video."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from insta_runtime.backends import choose_backend
from insta_runtime.learn.weight_exchange import WeightExchange
from insta_runtime.render.crossfade import FADE_S
from insta_runtime.render.renderer import Snapshot, take_snapshot
from insta_runtime.types import HeadState, Observation
from telepresence.measure.rehearsal.call_record import CallRecord, PublicationCrossfade, PublishedSnapshot
from telepresence.measure.rehearsal.figures import publish_change
from telepresence.measure.rehearsal.measurement_plan import MeasurementPlan
from telepresence.measure.rehearsal.rehearsal_sink import RehearsalSink
from telepresence.runtime.frames import OutputFrame, RenderInputs, TrackedFrame
from telepresence.streaming import StreamSettings
from tests.support.small_person import camera, open_head, performance, small_model

SIZE = 32
BLACK = np.zeros((SIZE, SIZE, 3), np.uint8)


def learner() -> Any:
    """The parts of a learner that a record uses: weight exchange, avatar, steps and backend."""
    model = small_model()
    return SimpleNamespace(
        exchange=WeightExchange(),
        avatar=SimpleNamespace(model=model),
        trainer=SimpleNamespace(steps=0),
        backend=choose_backend("torch", model),
    )


def tracked(at: float, face: bool = True) -> TrackedFrame:
    state = HeadState.neutral(52).at(round(at * 1e9))
    observation = Observation(0, BLACK, BLACK[..., 0], camera(SIZE), state)
    return TrackedFrame(0, round(at * 1e9), BLACK, observation if face else None)


def shown(weights: int, at: float) -> OutputFrame:
    drawn = RenderInputs(HeadState.neutral(52), camera(SIZE), weights, at)
    return OutputFrame(1, 0, BLACK, True, drawn)


def test_what_came_after_a_moment_was_not_learned_by_the_weights_of_that_moment() -> None:
    record, person = CallRecord(MeasurementPlan.of(4.0), FADE_S), learner()
    began = time.monotonic()
    record.on_tracked_frame(tracked(began, face=False), None)
    assert (record.began, record.first_face) == (pytest.approx(began), None)
    for tenth in range(1, 50):
        record.on_tracked_frame(tracked(began + tenth / 10.0), person)
    assert record.first_face == pytest.approx(0.1)
    assert (record.pictures, record.faces) == (50, 49)

    unseen = record.observations_after(2.0, person)
    seconds = [observation.state.t_capture_ns / 1e9 - began for observation in unseen]
    assert 2.0 < min(seconds) <= 2.3
    assert max(seconds) <= 4.0 + 1e-6
    gaps = [later - earlier for earlier, later in itertools.pairwise(seconds)]
    assert min(gaps) > 0.15, "closer frames look alike"
    assert record.observations_after(2.0, learner()) == []
    assert len(record.observations_until(1.5, person)) < len(record.observations_until(3.0, person))


def test_the_newest_weights_of_each_moment_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    record, person = CallRecord(MeasurementPlan.of(4.0), FADE_S), learner()
    record.on_tracked_frame(tracked(now), person)
    for number in range(1, 41):
        now, person.trainer.steps = 100.0 + number / 10.0 + 0.01, number
        person.exchange.publish({"weights": torch.full((1,), float(number))})
    record.finish()
    assert len(record.snapshots) == len(record.plan.moments)
    for moment in record.plan.moments:
        newest = record.newest(moment)
        assert newest is not None
        assert newest.at <= moment < newest.at + 0.1 + 1e-6
        assert newest.snapshot["weights"] == newest.steps == newest.number
    last = record.newest(math.inf)
    assert last is record.snapshots[-1]


def test_a_publication_is_recorded_until_its_crossfade_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    record, person = CallRecord(MeasurementPlan.of(4.0), FADE_S), learner()
    record.on_tracked_frame(tracked(now), person)
    for number in (1, 2, 3):
        person.exchange.publish({"weights": torch.full((1,), float(number))})
        for _ in range(15):
            now += 0.1
            record.on_shown_frame(shown(number, now))
    assert [(crossfade.before.number, crossfade.after.number) for crossfade in record.crossfades] == [(1, 2), (2, 3)]
    for crossfade in record.crossfades:
        assert [drawn.weights for drawn in crossfade.frames[:2]] == [crossfade.before.number, crossfade.after.number]
        assert crossfade.frames[-1].at - crossfade.frames[0].at == pytest.approx(FADE_S, abs=0.21)
    assert record.first_picture == record.first_avatar == pytest.approx(0.1)
    assert record.avatar_shown(1.0)
    record.on_shown_frame(OutputFrame(2, 0, BLACK))
    now += 0.1
    assert not record.avatar_shown(now - 100.0)


def weights_apart(snapshot: Snapshot, by: float) -> Snapshot:
    generator = torch.Generator().manual_seed(0)
    other = {name: tensor.clone() for name, tensor in snapshot.items()}
    for name, tensor in other.items():
        if name.startswith(("grid", "colour_net", "density_net")):
            tensor += by * torch.randn(tensor.shape, generator=generator)
    return other


@pytest.mark.parametrize(("apart", "visible"), [(0.0, False), (0.5, True)])
def test_a_publication_is_visible_if_its_weights_differ(apart: float, visible: bool) -> None:
    person = learner()
    before = take_snapshot(person.avatar.model)
    first, then = (
        PublishedSnapshot(0.0, number, person, snapshot, person.avatar.model.code, 0)
        for number, snapshot in ((1, before), (2, weights_apart(before, apart)))
    )
    states = performance(open_head(), 4)
    drawn = [RenderInputs(state, camera(SIZE), 1 + min(n, 1), 0.4 * n) for n, state in enumerate(states)]
    found = publish_change([PublicationCrossfade(first, then, drawn)])
    assert found["publish_change"]["usual_change"] > 0.1
    if visible:
        assert found["publish_change_ratio"] > 1.05
    else:
        assert found["publish_change_ratio"] == 1.0


def test_no_publication_has_no_ratio() -> None:
    assert publish_change([]) == {"publish_change_ratio": None, "publish_change": None}


def test_a_sink_takes_every_new_frame_and_repeats_the_last_one() -> None:
    seen: list[OutputFrame] = []
    sink = RehearsalSink(StreamSettings(fps=50, size=64), seen.append)
    assert sink.watched
    sink.start()
    for number in range(5):
        sink.push_frame(shown(number, 0.0))
        _wait_until(lambda taken=number + 1: sum(sink.fresh) >= taken)
    _wait_until(lambda: len(sink.fresh) > sum(sink.fresh))
    sink.stop()
    sink.stop()
    assert len(seen) == 5
    assert 6 <= len(sink.times) == len(sink.fresh)
    assert sum(sink.fresh) >= 5
    assert list(sink.times) == sorted(sink.times)


def _wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60.0
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.002)
