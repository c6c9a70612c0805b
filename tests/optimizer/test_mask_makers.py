"""Laws of made masks: scores by their definition, so many entries kept, methods that use them."""

import copy

import pytest
import torch
from helpers.small_runs import assert_same

from graddrop import FusedGradDropAdamW
from graddrop.mask_makers import (
    fisher_scores,
    gradient_scores,
    magnitude_scores,
    random_scores,
    top_masks,
)
from graddrop.methods import PRESETS

KNOBS = {"lr": 1e-2, "drop_prob": 0.0, "weight_decay": 0.1}


def make_model(seed=0):
    """Two layers and a head, and batches whose loss they have."""
    torch.manual_seed(seed)
    return torch.nn.ModuleDict(
        {"layer": torch.nn.ModuleList([torch.nn.Linear(6, 8), torch.nn.Linear(8, 6)])}
        | {"head": torch.nn.Linear(6, 2)}
    )


def loss_of(model, batch):
    """Of one batch: numbers to classify by their sign."""
    inputs, labels = batch
    for layer in model["layer"]:
        inputs = torch.tanh(layer(inputs))
    return torch.nn.functional.cross_entropy(model["head"](inputs), labels)


def make_batches(n=5, size=4, seed=1):
    """Random inputs, and labels that depend on them."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, size, 6, generator=generator)
    return list(zip(inputs, (inputs.sum(-1) > 0).long(), strict=True))


def losses_of(model, batches):
    """One forward pass after the other."""
    return (loss_of(model, batch) for batch in batches)


def train(model, optimizer, batches):
    """A step for each batch."""
    for batch in batches:
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()


def named(model):
    """Its parameters by name."""
    return dict(model.named_parameters())


def values(model):
    """Copies of its parameters by name."""
    return {name: param.detach().clone() for name, param in model.named_parameters()}


def moved(model, before):
    """By name, which entries are others than before."""
    return {name: param.detach() != before[name] for name, param in model.named_parameters()}


# -- scores ----------------------------------------------------------------------------------------


def gradients(model, batches):
    """Of each batch, by name."""
    found = []
    for batch in batches:
        names, params = zip(*model.named_parameters(), strict=True)
        grads = torch.autograd.grad(loss_of(model, batch), params)
        found.append(dict(zip(names, grads, strict=True)))
    return found


def test_fisher_and_gradient_scores_are_their_definitions():
    """Mean of squares, and magnitude of the mean; neither is the other."""
    model, batches = make_model(), make_batches()
    grads = gradients(model, batches)
    fisher = fisher_scores(named(model), losses_of(model, batches))
    mean = gradient_scores(named(model), losses_of(model, batches))
    for name in named(model):
        stacked = torch.stack([grad[name] for grad in grads])
        torch.testing.assert_close(fisher[name], stacked.square().mean(0))
        torch.testing.assert_close(mean[name], stacked.mean(0).abs())
        assert not torch.allclose(fisher[name].sqrt(), mean[name])


def test_gradients_of_others_stay_and_none_is_held():
    """What a parameter had as gradient it has again; what is not asked for gets none."""
    model, batches = make_model(), make_batches()
    chosen = {name: param for name, param in named(model).items() if "layer" in name}
    held = next(iter(chosen.values()))
    held.grad = kept = torch.ones_like(held)
    most = []

    def watched():
        for batch in batches:
            most.append(sum(param.grad is not None for param in model.parameters()))
            yield loss_of(model, batch)

    scores = fisher_scores(chosen, watched())
    assert scores.keys() == chosen.keys()
    assert most == [0] * len(batches)
    assert held.grad is kept and torch.equal(kept, torch.ones_like(held))
    assert all(param.grad is None for param in model.parameters() if param is not held)
    with pytest.raises(ZeroDivisionError):  # gradients come back after an error, too
        fisher_scores(chosen, (1 / 0 for _ in range(1)))
    assert held.grad is kept
    loss_of(model, batches[0]).backward()  # and nothing is left that takes them away
    assert all(param.grad is not None for param in model.parameters())


def test_a_loss_in_parts_is_their_sum():
    """Squared as a whole, not part by part; beside losses that come at once."""
    model, batches = make_model(), make_batches(6)
    pairs = list(zip(batches[::2], batches[1::2], strict=True))

    def together():
        for first, second in pairs:
            yield loss_of(model, first) + loss_of(model, second)

    def in_parts():
        for number, pair in enumerate(pairs):
            parts = (loss_of(model, batch) for batch in pair)
            yield parts if number != 1 else sum(parts)

    for make in (fisher_scores, gradient_scores):
        whole = make(named(model), together())
        found = make(named(model), in_parts())
        single = make(named(model), losses_of(model, batches))
        for name, score in whole.items():
            torch.testing.assert_close(found[name], score)
            assert make is gradient_scores or not torch.allclose(2 * single[name], score)
    assert all(param.grad is None for param in model.parameters())


def test_parameters_without_a_part_score_nothing():
    """A loss that does not reach a parameter gives it zeros."""
    model = make_model()
    params = named(model) | {"unused": torch.nn.Parameter(torch.ones(3))}
    scores = fisher_scores(params, losses_of(model, make_batches()))
    assert not scores["unused"].any() and scores["head.weight"].any()


def test_magnitudes_and_ways_and_chance():
    """The size of parameters, the way they have come, or numbers that a seed gives."""
    model = make_model()
    start = values(model)
    for name, score in magnitude_scores(named(model)).items():
        assert torch.equal(score, start[name].abs())
    train(model, FusedGradDropAdamW(model.parameters(), **KNOBS), make_batches())
    for name, score in magnitude_scores(named(model), start).items():
        assert torch.equal(score, (named(model)[name].detach() - start[name]).abs())
    first, same, other = (random_scores(named(model), seed) for seed in (0, 0, 1))
    assert_same(list(first.values()), list(same.values()))
    assert not torch.equal(first["head.weight"], other["head.weight"])
    assert not torch.equal(first["layer.0.weight"], first["layer.1.weight"].view(8, 6))


# -- masks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_tensor", [False, True])
@pytest.mark.parametrize("density", [0.0, 0.01, 0.3, 0.5, 1.0])
def test_so_many_entries_of_the_highest_scores_are_kept(density, per_tensor):
    """As a sort finds them, over all entries or in each tensor; scores of any sign and layout."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (30, 7), "b": (1,), "c": (0, 3), "d": (501,), "e": ()}
    scores = {n: torch.randn(shape, generator=generator) for n, shape in shapes.items()}
    scores["f"] = torch.randn(9, 11, generator=generator).t() * 1e-30
    scores["d"][3], scores["d"][4] = torch.inf, -torch.inf
    masks = top_masks(scores, density, per_tensor=per_tensor)
    for together in [[name] for name in scores] if per_tensor else [list(scores)]:
        flat = torch.cat([scores[name].flatten() for name in together])
        kept = torch.cat([masks[name].flatten() for name in together])
        expected = torch.zeros_like(kept)
        n_kept = round(density * len(flat))
        expected[flat.sort(descending=True, stable=True).indices[:n_kept]] = True
        assert torch.equal(kept, expected), together
    assert all(mask.shape == scores[name].shape for name, mask in masks.items())


