"""Signals that end a command: which one ends it, which ones are repetitions, which one is impatience."""

from __future__ import annotations

import random
import signal

import pytest

from telepresence.runtime.end_signals import REPEAT_S, EndedBySignal, SignalEffect, SignalJudge, exit_status

INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
END, NOTHING, AT_ONCE = SignalEffect.END, SignalEffect.NOTHING, SignalEffect.EXIT_AT_ONCE


@pytest.mark.parametrize(
    ("arrivals", "effects"),
    [
        ([(TERM, 5.0)], [END]),
        ([(TERM, 5.0), (TERM, 5.0)], [END, NOTHING]),  # timeout: the command, and its process group
        ([(TERM, 5.0), (TERM, 5.0 + REPEAT_S - 0.01)], [END, NOTHING]),
        ([(TERM, 0.0), (TERM, REPEAT_S)], [END, AT_ONCE]),
        ([(INT, 5.0), (INT, 5.5)], [END, AT_ONCE]),  # Ctrl-C twice
        ([(INT, 5.0), (INT, 5.1), (INT, 5.2), (INT, 5.4)], [END, NOTHING, NOTHING, AT_ONCE]),  # from the first one on
        ([(INT, 5.0), (TERM, 5.01), (HUP, 5.02)], [END, NOTHING, NOTHING]),
        ([(HUP, 5.0), (HUP, 6.0), (HUP, 60.0)], [END, NOTHING, NOTHING]),  # terminal, shell, session
        ([(INT, 5.0), (HUP, 8.0)], [END, NOTHING]),  # Ctrl-C, then the window is closed
        ([(HUP, 5.0), (TERM, 5.1), (TERM, 95.0)], [END, NOTHING, AT_ONCE]),  # a service manager loses patience
        ([(HUP, 5.0), (INT, 5.5)], [END, AT_ONCE]),
    ],
)
def test_effects(arrivals: list[tuple[int, float]], effects: list[SignalEffect]) -> None:
    judge = SignalJudge()
    assert [judge.judge(number, seconds) for number, seconds in arrivals] == effects


def test_in_any_order_one_signal_ends_the_command_and_none_at_once_is_impatience() -> None:
    rng = random.Random(0)
    for _ in range(500):
        judge, now, first = SignalJudge(), rng.uniform(-10.0, 10.0), None
        for _ in range(rng.randint(1, 6)):
            number = rng.choice((INT, TERM, HUP))
            effect = judge.judge(number, now)
            assert (effect is END) == (first is None)
            first = now if first is None else first
            if effect is AT_ONCE:
                assert now - first >= REPEAT_S
                assert number != HUP
            now += rng.choice((0.0, 0.001, 0.1, 0.3, 2.0))


def test_the_exit_status_is_that_of_a_shell() -> None:
    assert [exit_status(number) for number in (HUP, INT, TERM)] == [129, 130, 143]
    assert EndedBySignal(TERM).status == 143
    assert not isinstance(EndedBySignal(TERM), Exception), "no handler of errors may swallow it"
