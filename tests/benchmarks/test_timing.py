"""Laws of how steps are timed."""

import torch

from bench import timing


def test_steps_take_turns_and_the_first_rounds_are_not_kept(monkeypatch):
    """What the machine does meanwhile meets all alike, and states are made before."""
    clock, made = [0.0], []
    monkeypatch.setattr(timing, "perf_counter", lambda: clock[0])

    def step(name, takes):
        clock[0] += takes if name in made else 100.0  # the first one makes a state
        made.append(name)

    steps = {
        name: lambda name=name, takes=takes: step(name, takes)
        for name, takes in (("a", 1.0), ("b", 2.0))
    }
    taken = timing.seconds_in_turn(steps, torch.device("cpu"), rounds=3, warm_up=1)
    assert taken == {"a": [1.0] * 3, "b": [2.0] * 3}
    assert made == ["a", "b"] * 4
