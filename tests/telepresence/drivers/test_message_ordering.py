"""Late and stale messages are detected, on clocks that differ."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telepresence.drivers.message_ordering import RUN, MessageFate, MessageOrdering, TimestampOrdering

S = 1_000_000_000
MS = 1_000_000


def classify(ordering: MessageOrdering, seq: int, sent: float, arrived: float) -> MessageFate:
    return ordering.classify(seq, round(sent * S), round(arrived * S))


@pytest.mark.parametrize("ahead", [0.0, -4000.0, 4000.0])
def test_a_delayed_message_is_stale_with_any_clock_offset(ahead: float) -> None:
    ordering = MessageOrdering()
    for seq in range(10):
        assert classify(ordering, seq, 5000 + ahead + seq / 60, 5000.01 + seq / 60) == "accepted"
    assert classify(ordering, 10, 5000.2 + ahead, 5000.2 + 0.45) == "accepted"
    assert classify(ordering, 11, 5000.3 + ahead, 5000.3 + 0.55) == "stale"
    assert classify(ordering, 12, 5000.9 + ahead, 5000.91) == "accepted"


def test_a_restarted_sender_is_accepted_at_once() -> None:
    ordering = MessageOrdering()
    assert classify(ordering, 500, 10.0, 10.0) == "accepted"
    assert classify(ordering, 499, 9.9, 10.01) == "late"
    assert classify(ordering, 0, 10.02, 10.02) == "accepted"


def test_a_restarted_machine_is_accepted_after_a_second() -> None:
    ordering = MessageOrdering()
    assert classify(ordering, 500, 1e6, 10.0) == "accepted"
    assert classify(ordering, 0, 1.0, 10.5) == "late"
    assert classify(ordering, 1, 2.0, 11.5) == "accepted"
    assert classify(ordering, 2, 2.1, 11.6) == "accepted"


def test_a_clock_step_blocks_a_sender_only_for_seconds() -> None:
    ordering = MessageOrdering()
    assert classify(ordering, 0, 1e9, 10.0) == "accepted"  # far in the future
    assert classify(ordering, 1, 10.1, 10.1) == "stale"
    assert classify(ordering, 2, 13.1, 13.1) == "accepted"
    assert classify(ordering, 3, 13.2, 13.2) == "accepted"


def test_capture_times_are_converted_to_our_clock() -> None:
    ordering = MessageOrdering()
    classify(ordering, 0, 10.0, 10.005)
    assert ordering.captured_ns(10 * S, 10 * S + 5 * MS) == 10 * S
    other = MessageOrdering()
    for seq in range(3):
        classify(other, seq, 7000 + seq, 10.0 + seq)
    assert other.classify(3, 7003 * S, 13 * S + 40 * MS) == "accepted"
    assert other.captured_ns(7003 * S, 13 * S + 40 * MS) == 13 * S


@given(st.lists(st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), st.integers(0, 10 * S)), max_size=60))
def test_any_numbers_leave_a_working_state(messages: list[tuple[int, int, int]]) -> None:
    ordering, now = MessageOrdering(), 0
    for seq, sent, pause in messages:
        now += pause
        if ordering.classify(seq, sent, now) == "accepted":
            assert ordering.captured_ns(sent, now) <= now
    assert ordering.classify(0, now, now + 4 * S) == "accepted"
    assert len(ordering._least) <= 11


def fates(stamps: list[float], rate: float = 60.0) -> list[MessageFate]:
    """Fates of messages that are numbered and arrive at an even ``rate``, with the capture times ``stamps``."""
    ordering = MessageOrdering()
    return [classify(ordering, seq, stamp, 5000.0 + seq / rate) for seq, stamp in enumerate(stamps)]


@pytest.mark.parametrize("step", [0.05, 0.4, 0.6, 2.0, 4.9, 60.0, 4000.0])
def test_a_numbered_sender_whose_clock_falls_back_is_taken_again_after_a_few_messages(step: float) -> None:
    before = [9000 + index / 60 for index in range(120)]
    after = [before[-1] - step + index / 60 for index in range(1, 600)]
    found = fates(before + after)
    assert set(found[:120]) == {"accepted"}
    assert found[120:].count("stale") < RUN
    assert set(found[120 + RUN :]) == {"accepted"}


@pytest.mark.parametrize("speed", [0.0, 1e-6, 1e-3, 0.1, 0.5])
def test_a_numbered_sender_whose_clock_stands_still_or_is_slow_is_not_dropped_for_long(speed: float) -> None:
    found = fates([7000 + speed * index / 60 for index in range(1800)])
    assert found.count("accepted") > 1800 - 60 * 4
    assert set(found[300:]) == {"accepted"}


def test_pairs_of_messages_with_one_capture_time_do_not_hide_a_delay() -> None:
    ordering = MessageOrdering()
    for seq in range(60):
        assert classify(ordering, seq, 10 + seq // 2 / 30, 10.01 + seq // 2 / 30) == "accepted"
    # The network stands still for two seconds, and then delivers what has waited.
    for seq in range(60, 120):
        fate = classify(ordering, seq, 10 + seq // 2 / 30, 13.0 + seq / 10_000)
        assert fate == "stale"
    assert classify(ordering, 200, 13.1, 13.11) == "accepted"


def test_a_clock_that_was_doubted_shows_delays_again_once_it_keeps_pace() -> None:
    ordering = MessageOrdering()
    for seq in range(60):
        classify(ordering, seq, 50.0, 50 + seq / 60)  # stands still
    for seq in range(60, 360):
        assert classify(ordering, seq, 50 + seq / 60, 50 + seq / 60) == "accepted"
    assert classify(ordering, 360, 56.0, 57.0) == "stale"


@pytest.mark.parametrize("top", [2**16, 2**32, 2**53, 2**63 - 1])
def test_a_sequence_number_that_wraps_around_is_accepted_at_once(top: int) -> None:
    ordering = MessageOrdering()
    for index in range(-5, 5):
        seq = top + index if index < 0 else index
        assert classify(ordering, seq, 10 + index / 60, 10 + index / 60) == "accepted"


def test_reordered_messages_are_late_with_a_clock_that_stands_still_too() -> None:
    ordering = MessageOrdering()
    found = [classify(ordering, seq, 10.0, 10 + seq / 60) for seq in (0, 2, 1, 3, 5, 4, 6)]
    assert found == ["accepted", "accepted", "late", "accepted", "accepted", "late", "accepted"]


def by_stamp(stamps: list[float]) -> list[MessageFate]:
    ordering = TimestampOrdering()
    return [ordering.classify(stamp) for stamp in stamps]


@pytest.mark.parametrize("step", [0.02, 0.1, 1.0, 2.5, 4.99, 5.0, 100.0, 86_400.0])
def test_a_sender_whose_time_stamps_fall_back_is_taken_again_after_a_few_packets(step: float) -> None:
    found = by_stamp([1000 + index / 60 for index in range(60)] + [1001 - step + index / 60 for index in range(60)])
    assert set(found[:60]) == {"accepted"}
    assert found[60:].count("late") < RUN
    assert set(found[60 + RUN :]) == {"accepted"}


@pytest.mark.parametrize("first", [0.0, 3.0, 1e9])
def test_constant_time_stamps_are_in_order_also_after_a_step_back(first: float) -> None:
    assert by_stamp([first] * 50) == ["accepted"] * 50
    assert by_stamp([first + 2.0, *[first] * 50])[RUN:] == ["accepted"] * (51 - RUN)


def test_time_stamps_that_wrap_around_every_second_cost_a_few_packets_each() -> None:
    found = by_stamp([index % 60 / 60 for index in range(600)])
    assert found.count("late") == 9 * (RUN - 1)


@pytest.mark.parametrize("displaced", [1, 2, 3])
def test_packets_that_were_overtaken_are_late(displaced: int) -> None:
    stamps = [index / 60 for index in range(60)]
    stamps[20 : 20 + displaced + 1] = [stamps[20 + displaced], *stamps[20 : 20 + displaced]]
    found = by_stamp(stamps)
    assert [index for index, fate in enumerate(found) if fate == "late"] == list(range(21, 21 + displaced))


def jitter(index: int) -> float:
    return index / 30 + 0.05 * math.sin(1.7 * index * index)


@pytest.mark.parametrize(
    "stamp",
    [
        lambda index: -index / 30,
        lambda index: index / 30 % 0.05,
        lambda index: index / 30 % 0.21,
        lambda index: index / 30 + (3.0 if index % 3 == 0 else 0.0),
        lambda index: index / 30 + (0.04 if index % 2 else 0.0),
        jitter,
    ],
    ids=["backwards", "wraps after 50 ms", "wraps after 210 ms", "every third ahead", "two clocks", "jitter"],
)
def test_a_clock_without_order_costs_a_few_packets_in_all(stamp: Callable[[int], float]) -> None:
    found = by_stamp([stamp(index) for index in range(300)])
    assert found.count("late") < RUN
    assert set(found[40:]) == {"accepted"}


def test_packets_that_are_overtaken_now_and_then_stay_late() -> None:
    stamps = [(index ^ 1 if index % 12 < 2 else index) / 60 for index in range(600)]
    assert [index for index, fate in enumerate(by_stamp(stamps)) if fate == "late"] == list(range(1, 600, 12))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60))
def test_any_time_stamps_leave_a_working_state(stamps: list[float]) -> None:
    ordering = TimestampOrdering()
    for stamp in stamps:
        ordering.classify(stamp)
    assert "accepted" in [ordering.classify(stamps[0] + index / 60) for index in range(RUN)]