def test_equal_scores_are_kept_in_order():
    """Exactly so many, the first ones; zeros of either sign are equal."""
    scores = {"a": torch.tensor([1.0, 2.0, 1.0]), "b": torch.tensor([1.0, 3.0, 1.0])}
    masks = top_masks(scores, 4 / 6)
    assert masks["a"].tolist() == [True, True, True] and masks["b"].tolist() == [False, True, False]
    zeros = {"a": torch.tensor([-0.0, 0.0]), "b": torch.tensor([0.0, -0.0])}
    masks = top_masks(zeros, 0.25)
    assert masks["a"].tolist() == [True, False] and not masks["b"].any()


W = torch.ones(2, requires_grad=True)
LOSS = W.sum()


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: top_masks({"a": torch.ones(2)}, 1.1), ValueError, "Invalid density: 1.1"),
        (lambda: top_masks({"a": torch.ones(2)}, float("nan")), ValueError, "Invalid density"),
        (
            lambda: top_masks({"a": torch.ones(2).double()}, 0.5),
            TypeError,
            "float32 scores for 'a'",
        ),
        (lambda: top_masks({"a": torch.ones(2) / 0 * 0}, 0.5), ValueError, "for 'a' .*, got NaN"),
        (lambda: fisher_scores(named(make_model()), []), ValueError, "at least one loss"),
        (lambda: fisher_scores({"a": torch.ones(2)}, []), ValueError, "got 'a' without"),
        (
            lambda: magnitude_scores({"a": torch.ones(2)}, {"a": torch.ones(3)}),
            ValueError,
            r"a start of shape \(2,\) for 'a', got \(3,\)",
        ),
        (lambda: magnitude_scores({"a": torch.ones(2)}, {}), ValueError, "got None"),
        (lambda: top_masks({"a": torch.ones(2)}, "0.1"), TypeError, "Invalid density: '0.1'"),
        (lambda: top_masks([torch.ones(2)], 0.1), TypeError, "a mapping from names .*'list'"),
        (lambda: top_masks({"a": [1.0]}, 0.1), TypeError, "a tensor for 'a', got .*'list'"),
        (
            lambda: fisher_scores(make_model().named_parameters(), [LOSS]),
            TypeError,
            r"got .*'generator'.*: of parameters pass dict\(model.named_parameters\(\)\)",
        ),
        (lambda: fisher_scores(named(make_model()), LOSS), TypeError, "one tensor of shape"),
        (lambda: fisher_scores(named(make_model()), [1.0]), TypeError, "got .*'float'.* its .loss"),
        (lambda: fisher_scores(named(make_model()), [{"loss": LOSS}]), TypeError, "in .*'dict'"),
        (lambda: fisher_scores(named(make_model()), [W]), ValueError, r"got shape \(2,\)"),
        (
            lambda: fisher_scores(named(make_model()), [LOSS.detach()]),
            ValueError,
            "requires_grad=False",
        ),
    ],
)
def test_what_makes_no_masks_is_refused(make, error, message):
    """By name, with what came."""
    with pytest.raises(error, match=message):
        make()


