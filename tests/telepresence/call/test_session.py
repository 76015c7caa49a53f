"""State machine of a session: transitions by facts and time."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from telepresence.call.session import (
    AWAY,
    IDLE_AFTER_S,
    LIVE_DB,
    LIVE_GAIN_DB,
    LOST_AFTER_S,
    Facts,
    Session,
    SessionState,
)

FACE = Facts(face=True)
KNOWN = Facts(face=True, calibrated=True)
GOOD = Facts(face=True, calibrated=True, gain_db=LIVE_GAIN_DB + 0.5)
NO_FACE = Facts(calibrated=True)


def test_the_states_follow_in_order() -> None:
    session = Session()
    states = []
    for now, facts in enumerate([Facts(), FACE, KNOWN, GOOD]):
        session = session.advance(facts, now * 0.1)
        states.append(session.state)
    assert states == [SessionState.WAITING, SessionState.CALIBRATING, SessionState.LEARNING, SessionState.LIVE]
    assert session.since == 0.30000000000000004


def test_without_a_face_it_waits_for_ever() -> None:
    session = Session()
    for hour in range(5):
        session = session.advance(Facts(), 3600.0 * hour)
    assert session.state is SessionState.WAITING


def test_a_face_that_leaves_is_lost_then_idle_and_resumes_where_it_was() -> None:
    live = Session().advance(GOOD, 0.0)
    assert live.advance(NO_FACE, LOST_AFTER_S * 0.9).state is SessionState.LIVE
    lost = live.advance(NO_FACE, LOST_AFTER_S)
    assert lost.state is SessionState.LOST
    assert lost.advance(KNOWN, 5.0).state is SessionState.LIVE
    idle = lost.advance(NO_FACE, IDLE_AFTER_S)
    assert idle.state is SessionState.IDLE
    assert idle.advance(KNOWN, 100.0).state is SessionState.LIVE


def test_live_needs_a_margin_and_keeps_it_until_the_mesh_is_better() -> None:
    learning = Session().advance(Facts(face=True, calibrated=True, gain_db=LIVE_GAIN_DB - 0.1), 0.0)
    assert learning.state is SessionState.LEARNING
    live = learning.advance(GOOD, 1.0)
    assert live.advance(Facts(face=True, calibrated=True, gain_db=0.2), 2.0).state is SessionState.LIVE
    assert live.advance(Facts(face=True, calibrated=True, gain_db=-0.2), 2.0).state is SessionState.LEARNING


def test_an_avatar_below_the_least_psnr_is_not_live_even_if_it_beats_the_mesh() -> None:
    haze = replace(GOOD, likeness_db=LIVE_DB - 1.0)
    session = Session().advance(haze, 0.0)
    assert session.state is SessionState.LEARNING
    session = session.advance(replace(GOOD, likeness_db=LIVE_DB), 1.0)
    assert session.state is SessionState.LIVE
    dark = replace(GOOD, gain_db=0.1, likeness_db=10.0)  # the light has changed
    assert session.advance(dark, 2.0).state is SessionState.LIVE


def test_received_head_states_need_no_face() -> None:
    session = Session().advance(Facts(driven=True, calibrated=True), 0.0)
    assert session.state is SessionState.LEARNING
    assert session.advance(Facts(driven=True, calibrated=True), 100.0).state is SessionState.LEARNING


facts = st.builds(
    Facts,
    st.booleans(),
    st.booleans(),
    st.one_of(st.none(), st.floats(-10, 10)),
    st.one_of(st.none(), st.floats(5, 40)),
    st.booleans(),
)
histories = st.lists(st.tuples(st.floats(0.001, 40.0), facts), max_size=30)


@given(histories)
def test_every_history_keeps_the_invariants(history: list[tuple[float, Facts]]) -> None:
    session, now, seen = Session(), 0.0, False
    for pause, moment in history:
        now += pause
        before, session = session, session.advance(moment, now)
        present = moment.face or moment.driven
        seen = seen or present
        assert (session.state is SessionState.WAITING) == (not seen)
        if present:
            assert session.state not in AWAY
            assert (session.state is SessionState.CALIBRATING) == (not moment.calibrated)
        assert session.since == (before.since if session.state is before.state else now)
        # The same facts at the same time change nothing more.
        assert session.advance(moment, now) == session
