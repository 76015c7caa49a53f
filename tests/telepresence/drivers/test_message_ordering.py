"""Late and stale messages are detected, on clocks that differ."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telepresence.drivers.message_ordering import MessageFate, MessageOrdering

S = 1_000_000_000
MS = 1_000_000


def classify(ordering: MessageOrdering, seq: int, sent: float, arrived: float) -> MessageFate:
    return ordering.classify(seq, round(sent * S), round(arrived * S))


@pytest.mark.parametrize("ahead", [0.0, -4000.0, 4000.0])
def test_a_delayed_message_is_stale_with_any_clock_offset(ahead: float) -> None:
    ordering = MessageOrdering()
    for seq in range(10):
        assert classify(ordering, seq, 5000 + ahead + seq / 60, 5000.01 + seq / 60) == "taken"
    assert classify(ordering, 10, 5000.2 + ahead, 5000.2 + 0.45) == "taken"
    assert classify(ordering, 11, 5000.3 + ahead, 5000.3 + 0.55) == "stale"
    assert classify(ordering, 12, 5000.9 + ahead, 5000.91) == "taken"


def test_a_restarted_sender_is_accepted_at_once() -> None:
    ordering = MessageOrdering()
    assert classify(ordering, 500, 10.0, 10.0) == "taken"
    assert classify(ordering, 499, 9.9, 10.01) == "late"
    assert classify(ordering, 0, 10.02, 10.02) == "taken"


def test_a_restarted_machine_is_accepted_after_a_second() -> None:
    ordering = MessageOrdering()
    assert classify(ordering, 500, 1e6, 10.0) == "taken"
    assert classify(ordering, 0, 1.0, 10.5) == "late"
    assert classify(ordering, 1, 2.0, 11.5) == "taken"
    assert classify(ordering, 2, 2.1, 11.6) == "taken"


def test_a_clock_step_blocks_a_sender_only_for_seconds() -> None:
    ordering = MessageOrdering()
    assert classify(ordering, 0, 1e9, 10.0) == "taken"  # far in the future
    assert classify(ordering, 1, 10.1, 10.1) == "stale"
    assert classify(ordering, 2, 13.1, 13.1) == "taken"
    assert classify(ordering, 3, 13.2, 13.2) == "taken"


def test_capture_times_are_converted_to_our_clock() -> None:
    ordering = MessageOrdering()
    classify(ordering, 0, 10.0, 10.005)
    assert ordering.captured_ns(10 * S, 10 * S + 5 * MS) == 10 * S
    other = MessageOrdering()
    for seq in range(3):
        classify(other, seq, 7000 + seq, 10.0 + seq)
    assert other.classify(3, 7003 * S, 13 * S + 40 * MS) == "taken"
    assert other.captured_ns(7003 * S, 13 * S + 40 * MS) == 13 * S


@given(st.lists(st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), st.integers(0, 10 * S)), max_size=60))
def test_any_numbers_leave_a_working_state(messages: list[tuple[int, int, int]]) -> None:
    ordering, now = MessageOrdering(), 0
    for seq, sent, pause in messages:
        now += pause
        if ordering.classify(seq, sent, now) == "taken":
            assert ordering.captured_ns(sent, now) <= now
    assert ordering.classify(0, now, now + 4 * S) == "taken"
    assert len(ordering._least) <= 11
