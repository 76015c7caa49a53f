"""Sharing of the machine, and the render size on machines of every speed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from insta_runtime.learn.schedule import MIN_RAY_SHARE
from telepresence.display.render_size import SIZES, SLOWER, RenderSize, largest_side
from telepresence.runtime.scheduling import ray_part, take_turns, training_pause


def settle(size: RenderSize, us_per_pixel: float, budget_ms: float, rounds: int = 80) -> list[RenderSize]:
    history = []
    for _ in range(rounds):
        size = size.after(us_per_pixel * size.side**2 / 1000.0, budget_ms)
        history.append(size)
    return history


@given(st.floats(0.01, 200.0), st.sampled_from(SIZES), st.floats(10.0, 200.0))
def test_the_render_size_settles_on_one_side_within_the_budget(cost: float, side: int, budget_ms: float) -> None:
    last = settle(RenderSize(side), cost, budget_ms)[-20:]
    assert len({size.side for size in last}) == 1
    final = last[-1].side
    milliseconds = cost * final**2 / 1000.0
    assert milliseconds <= SLOWER * budget_ms * 1.01 or final == SIZES[0]
    index = SIZES.index(final)
    if index + 1 < len(SIZES):
        assert cost * SIZES[index + 1] ** 2 / 1000.0 > 0.79 * budget_ms


def test_one_slow_frame_reduces_the_size_by_one_step() -> None:
    settled = RenderSize(128, 80.0)
    assert SIZES.index(settled.after(400.0, 100.0).side) == SIZES.index(128) - 1


def test_no_more_is_rendered_than_is_streamed() -> None:
    assert [largest_side(stream) for stream in (64, 100, 512, 600, 1024)] == [64, 96, 512, 512, 1024]
    fast = settle(RenderSize(largest=largest_side(1024)), 0.001, 30.0)
    assert fast[-1].side == 1024
    assert settle(RenderSize(largest=largest_side(512)), 0.001, 30.0)[-1].side == 512


def test_training_takes_its_share() -> None:
    assert training_pause(0.1, 1.0) == 0.0
    assert abs(training_pause(0.1, 0.25) - 0.3) < 1e-12


@given(st.floats(MIN_RAY_SHARE, 1.0), st.floats(0.0, 10.0))
def test_training_uses_fewer_rays_while_rendering_is_slow(part: float, load: float) -> None:
    after = ray_part(part, load)
    assert MIN_RAY_SHARE <= after <= 1.0
    assert after <= part if load > 0.5 else after >= part
    for _ in range(80):
        after = ray_part(after, load)
    assert after == (MIN_RAY_SHARE if load > 0.5 else 1.0)


def test_tracking_and_rendering_take_turns_on_few_cores() -> None:
    assert take_turns(2, "cpu")
    assert not take_turns(16, "cpu")
    assert not take_turns(2, "cuda"), "the GPU renders"