# -- methods ---------------------------------------------------------------------------------------


def made(model, preset, batches, density):
    """Masks by the preset's row of the table of methods."""
    import graddrop.mask_makers as makers

    row = PRESETS[preset].made
    chosen = {n: p for n, p in model.named_parameters() if row.within in n}
    scores = getattr(makers, row.scores)(chosen, losses_of(model, batches))
    return top_masks(scores, density, per_tensor=row.per_tensor)


def test_child_tuning_d_masks_the_gradients_of_the_layers():
    """AdamW of gradients that are multiplied by the mask; the head's are not."""
    model, batches = make_model(), make_batches()
    twin = copy.deepcopy(model)
    masks = made(model, "child-tuning-d", batches, density=0.3)
    assert masks.keys() == {name for name in named(model) if "layer" in name}
    sizes = [mask.numel() for mask in masks.values()]
    assert sum(int(mask.sum()) for mask in masks.values()) == round(0.3 * sum(sizes))
    knobs = KNOBS | PRESETS["child-tuning-d"].knobs
    optimizer = FusedGradDropAdamW(model.named_parameters(), backend="reference", **knobs)
    optimizer.load_masks(masks)
    plain = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0.1, foreach=False)
    for batch in batches:
        train(model, optimizer, [batch])
        plain.zero_grad()
        loss_of(twin, batch).backward()
        for name, param in twin.named_parameters():
            param.grad.mul_(masks.get(name, torch.ones_like(param)))
        plain.step()
    assert_same(list(values(model).values()), list(values(twin).values()))


