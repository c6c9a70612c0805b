"""Laws of GradualUnfreezing in trainings of any kind; tests/xglue has those of the method."""

import types

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

from graddrop import FusedGradDropAdamW, GradualUnfreezing, trainer_kwargs  # noqa: E402
from graddrop.mask import layer_of  # noqa: E402

SIZES = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}


def make_classifier(n_layers=3):
    """A small BERT with a head of its own."""
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=50, num_hidden_layers=n_layers, **SIZES)
    return transformers.BertForSequenceClassification(config)


def make_language_model():
    """A small GPT-2, whose output weights are its embeddings: nothing is its head's alone."""
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=50, n_positions=8, n_embd=8, n_layer=2, n_head=2)
    )


def trained(model):
    """Names of the parameters that want a gradient."""
    return {name for name, param in model.named_parameters() if param.requires_grad}


def kinds(names):
    """Layers, "head" and None for the embeddings; BERT's pooler goes with the top layer."""
    return {
        "head" if name.startswith("classifier") else layer_of(name)
        for name in names
        if "pooler" not in name
    }


class Training:
    """What a Trainer tells a callback, without a Trainer."""

    def __init__(self, callback, model, max_steps):
        self.callback, self.model = callback, model
        self.state = types.SimpleNamespace(global_step=0, max_steps=max_steps)
        self.tell("on_train_begin")

    def tell(self, event):
        """An event of the Trainer's."""
        getattr(self.callback, event)(None, self.state, None, model=self.model)

    def at(self, step):
        """Names that are trained in a step."""
        self.state.global_step = step
        self.tell("on_step_begin")
        return trained(self.model)


def test_stages_are_spread_evenly():
    """Head, three layers from the top down, the rest: each an equal part of the share."""
    training = Training(GradualUnfreezing(over=0.5), make_classifier(), max_steps=20)
    seen = [kinds(training.at(step)) for step in range(20)]
    stages = [{"head"}, {"head", 2}, {"head", 1, 2}, {"head", 0, 1, 2}, {"head", 0, 1, 2, None}]
    assert seen == [stages[min(step // 2, 4)] for step in range(20)]


def test_what_is_trained_depends_on_the_step_alone():
    """One that begins in the middle, or goes back, trains what the others train there."""
    straight = Training(GradualUnfreezing(over=1.0), make_classifier(), max_steps=20)
    sets = [straight.at(step) for step in range(20)]
    for steps in ([13, 14], [18, 3, 9]):
        resumed = Training(GradualUnfreezing(over=1.0), make_classifier(), max_steps=20)
        assert [resumed.at(step) for step in steps] == [sets[step] for step in steps]


def test_what_was_frozen_before_stays_frozen():
    """It makes no stage either: one layer and the head take a half each."""
    model = make_classifier(n_layers=2)
    kept = {name for name in trained(model) if kinds([name]) <= {0, None}}
    for name, param in model.named_parameters():
        param.requires_grad_(name not in kept)
    training = Training(GradualUnfreezing(over=1.0), model, max_steps=4)
    assert [kinds(training.at(step)) for step in range(4)] == [{"head"}] * 2 + [{"head", 1}] * 2
    training.tell("on_train_end")
    assert not trained(model) & kept


def test_a_model_without_a_head_begins_with_its_top_layer():
    """Something has to be trained in the first step."""
    training = Training(GradualUnfreezing(over=1.0), make_language_model(), max_steps=3)
    seen = [training.at(step) for step in range(3)]
    assert {layer_of(name) for name in seen[0]} == {1, None}
    assert "transformer.ln_f.weight" in seen[0]  # it lies above the layers
    embedding = "transformer.wte.weight"
    assert [embedding in names for names in seen] == [False, False, True]


class Stop(Exception):
    """What ends a training from within."""


class Stopper(transformers.TrainerCallback):
    """Ends the first training at its second step."""

    def __init__(self):
        self.has_ended = False

    def on_step_end(self, args, state, control, **kwargs):
        """Raise."""
        if state.global_step == 2 and not self.has_ended:
            self.has_ended = True
            raise Stop


@pytest.mark.parametrize("masked", [False, True], ids=["torch's AdamW", "masked"])
def test_a_trainer_moves_what_is_released(tmp_path, masked):
    """With any optimizer; a training that was cut short begins anew, and leaves nothing frozen."""
    model = make_classifier()
    args = transformers.TrainingArguments(
        str(tmp_path),
        max_steps=10,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    moved: list[set] = []

    class Watch(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            """Remember."""
            self.before = {n: p.detach().clone() for n, p in model.named_parameters()}

        def on_step_end(self, args, state, control, model=None, **kwargs):
            """Compare."""
            moved.append(
                kinds(n for n, p in model.named_parameters() if not torch.equal(p, self.before[n]))
            )

    kwargs = trainer_kwargs(model, args, drop_prob=0.5) if masked else {"callbacks": []}
    kwargs["callbacks"] += [GradualUnfreezing(over=0.5), Watch(), Stopper()]
    data = [{"input_ids": [1, 2, 3 + i], "labels": i % 2} for i in range(16)]
    trainer = transformers.Trainer(model=model, args=args, train_dataset=data, **kwargs)
    with pytest.raises(Stop):
        trainer.train()
    assert trained(model) != {name for name, _ in model.named_parameters()}
    moved.clear()
    trainer.train()
    assert isinstance(trainer.optimizer.optimizer, FusedGradDropAdamW) == masked
    everything = {"head", 0, 1, 2, None}
    assert moved == [{"head"}, {"head", 2}, {"head", 1, 2}, everything - {None}] + [everything] * 6
    assert trained(model) == {name for name, _ in model.named_parameters()}


def test_a_training_that_ends_early_leaves_nothing_frozen():
    """As one that an early stopping ends."""
    model = make_classifier()
    training = Training(GradualUnfreezing(over=1.0), model, max_steps=20)
    assert training.at(2) < {name for name, _ in model.named_parameters()}
    training.tell("on_train_end")
    assert trained(model) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(
    ("over", "error"),
    [(0, ValueError), (-0.5, ValueError), (1.5, ValueError), (float("nan"), ValueError)]
    + [(True, TypeError), ("0.5", TypeError), (None, TypeError)],
)
def test_a_share_outside_its_range_is_refused(over, error):
    """By name, before the training."""
    with pytest.raises(error, match="Invalid over"):
        GradualUnfreezing(over)


def test_a_model_without_layers_is_refused():
    """Before its first step, and nothing is frozen."""
    small = {"embedding_size": 8, "vocab_size": 50}
    model = transformers.AlbertForSequenceClassification(
        transformers.AlbertConfig(**SIZES, **small, num_hidden_layers=2)
    )
    before = trained(model)
    with pytest.raises(ValueError, match=r"in layers .* got a AlbertForSequenceClassification"):
        Training(GradualUnfreezing(over=0.5), model, max_steps=10)
    assert trained(model) == before
