"""Sound that is held back: by how much, how smoothly that changes, and what becomes of sound that is late."""

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
    """(N, 2) int16: a ramp that tells when each sample was captured, to the millisecond, within 16 s."""
    ms = 1000.0 * (start_s + np.arange(round(seconds * RATE)) / RATE)
    return np.stack([2 * ms, 2 * ms], 1).astype(np.int16)


class Room:
    """A source that is heard through a delay line, 20 ms at a time, without a real clock."""

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
def test_sound_is_as_late_as_it_is_asked_to_be(delay_s: float) -> None:
    room = Room()
    blocks = [block for _ in range(100) if (block := room.hear(delay_s)) is not None]
    assert len(blocks) >= 100 - delay_s / 0.02 - 3
    assert room.lag_s(blocks[-1]) == pytest.approx(delay_s, abs=0.002)
    assert room.line.delay_s == pytest.approx(delay_s, abs=0.002)
    assert blocks[-1].shape == (BLOCK, 2)
    assert blocks[-1].dtype == np.int16


def test_a_delay_changes_slowly_and_without_a_break_while_something_is_said() -> None:
    room = Room(tone)
    before = [room.hear(0.1) for _ in range(60)]
    assert room.line.delay_s == pytest.approx(0.1, abs=0.002)
    after = [room.hear(0.2) for _ in range(100)]  # two seconds
    assert room.line.delay_s == pytest.approx(0.1 + 2 * SLEW, abs=0.002)
    heard = np.concatenate([block for block in before + after if block is not None])[:, 1].astype(float)
    steps = np.abs(np.diff(heard[2 * BLOCK :]))
    assert steps.max() < 1.1 * 9000 * 2 * np.pi * 437 / RATE  # no click: never steeper than the tone itself
    spectrum = np.abs(np.fft.rfft(heard[-RATE // 2 :] * np.hanning(RATE // 2)))
    assert 2 * np.argmax(spectrum) == pytest.approx(437 * (1 - SLEW), abs=2)


def test_between_words_a_delay_changes_at_once() -> None:
    room = Room(lambda start, seconds: np.zeros((round(seconds * RATE), 2), np.int16))
    for _ in range(60):
        room.hear(0.1)
    for delay_s in (0.3, 0.08):
        for _ in range(75):
            assert room.hear(delay_s) is not None
        assert room.line.delay_s == pytest.approx(delay_s, abs=2 * NEAR_S)


def test_clocks_that_drift_apart_break_nothing() -> None:
    room = Room(drift=3e-4)  # 12 ms in 40 s
    blocks = [room.hear(0.1) for _ in range(600)]
    assert all(block is not None for block in blocks[10:])
    assert room.line.delay_s == pytest.approx(0.1, abs=2 * NEAR_S)


def test_sound_that_is_late_is_played_as_soon_as_may_be_and_never_later_than_half_a_second() -> None:
    room = Room(arrival_s=0.115)
    blocks = [room.hear(0.03) for _ in range(60)]
    assert blocks[-1] is not None
    assert room.lag_s(blocks[-1]) == pytest.approx(0.12, abs=0.003)  # what it takes to arrive

    room = Room(arrival_s=0.03)
    blocks = [room.hear(3.0) for _ in range(60)]
    assert blocks[-1] is not None
    assert room.lag_s(blocks[-1]) == pytest.approx(MAX_DELAY_S, abs=0.002)


def test_sound_that_ends_fades_out_and_may_begin_again() -> None:
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


def test_nobody_can_make_the_line_grow() -> None:
    line = DelayLine()
    rng = np.random.default_rng(0)
    for _ in range(500):
        stamp = int(T0 + rng.normal() * 10 ** rng.uniform(3, 18))
        line.put(AudioChunk(stamp, tone(0.0, rng.choice([0.0, 0.02, 0.12]))))
        block = line.read(T0 + int(rng.normal() * 1e9), rng.uniform(-1, 2))
        assert block is None or block.shape == (BLOCK, 2)
        assert len(line._held) <= 2.2 * RATE


def test_a_timeline_fills_holes_and_drops_what_comes_twice() -> None:
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


def test_the_microphone_goes_before_the_source_and_muted_nobody_is_heard() -> None:
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
    assert bus.status() == {"heard": "microphone", "muted": True, "delay_ms": None}
    bus.unsubscribe(heard.append)


def test_blocks_that_are_left_out_make_the_rest_no_later() -> None:
    room = Room()
    for _ in range(50):
        room.hear(0.1)
    room.now_s += 0.26  # the machine was busy
    room.hear(0.1)
    block = room.hear(0.1)
    assert block is not None
    assert room.lag_s(block) == pytest.approx(0.1, abs=0.003)
    assert room.line.delay_s == pytest.approx(0.1, abs=0.003)
