"""Bandwidth estimates, tiers, retransmission, and the simulated link."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insta_runtime.errors import UserError
from telepresence.streaming import StreamSettings
from telepresence.streaming.rtc.network_simulation import LinkProfile, SimulatedLink
from telepresence.streaming.video.bandwidth import (
    COUNT,
    FLOOR,
    GROWTH,
    HEADROOM,
    PACKET,
    RESENT_S,
    RETRANSMIT_BURST,
    RETRANSMIT_SHARE,
    SILENT_COUNTS,
    START,
    BandwidthEstimate,
    ResendDecision,
    RetransmitBudget,
)
from telepresence.streaming.video.tiers import DOWN_S, MARGIN, UP_S, TierSelector, tier_ladder

# ---- tiers


def test_the_tiers_of_the_default_settings() -> None:
    assert [tier.name for tier in tier_ladder(512, 30, 1_500_000)] == ["512@30", "512@20", "384@20", "256@15"]
    assert [tier.name for tier in tier_ladder(512, 60, 1_500_000)] == ["512@60", "512@30", "512@20", "384@20", "256@15"]
    assert [tier.ceiling for tier in tier_ladder(512, 30, 1_600_000)] == [1_600_000, 1_600_000, 900_000, 400_000]


@given(st.integers(32, 512), st.integers(5, 60), st.integers(100_000, 8_000_000))
def test_every_tier_needs_less_than_the_one_above(half: int, fps: int, bitrate: int) -> None:
    tiers = tier_ladder(2 * half, fps, bitrate)
    assert (tiers[0].size, tiers[0].fps, tiers[0].ceiling) == (2 * half, fps, bitrate)
    for above, below in itertools.pairwise(tiers):
        assert below.need < above.need
        assert below.ceiling <= above.ceiling
        assert below.size % 2 == 0
        assert below.size >= 64


def tier_indices(bitrates: list[float], needs: list[float], step_s: float = 0.25) -> list[int]:
    selector = TierSelector()
    return [selector.update(bitrate, needs, 1000.0 + i * step_s) for i, bitrate in enumerate(bitrates)]


def test_only_a_long_dip_moves_a_viewer_down_and_as_far_as_necessary() -> None:
    needs = [180.0, 120.0, 70.0, 20.0]
    dip = round(DOWN_S / 0.25) - 1
    assert set(tier_indices([500.0] * 4 + [100.0] * dip + [500.0] * 40, needs)) == {0}
    stood = tier_indices([500.0] * 4 + [100.0] * 40, needs)
    assert stood[-1] == 2
    assert stood.index(2) == 4 + DOWN_S / 0.25
    assert tier_indices([1.0] * 40, needs)[-1] == 3  # there is no lower tier


def test_a_viewer_moves_up_one_tier_at_a_time_and_only_with_a_margin() -> None:
    needs = [180.0, 120.0, 70.0, 20.0]
    low = [1.0] * 20
    stood = tier_indices(low + [1000.0] * 80, needs)[20:]
    assert [index for index, _ in itertools.groupby(stood)] == [3, 2, 1, 0]
    assert stood.count(2) == stood.count(1) == UP_S / 0.25 + 1
    assert tier_indices(low + [MARGIN * 180.0 - 1.0] * 200, needs)[-1] == 1
    assert tier_indices(low + [MARGIN * 180.0] * 200, needs)[-1] == 0


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=80))
def test_the_tier_index_stays_in_range(bitrates: list[float]) -> None:
    needs = [tier.need for tier in tier_ladder(512, 30, 1_500_000)]
    assert set(tier_indices(bitrates, needs)) <= set(range(len(needs)))


# ---- estimates


class Reporter:
    """Reports packet loss to an estimate like a browser, a few packets at a time."""

    def __init__(self, estimate: BandwidthEstimate) -> None:
        self.estimate, self.lost, self.sent = estimate, 0, 5000

    def report(self, lost: int, packets: int, sending: float) -> float | None:
        self.lost, self.sent = self.lost + lost, self.sent + packets
        self.estimate.on_receiver_report(self.lost, self.sent, sending)
        return self.estimate.bitrate

    def count(self, fraction: float, sending: float, counts: int = 1) -> float | None:
        for _ in range(counts):
            self.report(round(fraction * COUNT), COUNT, sending)
        return self.estimate.bitrate


def test_the_estimate_follows_remb_with_headroom() -> None:
    estimate = BandwidthEstimate()
    assert estimate.bitrate is None
    estimate.on_remb(1_000_000)
    assert estimate.bitrate == pytest.approx(HEADROOM * 1_000_000)
    estimate.on_remb(10.0)
    assert estimate.bitrate == FLOOR


def test_little_packet_loss_does_not_lower_the_bitrate() -> None:
    estimate = BandwidthEstimate()
    reporter = Reporter(estimate)
    estimate.on_remb(2_000_000)
    chance = random.Random(1)
    for _ in range(2000):
        reporter.report(sum(chance.random() < 0.05 for _ in range(6)), 6, 1_000_000)
        assert estimate.bitrate == pytest.approx(HEADROOM * 2_000_000)


def test_high_packet_loss_lowers_the_bitrate_until_it_ends() -> None:
    estimate = BandwidthEstimate()
    reporter = Reporter(estimate)
    estimate.on_remb(2_000_000)
    reporter.count(0.0, 1_000_000)
    bitrates = [reporter.count(0.4, 1_000_000) for _ in range(10)]
    assert bitrates == sorted(bitrates, reverse=True)
    low = bitrates[-1]
    assert low is not None
    assert low < 500_000
    after = [reporter.count(fraction, low) for fraction in [0.05] * 30 + [0.0] * 12]
    assert after[:8][-1] < after[29] < after[-1] < 1_000_000  # slowly with some loss, then faster
    assert after[-1] / after[-2] > after[29] / after[28]
    assert reporter.count(0.0, 2_000_000, counts=40) == pytest.approx(HEADROOM * 2_000_000)


def test_without_remb_the_bitrate_grows_while_packets_arrive() -> None:
    reporter = Reporter(BandwidthEstimate())
    assert reporter.count(0.0, START, counts=SILENT_COUNTS) is None  # counting begins with the first report
    assert reporter.count(0.0, START) == pytest.approx(
        START * GROWTH
    )  # at most one step above the bitrate that was sent
    sending: float = START
    for _ in range(30):
        sending = reporter.count(0.0, sending) or 0.0
    assert sending > 3 * START
    assert reporter.count(0.5, sending, counts=5) < 0.75 * sending


@given(st.lists(st.tuples(st.booleans(), st.integers(-(2**23), 2**23), st.integers(0, 2**32 - 1)), max_size=60))
def test_the_estimate_is_a_valid_bitrate_for_any_feedback(reports: list[tuple[bool, int, int]]) -> None:
    estimate = BandwidthEstimate()
    for is_remb, lost, number in reports:
        if is_remb:
            estimate.on_remb(number)
        else:
            estimate.on_receiver_report(lost, number, START)
        assert estimate.bitrate is None or FLOOR <= estimate.bitrate < math.inf


@given(st.lists(st.floats(0, 0.5), min_size=1, max_size=200), st.integers(FLOOR, 8_000_000))
def test_retransmission_stays_within_its_budget(pauses: list[float], rate: int) -> None:
    budget = RetransmitBudget(100.0)
    now, granted = 100.0, 0
    for i, pause in enumerate(pauses):
        now += pause
        numbers = range(50 * i, 50 * (i + 1))  # many requests at once
        granted += sum(budget.decide(number, rate, now) is ResendDecision.RESEND for number in numbers)
    burst = max(RETRANSMIT_BURST * PACKET, RETRANSMIT_SHARE * rate / 8)
    assert granted * PACKET <= burst + RETRANSMIT_SHARE * rate / 8 * (now - 100.0) + 1.0
    assert granted >= min(RETRANSMIT_BURST, 50)


def test_a_packet_is_resent_once_until_it_must_have_arrived() -> None:
    budget = RetransmitBudget(100.0)
    asked = [budget.decide(7, 1e6, 100.0 + part * RESENT_S) for part in (0.0, 0.5, 1.1)]
    assert asked == [ResendDecision.RESEND, ResendDecision.ALREADY_SENT, ResendDecision.RESEND]
    assert {budget.decide(number, 1e6, 101.0) for number in range(100, 200)} == {
        ResendDecision.RESEND,
        ResendDecision.SEND_KEYFRAME,
    }


# ---- simulated link


def arrivals(plan: LinkProfile, packets: list[tuple[float, int]]) -> list[float | None]:
    link = SimulatedLink(plan)
    return [link.arrival(size, now) for now, size in packets]


@given(
    st.lists(st.tuples(st.floats(0, 0.1), st.integers(40, 1500)), min_size=1, max_size=200),
    st.floats(100, 5000),
    st.floats(0, 200),
)
def test_a_link_keeps_order_and_rate_and_its_queue_is_bounded(
    packets: list[tuple[float, int]], kbps: float, delay: float
) -> None:
    now, sent = 50.0, []
    for pause, size in packets:
        now += pause
        sent.append((now, size))
    plan = LinkProfile.parse(f"rate={kbps},delay={delay},queue=250")
    got = [(at, *packet) for at, packet in zip(arrivals(plan, sent), sent, strict=True) if at is not None]
    for at, left, size in got:
        assert 8 * size / (1000 * kbps) - 1e-9 <= at - left - delay / 1000 <= 0.250 + 1e-9
    for (before, _, _), (at, _, size) in itertools.pairwise(got):
        assert at - before >= 8 * size / (1000 * kbps) - 1e-6


def test_steps_stalls_and_losses() -> None:
    bits = 8 * 1250
    plan = LinkProfile.parse("rate=1000:1/0:0.5/2000, queue=2000")
    assert arrivals(plan, [(5.0, 1250), (5.9, 1250), (6.2, 1250), (8.0, 1250)]) == pytest.approx(
        [5.0 + bits / 1e6, 5.9 + bits / 1e6, 6.5 + bits / 2e6, 8.0 + bits / 2e6]
    )
    over = [(5.0 + i * 1e-4, 1250) for i in range(100)]  # 100 packets at once into a queue of 10
    assert sum(at is not None for at in arrivals(LinkProfile.parse("rate=1000,queue=100"), over)) == 10
    lost = arrivals(LinkProfile.parse("loss=5"), [(float(i), 1000) for i in range(2000)])
    assert 60 <= lost.count(None) <= 140
    assert lost == arrivals(
        LinkProfile.parse("loss=5"), [(float(i), 1000) for i in range(2000)]
    )  # the same packets are lost again
    assert arrivals(LinkProfile.parse("rate=1000:1/0"), [(0.0, 100), (2.0, 100)])[1] is None


@pytest.mark.parametrize(
    "text",
    [
        *("fast", "rate=", "rate=1:2:3", "rate=-1", "rate=nan", "rate=600:0/100", "rate=1,rate=2"),
        *("loss=101", "loss=nan", "delay=-1", "delay=inf", "queue=0", ","),
    ],
)
def test_invalid_link_settings_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="is not valid"):
        StreamSettings(link=text).check()
