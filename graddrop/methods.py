"""Published masking methods as presets of the optimizer's knobs: adding one is adding a row."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Made:
    """How a method's masks are made of scores, before the first step; they are loaded, not drawn.

    Attributes:
        scores: the function of ``graddrop.mask_makers`` that gives them, of losses.
        per_tensor: whether each tensor keeps its own share; otherwise all entries together do.
        within: what the names of the parameters have in them that are masked; empty: all have it,
            but for the head's.
        losses: of what each loss is: ``"a batch"`` or ``"one example"``.
        n_losses: how many were published; None: those of all training data, once.
    """

    scores: str
    per_tensor: bool = False
    within: str = ""
    losses: str = "a batch"
    n_losses: int | None = None


@dataclass(frozen=True)
class Preset:
    """Knobs that make ``FusedGradDropAdamW`` a method.

    Attributes:
        source: who published it, and where we read more into it than its text says.
        law: what a step, or a training, does that makes it this method.
        knobs: keyword arguments of the optimizer; ``drop_prob`` stays the user's.
        made: how its masks are made, where they are loaded; ``drop_prob`` is the share that they
            drop then. None: they are drawn.
        differs: where this implementation is not the published one; empty: nowhere that we know.
        categories: whether each category of a layer's parameters drops its own share
            (``graddrop.categories``).
        measured: whether our own study has trained with it (docs/evidence).
        test: the one that holds it to its law, as ``file.py::function`` of ``tests/optimizer``.
        reported: what others found with it, and where they say so.
    """

    source: str
    law: str
    knobs: Mapping[str, Any] = field(default_factory=dict)
    differs: str = ""
    made: Made | None = None
    reported: str = ""
    categories: bool = False
    measured: bool = False
    test: str = ""


_GRADDROP = "O'Neill & Dutta 2023, arXiv 2307.10098, in our reading of its abstract"
_DRAWING = (
    "our reading of a drawing by J. O'Neill of 2021 (jamesoneill12.github.io, "
    "epoch_grad_mask_both_variants.pdf), whose cells we take for those that are trained"
)
_DRAWN = (
    "drop_prob = 1, 13/16, 10/16, 7/16 for an epoch each, then 7/16, with the head exempt; cells "
    "are drawn by chance, where the drawing has each of them once"
)
_OUTSIDE = "parameters in no layer, embeddings and head among them, are always trained"

PRESETS: Mapping[str, Preset] = {
    "graddrop": Preset(
        _GRADDROP,
        "entries of gradients are zero with probability p at each step",
        measured=True,
        test="test_presets.py::test_adamw_gets_masked_gradients",
    ),
    "graddrop-epoch": Preset(
        _GRADDROP,
        "entries of gradients are zero for an epoch",
        {"period": "epoch"},
        measured=True,
        test="test_presets.py::test_adamw_gets_masked_gradients",
    ),
    "layer-graddrop": Preset(
        _GRADDROP,
        "gradients of whole layers are zero at each step",
        {"granularity": "layer"},
        measured=True,
        test="test_presets.py::test_adamw_gets_masked_gradients",
    ),
    "child-tuning-f": Preset(
        "Xu et al. 2021, arXiv 2109.05687, task-free",
        "what is kept of a gradient is divided by the keep probability",
        {"rescale": True},
        test="test_presets.py::test_adamw_gets_masked_gradients",
    ),
    "lr-dropout": Preset(
        "Lin et al. 2019, arXiv 1912.00144",
        "moments see all gradients; the steps of entries are dropped",
        {"site": "update"},
        test="test_presets.py::test_lr_dropout_steps_some_entries_on_dense_moments",
    ),
    "half-fine-tuning": Preset(
        "Hui et al. 2024, arXiv 2404.18466 (HFT)",
        "half of each layer's attention matrices, of its feed-forward matrices and of its norms "
        "are frozen for a stage, state included",
        {"granularity": "tensor", "select": "exact", "period": "epoch", "site": "freeze"},
        "published for drop_prob = 1/2 and models without biases, whose halves here are their own; "
        "another p is rounded to whole tensors of each layer; embeddings and head are always "
        "trained, as published; new_mask() begins a stage, an epoch there as here",
        categories=True,
        measured=True,
        test="test_categories.py::test_half_of_each_category_of_each_layer_is_dropped",
    ),
    "lisa": Preset(
        "Pan et al. 2024, arXiv 2403.17919 (LISA)",
        "exactly so many random layers are trained for K steps, the others are frozen",
        {"granularity": "layer", "select": "exact", "period": 20, "site": "freeze"},
        f"drop_prob = 1 - trained / layers; period is K; {_OUTSIDE}, as published",
        measured=True,
        test="test_presets.py::test_lisa_trains_so_many_layers_for_k_steps",
    ),
    "badam": Preset(
        "Luo et al. 2024, arXiv 2404.02827 (BAdam)",
        "one layer after the other is trained for K steps, each once before any a second time",
        {"granularity": "layer", "select": "shuffled", "period": 100, "site": "freeze"},
        "drop_prob = 1 - 1 / layers; period is K; moments and step counts go on where a layer's "
        f"last turn left them, where BAdam begins anew; {_OUTSIDE}: leave them out of the "
        "optimizer to train layers alone",
        test="test_presets.py::test_badam_gives_each_layer_its_turn",
    ),
    "skip-update": Preset(
        "arXiv 2602.15322 (SkipUpdate)",
        "moments see all gradients; whole tensors skip their step, the others' is divided by the "
        "keep probability",
        {"granularity": "tensor", "site": "update", "rescale": True},
        "published for drop_prob = 1/2; decay is skipped with the step and not rescaled",
        test="test_presets.py::test_skip_update_keeps_moments_dense",
    ),
    "magma": Preset(
        "Joo et al. 2026, arXiv 2602.15322 (Magma), as defined in microsoft/dion, pull request 27",
        "moments see all gradients; whole tensors skip their step, the others' is multiplied by "
        "how well their gradients have agreed with their first moment",
        {"granularity": "tensor", "site": "update", "rescale": "alignment"},
        "published for drop_prob = 1/2, which a_t does not make up for. The definition that we "
        "have says neither where a_t begins nor what the cosine of a zero is: ours begins at 1/2, "
        "which is what a first moment of zero, with a cosine of 0, gives and keeps; from 1 or 0 it "
        "would take some 14 steps to come to where it can stay, [0.378, 0.622]. Decay is skipped "
        "with the step and not multiplied. drop_prob = 0 makes a group plain AdamW, not multiplied "
        "either. Sums over shards round as the shards lie, so a sharded run is that of one process "
        "but for roundings; its masks are the same bits",
        reported="the paper's abstract has perplexities more than 19 % below Adam's and 9 % below "
        "Muon's, for 1B parameters pretrained. A comment of March 2026 in that pull request, which "
        "has SkipUpdate and Magma, on Muon and NorMuon, and without saying which of them was run, "
        'has it "somewhat worse" than NorMuon in modded-nanogpt, and a run of 1B parameters and '
        '100B tokens that "started out superior but gradually fell behind"',
        test="test_presets.py::test_magma_scales_steps_by_agreement",
    ),
    "random-masking": Preset(
        "Xu & Zhang 2024, arXiv 2405.02596",
        "one random set of entries is trained from beginning to end, the others never move",
        {"period": "run", "site": "freeze"},
        "drop_prob is rounded to a multiple of 1/65536, so 1.5e-5 of the entries is the smallest "
        "share that can be trained",
        test="test_presets.py::test_random_masking_trains_the_same_entries_throughout",
    ),
    "child-tuning-d": Preset(
        "Xu et al. 2021, arXiv 2109.05687, task-driven",
        "gradients of all but the entries of the highest Fisher information are zero throughout",
        differs="published for the parameters of the layers, whose scores are compared together; "
        "all others, head and embeddings, are trained; there each tensor's gradient is clipped "
        "before it is squared",
        made=Made("fisher_scores", within="layer"),
        test="test_mask_makers.py::test_child_tuning_d_masks_the_gradients_of_the_layers",
    ),
    "sift": Preset(
        "Song et al. 2023, arXiv 2312.11875 (SIFT)",
        "of each tensor the entries of the largest gradients are trained, the others never move",
        {"site": "freeze"},
        "published for the matrices that the user names, and with one state for each entry that is "
        "trained, where ours has it for all; the head is trained, as there; masks stay as the "
        "first batch made them: load others to choose anew",
        Made("gradient_scores", per_tensor=True, n_losses=1),
        test="test_mask_makers.py::test_sift_trains_so_many_entries_of_each_tensor_and_may_choose_anew",
    ),
    "fish-mask": Preset(
        "Sung et al. 2021, arXiv 2111.09839 (FISH Mask)",
        "the entries of the highest Fisher information are trained, the others never move",
        {"site": "freeze"},
        "the head is trained, as published, where its entries count towards the share; here the "
        "share is of all others",
        Made("fisher_scores", losses="one example", n_losses=1024),
        test="test_mask_makers.py::test_a_fish_mask_is_of_single_examples_and_never_moves_the_rest",
    ),
    "sparse-unfreezing": Preset(
        _DRAWING,
        "new entries are released in each epoch, and the earlier ones dropped again",
        {"period": "epoch", "site": "update"},
        _DRAWN,
        test="test_presets.py::test_sparse_unfreezing_releases_entries_epoch_by_epoch",
    ),
    "sparse-unfreezing-cumulative": Preset(
        _DRAWING,
        "entries are released epoch by epoch and stay released",
        {"period": "run", "site": "update"},
        _DRAWN,
        test="test_presets.py::test_sparse_unfreezing_releases_entries_epoch_by_epoch",
    ),
}
