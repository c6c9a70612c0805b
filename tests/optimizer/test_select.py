"""Laws of choosing by number: as many units at each draw, the same on every backend."""

import math

import pytest
import torch
from helpers.small_runs import SMALL, assert_same, make_optimizer, params_of, snapshot, train

from graddrop import FusedGradDropAdamW, graddrop_adamw_, schedules
from graddrop.mask import (
    LAYER_ORDER_STREAM,
    SELECTIONS,
    count_dropped,
    keep_units,
)

BY_NUMBER = SELECTIONS[1:]
# Of layers 0 to 6 at seed 7, three kept, draws 0 to 4; written down, not computed here.
KNOWN = {
    "exact": [[1, 4, 6], [0, 4, 5], [4, 5, 6], [0, 1, 4], [1, 4, 5]],
    "ascending": [[0, 1, 2], [3, 4, 5], [0, 1, 6], [2, 3, 4], [0, 5, 6]],
    "descending": [[4, 5, 6], [1, 2, 3], [0, 5, 6], [2, 3, 4], [0, 1, 6]],
    "shuffled": [[0, 3, 5], [1, 2, 4], [0, 5, 6], [1, 2, 3], [4, 5, 6]],
}


def kept(select, draw, n=7, n_kept=3, seed=7):
    """Numbers of the kept ones of n units."""
    keep = keep_units(
        torch.arange(n),
        select=select,
        stream=LAYER_ORDER_STREAM,
        seed=seed,
        draw=draw,
        n_dropped=torch.tensor(n - n_kept),
    )
    return keep.nonzero().flatten().tolist()


def layered(select, backend="reference", device="cpu", n_layers=5, **knobs):
    """Two groups, weights and biases, that share their layers."""
    groups = [
        {
            "params": [
                (f"layer.{i}.{kind}", torch.nn.Parameter(torch.ones(3, device=device)))
                for i in range(n_layers)
            ],
            "weight_decay": decay,
        }
        for kind, decay in (("weight", 0.1), ("bias", 0.0))
    ]
    knobs = {"granularity": "layer", "drop_prob": 0.6, "seed": 7, "site": "freeze"} | knobs
    return FusedGradDropAdamW(groups, select=select, backend=backend, **knobs)


def moved_layers(optimizer, step):
    """Make a step; the layers whose weights moved, and those whose biases did."""
    train_from = [param.detach().clone() for param in params_of(optimizer)]
    train(optimizer, range(step, step + 1))
    moved = [not torch.equal(a, b) for a, b in zip(train_from, params_of(optimizer), strict=True)]
    n = len(moved) // 2
    return [{i for i in range(n) if part[i]} for part in (moved[:n], moved[n:])]


@pytest.mark.parametrize("select", BY_NUMBER)
def test_known_answers(select):
    """The units that are kept at the first draws."""
    assert [kept(select, draw) for draw in range(5)] == KNOWN[select]


@pytest.mark.parametrize("select", BY_NUMBER)
def test_as_many_are_kept_at_each_draw(select):
    """Whatever the number; none and all included."""
    for n, n_kept in ((1, 0), (1, 1), (2, 1), (7, 0), (7, 3), (7, 7), (12, 5)):
        for draw in (0, 1, 11, 2**32 - 1):
            assert len(kept(select, draw, n, n_kept)) == n_kept


