"""How snapshots travel from the learning to the showing thread."""

from __future__ import annotations

import threading

import torch

from insta_runtime.learn.weights import WeightExchange


def test_the_newest_wins_and_is_taken_once() -> None:
    exchange = WeightExchange()
    assert exchange.take() is None
    for i in range(3):
        exchange.publish({"step": torch.tensor(i)})
    taken = exchange.take()
    assert taken is not None
    assert int(taken["step"]) == 2
    assert exchange.take() is None
    assert exchange.published == 3


def test_across_threads_snapshots_arrive_whole_in_order_and_the_last_is_not_lost() -> None:
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