def test_sift_trains_so_many_entries_of_each_tensor_and_may_choose_anew():
    """Those of the largest gradients; after some steps others, by loading masks again."""
    model, batches = make_model(), make_batches(10)
    knobs = KNOBS | PRESETS["sift"].knobs
    optimizer = FusedGradDropAdamW(model.named_parameters(), **knobs)
    chosen = []
    for part in (batches[:5], batches[5:]):
        masks = made(model, "sift", part[:1], density=0.25)
        optimizer.load_masks(masks)
        before = values(model)
        train(model, optimizer, part)
        assert_same(list(moved(model, before).values()), list(masks.values()))
        assert all(int(mask.sum()) == round(0.25 * mask.numel()) for mask in masks.values())
        chosen.append(masks)
    assert any(not torch.equal(chosen[0][name], chosen[1][name]) for name in masks)


def test_a_fish_mask_is_of_single_examples_and_never_moves_the_rest():
    """Squares of examples' gradients, not of their mean's."""
    model, batches = make_model(), make_batches()
    examples = [(x[i : i + 1], y[i : i + 1]) for x, y in batches for i in range(len(y))]
    masks = made(model, "fish-mask", examples, density=0.1)
    assert sum(int(mask.sum()) for mask in masks.values()) == round(
        0.1 * sum(mask.numel() for mask in masks.values())
    )
    of_batches = made(model, "fish-mask", batches, density=0.1)
    assert any(not torch.equal(masks[name], of_batches[name]) for name in masks)
    optimizer = FusedGradDropAdamW(model.named_parameters(), **(KNOBS | PRESETS["fish-mask"].knobs))
    optimizer.load_masks(masks)
    before = values(model)
    train(model, optimizer, batches)
    assert_same(list(moved(model, before).values()), list(masks.values()))


def test_only_the_new_rows_of_an_embedding_are_trained():
    """Old rows stay to the bit, weight decay included, in the midst of a model that is trained."""
    model = torch.nn.Sequential(torch.nn.Embedding(12, 4), torch.nn.Linear(4, 2))
    optimizer = FusedGradDropAdamW(model.named_parameters(), site="freeze", **KNOBS)
    new = torch.zeros(12, 4, dtype=torch.bool)
    new[9:] = True
    optimizer.load_masks({"0.weight": new})
    before = values(model)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.arange(12)).square().sum().backward()
        optimizer.step()
    changed = moved(model, before)
    assert torch.equal(changed["0.weight"], new)
    assert changed["1.weight"].all() and changed["1.bias"].all()


def sparse_fine_tuning(model, batches, density):
    """LT-SFT: train all, keep what moved most, go back, train that; what it changed, by name."""
    start = values(model)
    train(model, FusedGradDropAdamW(model.named_parameters(), **KNOBS), batches)
    masks = top_masks(magnitude_scores(named(model), start), density)
    model.load_state_dict(start)
    optimizer = FusedGradDropAdamW(model.named_parameters(), site="freeze", **KNOBS)
    optimizer.load_masks(masks)
    train(model, optimizer, batches)
    change = {name: param.detach() - start[name] for name, param in model.named_parameters()}
    model.load_state_dict(start)
    return change, masks


def test_two_sparse_fine_tunings_are_composed():
    """Their changes are sparse, and added up each loss is lower than before."""
    model = make_model()
    tasks = []
    for seed in (1, 2):  # two tasks, each with a rule of its own
        inputs = torch.randn(40, 16, 6, generator=torch.Generator().manual_seed(seed))
        tasks.append(list(zip(inputs, (inputs[..., seed] > 0).long(), strict=True)))
    before = [float(sum(losses_of(model, batches)).detach()) for batches in tasks]
    found = [sparse_fine_tuning(model, batches, density=0.2) for batches in tasks]
    with torch.no_grad():
        for change, masks in found:
            assert not any((change[name] != 0)[~mask].any() for name, mask in masks.items())
            n = sum(mask.numel() for mask in masks.values())
            assert sum(int(mask.sum()) for mask in masks.values()) == round(0.2 * n)
            for name, param in model.named_parameters():
                param.add_(change[name])
    after = [float(sum(losses_of(model, batches)).detach()) for batches in tasks]
    assert all(now < then for now, then in zip(after, before, strict=True)), (before, after)