@pytest.mark.parametrize("select", BY_NUMBER[1:])
@pytest.mark.parametrize(("n", "n_kept"), [(12, 2), (6, 4), (7, 3)])
def test_in_a_round_each_has_its_turn(select, n, n_kept):
    """Equally often, in each of several rounds; two slices in a row share as little as can be."""
    divisor = math.gcd(n, n_kept)
    for start in range(0, 5 * n // divisor, n // divisor):
        draws = [kept(select, start + i, n, n_kept) for i in range(n // divisor)]
        counts = torch.tensor([unit for draw in draws for unit in draw]).bincount(minlength=n)
        assert set(counts.tolist()) == {n_kept // divisor}


def test_turns_go_up_and_down():
    """Two of six layers: from the first on, or from the last."""
    assert [kept("ascending", d, 6, 2) for d in range(4)] == [[0, 1], [2, 3], [4, 5], [0, 1]]
    assert [kept("descending", d, 6, 2) for d in range(4)] == [[4, 5], [2, 3], [0, 1], [4, 5]]


def test_shuffled_rounds_differ():
    """Control: the order is drawn anew for each round, and so is an exact choice at each draw."""
    rounds = {tuple(tuple(kept("shuffled", 3 * r + i, 6, 2)) for i in range(3)) for r in range(8)}
    assert len(rounds) > 4
    assert len({tuple(kept("exact", draw, 6, 2)) for draw in range(30)}) > 8


def test_exact_choices_are_uniform():
    """Each of 10 pairs of 5 units about equally often: chi squared, 9 degrees of freedom."""
    n_draws = 2000
    counts = {}
    for draw in range(n_draws):
        pair = tuple(kept("exact", draw, 5, 2))
        counts[pair] = counts.get(pair, 0) + 1
    expected = n_draws / 10
    assert len(counts) == 10
    assert sum((c - expected) ** 2 / expected for c in counts.values()) < 27.9  # 1 in 1000


def test_ties_go_to_the_lower_number(monkeypatch):
    """Where all bits are equal the units with the lowest numbers are dropped."""
    monkeypatch.setattr(
        "graddrop.mask.philox4x32", lambda counter, seed: [torch.zeros_like(counter[0])] * 4
    )
    assert kept("exact", 0) == [4, 5, 6]


def test_the_low_word_decides_between_equal_high_ones(monkeypatch):
    """64 bits make the order: word 1 above word 0, both without a sign."""
    low = torch.tensor([5, 1, 1 << 31, 0, (1 << 32) - 1, 3, 2])
    high = torch.tensor([7, 7, 7, 7, 7, 7, 1 << 31])
    monkeypatch.setattr("graddrop.mask.philox4x32", lambda counter, seed: (low, high, low, low))
    assert kept("exact", 0) == [2, 4, 6]  # after 3, 1, 5 and 0


@pytest.mark.parametrize(
    ("n", "drop_prob", "expected"),
    [
        (12, 1 - 2 / 12, 10),
        (5, 0.5, 2),
        (7, 0.5, 4),
        (3, 0.1, 0),
        (4, 1.0, 4),
        (0, 0.5, 0),
    ],
)
def test_counts_round_to_even(n, drop_prob, expected):
    """Of a float, and of a tensor on its device."""
    assert count_dropped(n, drop_prob).item() == expected
    assert count_dropped(n, torch.tensor(drop_prob, dtype=torch.float64)).item() == expected


@pytest.mark.parametrize("select", BY_NUMBER)
def test_groups_share_their_layers(backend, device, select):
    """Weights and biases of a layer move together, 2 layers of 5, as dropped_layers has said."""
    optimizer = layered(select, backend, device)
    for step in range(4):
        dropped = set(optimizer.dropped_layers())
        keeps = [bool(optimizer.keep_mask(param).all()) for param in params_of(optimizer)]
        weights, biases = moved_layers(optimizer, step)
        assert weights == biases == set(range(5)) - dropped
        assert [i % 5 in weights for i in range(10)] == keeps
        assert len(weights) == 2


def test_groups_that_disagree_are_counted_apart():
    """Control: another seed, drop_prob, period or granularity makes another pool."""
    for knob, value in (("seed", 8), ("period", 2), ("drop_prob", 0.2), ("select", "ascending")):
        optimizer = layered("exact")
        optimizer.param_groups[1][knob] = value
        parts = [tuple(moved_layers(optimizer, step)) for step in range(4)]
        assert any(weights != biases for weights, biases in parts)
        # With layers of its own each of them keeps its number at every step.
        optimizer = layered("exact")
        optimizer.param_groups[1].update({"layers": [*range(5, 10)], knob: value})
        numbers = [2, 4 if knob == "drop_prob" else 2]
        for step in range(6):
            assert list(map(len, moved_layers(optimizer, step))) == numbers


def test_layers_and_tensors_are_counted_apart():
    """A layer's number is no tensor's id: two of five of each are kept."""
    optimizer = layered("exact")
    optimizer.param_groups[1]["granularity"] = "tensor"
    for step in range(6):
        assert [len(part) for part in moved_layers(optimizer, step)] == [2, 2]


def test_where_all_are_dropped_nothing_is_scaled(backend, device):
    """round(2 * 0.9) = 2 of 2: nothing is kept that could be divided by its share."""
    for site in ("update", "freeze"):
        optimizer = make_optimizer(
            backend, device, SMALL, granularity="tensor", select="exact",
            site=site, rescale=True, drop_prob=0.9,
        )  # fmt: skip
        before = snapshot(optimizer)
        train(optimizer, 1)
        assert_same(snapshot(optimizer, params_of(optimizer))[::4], before)


@pytest.mark.parametrize("site", ["grad", "update", "freeze"])
@pytest.mark.parametrize("select", ["exact", "shuffled"])
def test_backends_step_alike(select, site):
    """Tensors, rescaled by the share that is kept: the C++ and Triton kernels as the reference."""
    runs = []
    for backend in ("reference", "cpu", "triton"):
        optimizer = make_optimizer(
            backend,
            shapes=SMALL * 2,
            granularity="tensor",
            select=select,
            site=site,
            rescale=True,
            drop_prob=0.4,
            max_grad_norm=1.0,
            masked_norm=True,
        )
        train(optimizer, 3)
        runs.append(snapshot(optimizer))
    for run in runs[1:]:
        for ours, theirs in zip(run, runs[0], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_what_is_kept_is_scaled_by_the_share_that_is(backend, device):
    """Of 3 tensors round(1.5) = 2 are dropped: the gradient of the third counts three times."""
    optimizer = make_optimizer(
        backend,
        device,
        ((4,),) * 3,
        granularity="tensor",
        select="exact",
        rescale=True,
        betas=(0.0, 0.0),
        weight_decay=0.0,
    )
    train(optimizer, 1)
    for param in params_of(optimizer):
        moment = optimizer.state[param]["exp_avg"]
        if moment.any():
            torch.testing.assert_close(moment, 3 * param.grad, rtol=1e-4, atol=0)
    assert sum(bool(optimizer.state[p]["exp_avg"].any()) for p in params_of(optimizer)) == 1


def test_turns_go_on_after_a_resume(backend, device):
    """A saved and loaded run continues with the next slice."""
    through, first = (layered("shuffled", backend, device, period=2) for _ in range(2))
    train(through, 5)
    train(first, 3)
    second = layered("shuffled", backend, device, period=2)
    for new, old in zip(params_of(second), params_of(first), strict=True):
        new.data.copy_(old)
    second.load_state_dict(first.state_dict())
    train(second, range(3, 5))
    assert_same(snapshot(second), snapshot(through))


def test_a_skipped_step_takes_no_turn(backend, device):
    """A step that a GradScaler skips leaves the draw, and the slice, as they are."""
    optimizer = layered("ascending", backend, device)
    optimizer.found_inf = torch.ones(1, device=device)
    assert moved_layers(optimizer, 0) == [set(), set()]
    optimizer.found_inf = torch.zeros(1, device=device)
    assert [moved_layers(optimizer, step)[0] for step in range(3)] == [{0, 1}, {2, 3}, {4, 0}]


def test_a_tensor_of_drop_prob_sets_the_number(backend, device):
    """It is read where it lies; one step with two layers, one with four."""
    drop_prob = torch.tensor(0.6, device=device)
    optimizer = layered("exact", backend, device, drop_prob=drop_prob)
    assert len(moved_layers(optimizer, 0)[0]) == 2
    drop_prob.fill_(0.2)
    assert len(moved_layers(optimizer, 1)[0]) == 4


def test_a_schedule_changes_the_number():
    """3, then 2, then 1 of 3 layers, as the steps go by."""
    schedule = schedules.Linear(0.0, 2 / 3, 2)
    optimizer = layered("exact", n_layers=3, drop_prob=schedule)
    assert [len(moved_layers(optimizer, step)[0]) for step in range(4)] == [3, 2, 1, 1]


@pytest.mark.parametrize("first", [0, 1])
def test_edited_layers_are_those_that_are_chosen_among(backend, device, first):
    """Lists that are edited in place, in both groups or the last: as if it had begun with them."""
    edited, fresh = (layered("exact", backend, device) for _ in range(2))
    for group in fresh.param_groups[first:]:
        group["layers"][3] = 90
    for step in range(3):
        moved_layers(edited, step), moved_layers(fresh, step)
    for group in edited.param_groups[first:]:
        group["layers"][3] = 90
    for step in range(3, 6):
        assert edited.dropped_layers() == fresh.dropped_layers()
        assert moved_layers(edited, step) == moved_layers(fresh, step)


def test_an_added_group_joins_the_units(backend, device):
    """Layers that are added are counted with the others."""
    optimizer = layered("exact", backend, device)
    train(optimizer, 1)
    added = [
        (f"layer.{i}.w", torch.nn.Parameter(torch.ones(3, device=device))) for i in range(5, 10)
    ]
    optimizer.add_param_group({"params": added})
    assert len(optimizer.dropped_layers()) == 6


def test_the_function_chooses_among_its_tensors(backend, device):
    """graddrop_adamw_: two of five tensors move."""
    params, exp_avgs, exp_avg_sqs = (
        [torch.zeros(4, device=device) for _ in range(5)] for _ in range(3)
    )
    grads = [torch.ones(4, device=device) for _ in range(5)]
    steps = [torch.zeros((), device=device) for _ in range(5)]
    graddrop_adamw_(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        steps,
        lr=0.1,
        draw=3,
        drop_prob=0.6,
        seed=7,
        granularity="tensor",
        select="exact",
        site="freeze",
        backend=backend,
    )
    assert sum(bool(param.any()) for param in params) == 2


def test_entries_and_rows_are_not_counted():
    """select is for units that are decided as wholes; unknown ones are refused as well."""
    for granularity in ("element", "row"):
        with pytest.raises(ValueError, match="tensor"):
            make_optimizer(select="exact", granularity=granularity)
    with pytest.raises(ValueError, match="shuffled"):
        make_optimizer(select="random", granularity="tensor")
