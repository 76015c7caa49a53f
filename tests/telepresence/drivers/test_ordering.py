"""Which message of a sender is the newest, and which is old, on clocks that differ."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telepresence.drivers.ordering import Ordering, Verdict

S = 1_000_000_000
MS = 1_000_000


def judge(ordering: Ordering, seq: int, sent: float, arrived: float) -> Verdict:
    return ordering.judge(seq, round(sent * S), round(arrived * S))


@pytest.mark.parametrize("ahead", [0.0, -4000.0, 4000.0])
def test_whatever_the_senders_clock_says_what_waited_is_stale(ahead: float) -> None:
    ordering = Ordering()
    for seq in range(10):
        assert judge(ordering, seq, 5000 + ahead + seq / 60, 5000.01 + seq / 60) == "taken"
    assert judge(ordering, 10, 5000.2 + ahead, 5000.2 + 0.45) == "taken"
    assert judge(ordering, 11, 5000.3 + ahead, 5000.3 + 0.55) == "stale"
    assert judge(ordering, 12, 5000.9 + ahead, 5000.91) == "taken"


def test_a_sender_that_begins_anew_is_heard_at_once() -> None:
    ordering = Ordering()
    assert judge(ordering, 500, 10.0, 10.0) == "taken"
    assert judge(ordering, 499, 9.9, 10.01) == "late"
    assert judge(ordering, 0, 10.02, 10.02) == "taken"


def test_a_machine_that_was_started_again_is_heard_after_a_second() -> None:
    ordering = Ordering()
    assert judge(ordering, 500, 1e6, 10.0) == "taken"
    assert judge(ordering, 0, 1.0, 10.5) == "late"
    assert judge(ordering, 1, 2.0, 11.5) == "taken"
    assert judge(ordering, 2, 2.1, 11.6) == "taken"


def test_a_clock_that_leapt_silences_nobody_for_long() -> None:
    ordering = Ordering()
    assert judge(ordering, 0, 1e9, 10.0) == "taken"  # far in the future
    assert judge(ordering, 1, 10.1, 10.1) == "stale"
    assert judge(ordering, 2, 13.1, 13.1) == "taken"
    assert judge(ordering, 3, 13.2, 13.2) == "taken"


def test_capture_times_come_to_our_clock() -> None:
    ordering = Ordering()
    judge(ordering, 0, 10.0, 10.005)
    assert ordering.captured_ns(10 * S, 10 * S + 5 * MS) == 10 * S
    other = Ordering()
    for seq in range(3):
        judge(other, seq, 7000 + seq, 10.0 + seq)
    assert other.judge(3, 7003 * S, 13 * S + 40 * MS) == "taken"
    assert other.captured_ns(7003 * S, 13 * S + 40 * MS) == 13 * S


@given(st.lists(st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), st.integers(0, 10 * S)), max_size=60))
def test_no_numbers_confuse_it(messages: list[tuple[int, int, int]]) -> None:
    ordering, now = Ordering(), 0
    for seq, sent, pause in messages:
        now += pause
        if ordering.judge(seq, sent, now) == "taken":
            assert ordering.captured_ns(sent, now) <= now
    assert ordering.judge(0, now, now + 4 * S) == "taken"
    assert len(ordering._least) <= 11
