"""The delay line for lip sync: its delay, how smoothly it changes, and late audio."""

from __future__ import annotations

import numpy as np
import pytest

from telepresence.runtime.audio import RATE, AudioBus, AudioChunk, AudioTimeline
from telepresence.streaming.audio.lipsync import BLOCK, MAX_DELAY_S, NEAR_S, SLEW, DelayLine

MS = 1_000_000
T0 = 7_000_000_000_000


def tone(start_s: float, seconds: float, hertz: float = 437.0, height: float = 9000.0) -> np.ndarray:
    """(N, 2) int16: part of an endless tone, right louder than left."""
    t = start_s + np.arange(round(seconds * RATE)) / RATE
    wave = height * np.sin(2 * np.pi * hertz * t)
    return np.stack([0.5 * wave, wave], 1).astype(np.int16)


def clock(start_s: float, seconds: float) -> np.ndarray:
    """(N, 2) int16: a ramp whose values are the capture times in units of 0.5 ms, for 16 s."""
    ms = 1000.0 * (start_s + np.arange(round(seconds * RATE)) / RATE)
    return np.stack([2 * ms, 2 * ms], 1).astype(np.int16)


class SimulatedCall:
    """Audio that arrives at a delay line and is read from it, 20 ms at a time, without a real clock."""

    def __init__(self, sound: object = clock, arrival_s: float = 0.022, drift: float = 0.0) -> None:
        self.line, self.now_s = DelayLine(), 0.0
        self._sound, self._arrival_s, self._drift, self._said_s = sound, arrival_s, drift, 0.0

    def hear(self, delay_s: float) -> np.ndarray | None:
        while self._said_s * (1 + self._drift) + self._arrival_s <= self.now_s:
            stamp = T0 + round(self._said_s * (1 + self._drift) * 1e9)
            self.line.put(AudioChunk(stamp, self._sound(self._said_s, 0.02)))
            self._said_s += 0.02
        block = self.line.read(T0 + round(self.now_s * 1e9), delay_s)
        self.now_s += 0.02
        return block

    def lag_s(self, block: np.ndarray) -> float:
        """How long before the moment it is played the middle of ``block`` was captured, by what it holds."""
        return self.now_s - 0.01 - float(block[BLOCK // 2, 0]) / 2000.0


@pytest.mark.parametrize("delay_s", [0.06, 0.15, 0.5])
def test_audio_has_the_wanted_delay(delay_s: float) -> None:
    call = SimulatedCall()
    blocks = [block for _ in range(100) if (block := call.hear(delay_s)) is not None]
    assert len(blocks) >= 100 - delay_s / 0.02 - 3
    assert call.lag_s(blocks[-1]) == pytest.approx(delay_s, abs=0.002)
    assert call.line.delay_s == pytest.approx(delay_s, abs=0.002)
    assert blocks[-1].shape == (BLOCK, 2)
    assert blocks[-1].dtype == np.int16


def test_the_delay_changes_slowly_and_without_breaks_during_speech() -> None:
    call = SimulatedCall(tone)
    before = [call.hear(0.1) for _ in range(60)]
    assert call.line.delay_s == pytest.approx(0.1, abs=0.002)
    after = [call.hear(0.2) for _ in range(100)]  # two seconds
    assert call.line.delay_s == pytest.approx(0.1 + 2 * SLEW, abs=0.002)
    heard = np.concatenate([block for block in before + after if block is not None])[:, 1].astype(float)
    steps = np.abs(np.diff(heard[2 * BLOCK :]))
    assert steps.max() < 1.1 * 9000 * 2 * np.pi * 437 / RATE  # no click: never steeper than the tone itself
    spectrum = np.abs(np.fft.rfft(heard[-RATE // 2 :] * np.hanning(RATE // 2)))
    assert 2 * np.argmax(spectrum) == pytest.approx(437 * (1 - SLEW), abs=2)


def test_the_delay_changes_at_once_between_words() -> None:
    call = SimulatedCall(lambda start, seconds: np.zeros((round(seconds * RATE), 2), np.int16))
    for _ in range(60):
        call.hear(0.1)
    for delay_s in (0.3, 0.08):
        for _ in range(75):
            assert call.hear(delay_s) is not None
        assert call.line.delay_s == pytest.approx(delay_s, abs=2 * NEAR_S)


def test_clock_drift_is_compensated() -> None:
    call = SimulatedCall(drift=3e-4)  # 12 ms in 40 s
    blocks = [call.hear(0.1) for _ in range(600)]
    assert all(block is not None for block in blocks[10:])
    assert call.line.delay_s == pytest.approx(0.1, abs=2 * NEAR_S)


def test_late_audio_is_played_as_early_as_possible_and_at_most_half_a_second_late() -> None:
    call = SimulatedCall(arrival_s=0.115)
    blocks = [call.hear(0.03) for _ in range(60)]
    assert blocks[-1] is not None
    assert call.lag_s(blocks[-1]) == pytest.approx(0.12, abs=0.003)  # the time that it takes to arrive

    call = SimulatedCall(arrival_s=0.03)
    blocks = [call.hear(3.0) for _ in range(60)]
    assert blocks[-1] is not None
    assert call.lag_s(blocks[-1]) == pytest.approx(MAX_DELAY_S, abs=0.002)


def test_audio_that_ends_fades_out_and_can_begin_again() -> None:
    line = DelayLine()
    for start in range(0, 400, 20):
        line.put(AudioChunk(T0 + start * MS, tone(start / 1000, 0.02)))
    heard = [line.read(T0 + now * MS, 0.1) for now in range(410, 900, 20)]
    spoken = [block for block in heard if block is not None]
    assert 4 <= len(spoken) <= 5
    assert heard[len(spoken) :] == [None] * (len(heard) - len(spoken))
    assert np.abs(spoken[-1][-20:]).max() < 500  # no click at the end
    assert line.delay_s is None

    for start in range(30_000, 30_200, 20):  # half a minute later
        line.put(AudioChunk(T0 + start * MS, clock(0.001 * start - 25, 0.02)))
    again = line.read(T0 + 30_200 * MS, 0.1)
    assert again is not None
    assert again[-1, 0] == pytest.approx(2 * 5_120, abs=4)


def test_the_delay_line_stays_bounded() -> None:
    line = DelayLine()
    rng = np.random.default_rng(0)
    for _ in range(500):
        stamp = int(T0 + rng.normal() * 10 ** rng.uniform(3, 18))
        line.put(AudioChunk(stamp, tone(0.0, rng.choice([0.0, 0.02, 0.12]))))
        block = line.read(T0 + int(rng.normal() * 1e9), rng.uniform(-1, 2))
        assert block is None or block.shape == (BLOCK, 2)
        assert len(line._held) <= 2.2 * RATE


def test_a_timeline_fills_gaps_and_drops_duplicates() -> None:
    line = AudioTimeline()
    line.begin(T0)
    assert len(line.append(AudioChunk(T0, tone(0, 0.02)))) == BLOCK
    assert len(line.append(AudioChunk(T0 + 25 * MS, tone(0, 0.02)))) == BLOCK  # jitter
    hole = line.append(AudioChunk(T0 + 100 * MS, tone(0, 0.02)))
    assert len(hole) == 4 * BLOCK
    assert not hole[: 3 * BLOCK].any()
    assert line.end_ns == pytest.approx(T0 + 120 * MS)
    twice = line.append(AudioChunk(T0 + 60 * MS, tone(0, 0.08)))
    assert len(twice) == BLOCK
    assert line.end_ns == pytest.approx(T0 + 140 * MS)
    assert not line.continues(AudioChunk(T0 + 9_000 * MS, tone(0, 0.02)))


def test_the_microphone_has_priority_over_the_source_and_mute_silences_both() -> None:
    bus, heard = AudioBus(), []
    bus.subscribe(heard.append)
    assert bus.active is None
    bus.play_source(AudioChunk(T0, tone(0, 0.02)))
    assert bus.active == "source"
    bus.play_microphone(AudioChunk(T0, tone(1, 0.02)))
    bus.play_source(AudioChunk(T0 + 20 * MS, tone(0, 0.02)))
    assert bus.active == "microphone"
    assert len(heard) == 2
    bus.muted = True
    bus.play_microphone(AudioChunk(T0 + 20 * MS, tone(1, 0.02)))
    assert len(heard[-1].samples) == BLOCK
    assert not heard[-1].samples.any()
    assert bus.status() == {"source": "microphone", "muted": True, "delay_ms": None, "error": None}
    bus.unsubscribe(heard.append)


def test_skipped_blocks_do_not_delay_later_ones() -> None:
    call = SimulatedCall()
    for _ in range(50):
        call.hear(0.1)
    call.now_s += 0.26  # the machine was busy
    call.hear(0.1)
    block = call.hear(0.1)
    assert block is not None
    assert call.lag_s(block) == pytest.approx(0.1, abs=0.003)
    assert call.line.delay_s == pytest.approx(0.1, abs=0.003)
