"""How snapshots travel from the learning to the showing thread."""

from __future__ import annotations

import threading

import pytest
import torch

from insta_runtime.learn.weight_exchange import WeightExchange


def test_the_newest_snapshot_is_taken_once() -> None:
    exchange = WeightExchange()
    assert exchange.take() is None
    for i in range(3):
        exchange.publish({"step": torch.tensor(i)})
    taken = exchange.take()
    assert taken is not None
    assert int(taken["step"]) == 2
    assert exchange.take() is None
    assert exchange.published == 3


def test_across_threads_snapshots_arrive_complete_in_order_and_the_last_is_not_lost() -> None:
    exchange, count = WeightExchange(), 2000
    done = threading.Event()

    def learn() -> None:
        for i in range(count):
            exchange.publish({"a": torch.tensor(i), "b": torch.tensor(i)})
        done.set()

    learner = threading.Thread(target=learn)
    learner.start()
    steps = []
    while True:
        finished = done.is_set()
        snapshot = exchange.take()
        if snapshot is not None:
            assert torch.equal(snapshot["a"], snapshot["b"])
            steps.append(int(snapshot["a"]))
        elif finished:
            break
    learner.join()
    assert steps == sorted(set(steps))
    assert steps[-1] == count - 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_an_incomplete_snapshot_is_not_taken_and_neither_side_waits() -> None:
    learning, showing, exchange = torch.cuda.Stream(), torch.cuda.Stream(), WeightExchange()
    pause = 200_000_000  # cycles, a tenth of a second at least
    with torch.cuda.stream(learning):
        exchange.publish({"w": torch.ones(1 << 20, device="cuda")})
        learning.synchronize()
        torch.cuda._sleep(pause)
        exchange.publish({"w": torch.full((1 << 20,), 2.0, device="cuda")})
    with torch.cuda.stream(showing):
        first = exchange.take()
        assert first is not None
        assert exchange.take() is None, "the other is not whole yet"
        assert not learning.query(), "and nothing waited for it"
        assert float(first["w"].sum()) == 1 << 20
        learning.synchronize()
        second = exchange.take()
        assert second is not None
        assert float(second["w"].min()) == 2.0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_memory_that_the_display_still_reads_is_not_reused() -> None:
    learning, showing, exchange = torch.cuda.Stream(), torch.cuda.Stream(), WeightExchange()
    with torch.cuda.stream(learning):
        exchange.publish({"w": torch.ones(1 << 20, device="cuda")})
        learning.synchronize()
    with torch.cuda.stream(showing):
        taken = exchange.take()
        assert taken is not None
        torch.cuda._sleep(200_000_000)
        copy = taken["w"].clone()
    del taken
    with torch.cuda.stream(learning):
        for value in range(2, 8):
            exchange.publish({"w": torch.full((1 << 20,), float(value), device="cuda")})
    showing.synchronize()
    assert float(copy.max()) == 1.0
