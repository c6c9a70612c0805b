"""Laws of trainer_kwargs: what the Trainer would pass to AdamW arrives, and masks know its seed."""

import math

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

from graddrop import FusedGradDropAdamW, trainer_kwargs  # noqa: E402
from graddrop.exemptions import exempt_names, head_of, set_head  # noqa: E402
from graddrop.trainer import SkipDroppedMixin  # noqa: E402

SIZES = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
# Each a value that is neither the Trainer's default nor the optimizer's.
UNUSUAL = {
    "learning_rate": 3e-4,
    "adam_beta1": 0.85,
    "adam_beta2": 0.97,
    "adam_epsilon": 1e-7,
    "weight_decay": 0.03,
    "max_grad_norm": 0.7,
}


def make_model():
    """A small classifier of two layers, without dropout: masks alone are random."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        num_hidden_layers=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **SIZES,
    )
    return transformers.BertForSequenceClassification(config)


def make_args(folder, **settings):
    """Arguments of a short training on the CPU."""
    settings = {"max_steps": 4, "logging_steps": 1, "save_strategy": "no"} | settings
    return transformers.TrainingArguments(
        str(folder), report_to=[], use_cpu=True, disable_tqdm=True, **settings
    )


def make_trainer(folder, *, settings=None, trainer_class=transformers.Trainer, **kwargs):
    """A Trainer with the optimizer that trainer_kwargs gives it."""
    model, args = make_model(), make_args(folder, **(settings or {}))
    data = [{"input_ids": [1, 2, 3 + i], "labels": i % 2} for i in range(16)]
    return trainer_class(
        model=model, args=args, train_dataset=data, **trainer_kwargs(model, args, **kwargs)
    )


def groups_of(optimizer, model):
    """What a Trainer decides of each group, its parameters by name."""
    names = {id(param): name for name, param in model.named_parameters()}
    return [
        {
            "params": [names[id(param)] for param in group["params"]],
            **{key: group[key] for key in ("lr", "betas", "eps", "weight_decay")},
        }
        for group in optimizer.param_groups
    ]


def test_what_the_trainer_would_pass_to_adamw_arrives(tmp_path):
    """Rate, betas, eps and decay, in groups that are the Trainer's own."""
    ours = make_trainer(tmp_path, settings=UNUSUAL, drop_prob=0.25, granularity="layer")
    theirs = transformers.Trainer(model=ours.model, args=ours.args)
    mine = ours.create_optimizer()
    expected = groups_of(theirs.create_optimizer(), ours.model)
    assert groups_of(mine, ours.model) == expected
    assert len(expected) == 2 and {group["weight_decay"] for group in expected} == {0.0, 0.03}
    assert mine.max_grad_norm == 0.7
    assert {layer for group in mine.param_groups for layer in group["layers"]} == {0, 1, None}
    assert all(group["drop_prob"] == 0.25 for group in mine.param_groups)
    by_class = transformers.Trainer(  # control: what the class alone makes of it
        model=ours.model, args=ours.args, optimizer_cls_and_kwargs=(FusedGradDropAdamW, {})
    )
    assert groups_of(by_class.create_optimizer(), ours.model) != expected


@pytest.mark.parametrize(
    "name, value", [*UNUSUAL.items(), ("seed", 5), ("max_grad_norm", 0.0)], ids=str
)
def test_a_trainer_of_other_arguments_is_refused(tmp_path, name, value):
    """When it is made, or begins to train: the optimizer would have other values than it says."""
    model, usual = make_model(), make_args(tmp_path)
    other = make_args(tmp_path, **{name: value})
    expected = pytest.raises(ValueError, match=f"got {name}=.* where the optimizer has ")
    with expected:
        transformers.Trainer(model=model, args=other, **trainer_kwargs(model, usual))
    if value == 0:  # which an aborted training leaves
        return
    trainer = make_trainer(tmp_path)
    before = weights(trainer)
    setattr(trainer.args, name, getattr(other, name))
    with expected:
        trainer.train()
    assert all(map(torch.equal, before, weights(trainer)))
    again = make_args(tmp_path, learning_rate=usual.learning_rate)  # equal ones are the same
    transformers.Trainer(model=model, args=again, **trainer_kwargs(model, usual))
    if name == "seed":  # which is the masks' own, then
        transformers.Trainer(model=model, args=other, **trainer_kwargs(model, usual, seed=3))


def test_the_seed_of_the_run_is_the_seed_of_the_masks(tmp_path):
    """Two seeds draw two masks; a seed of the masks' own is kept."""
    seeds = [
        make_trainer(tmp_path, settings={"seed": 5}).create_optimizer(),
        make_trainer(tmp_path, settings={"seed": 6}).create_optimizer(),
        make_trainer(tmp_path, settings={"seed": 5}, seed=6).create_optimizer(),
    ]
    masks = [each.keep_mask(each.param_groups[0]["params"][0]) for each in seeds]
    assert not torch.equal(masks[0], masks[1])
    assert torch.equal(masks[1], masks[2])


def test_exempt_parameters_are_never_masked(tmp_path):
    """They form groups of their own, with the decay that they would have had."""
    trainer = make_trainer(tmp_path, settings=UNUSUAL, exempt=["head", "norms"])
    optimizer = trainer.create_optimizer()
    names = {id(param): name for name, param in trainer.model.named_parameters()}
    exempt = {
        names[id(param)]
        for group in optimizer.param_groups
        if group["drop_prob"] == 0.0
        for param in group["params"]
    }
    assert exempt == {name for name in names.values() if "LayerNorm" in name or "classif" in name}
    plain = transformers.Trainer(model=trainer.model, args=trainer.args).create_optimizer()
    for group in optimizer.param_groups:
        for param in group["params"]:
            (same,) = (g for g in plain.param_groups if any(param is p for p in g["params"]))
            assert group["weight_decay"] == same["weight_decay"]


def test_kinds_are_told_by_class_and_by_the_end_of_a_name():
    """Not by any other part of a name; a tied parameter is its first owner's."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.words = torch.nn.Embedding(5, 3)
            self.ln = torch.nn.LayerNorm(3)
            self.normalizer = torch.nn.Linear(3, 5)
            self.normalizer.weight = self.words.weight
            self.bias_scale = torch.nn.Parameter(torch.ones(3))
            self.still = torch.nn.LayerNorm(3).requires_grad_(False)

    expected = {
        "embeddings": {"words.weight"},
        "norms": {"ln.weight", "ln.bias"},
        "biases": {"ln.bias", "normalizer.bias"},
    }
    for kind, names in expected.items():
        assert exempt_names(Model(), [kind]) == names
    assert exempt_names(Model(), expected) == set().union(*expected.values())


def test_the_head_is_what_lies_outside_the_base_model():
    """Wrapped or not; what set_head says comes first; a model without a base has to say it."""
    model = make_model()
    head = {"classifier.weight", "classifier.bias"}
    assert head_of(model) == head
    wrapped = torch.nn.ModuleDict({"module": model})
    wrapped.module = model
    assert head_of(wrapped) == {f"module.{name}" for name in head}
    set_head(model, frozenset({"classifier.bias"}))
    assert head_of(model) == {"classifier.bias"}
    with pytest.raises(ValueError, match=r"names of Bert.*'s parameters, got \['klassifier"):
        set_head(model, ["classifier.bias", "klassifier.weight"])
    with pytest.raises(TypeError, match=r"pass \['classifier.weight'\]"):
        set_head(model, "classifier.weight")  # whose letters are no names
    assert head_of(model) == {"classifier.bias"}
    with pytest.raises(ValueError, match="expected a model of transformers .*Linear.*set_head"):
        head_of(torch.nn.Linear(2, 2))


def weights(trainer):
    """All parameters."""
    return [param.detach().clone() for param in trainer.model.parameters()]


def test_gradients_are_clipped_within_the_step(tmp_path):
    """The training is that of the Trainer's clipping, whose bound is back in the end."""
    runs = {}
    for name in ("inside", "outside", "not at all"):
        settings = UNUSUAL | {"max_grad_norm": 0.02 if name != "not at all" else 0.0}
        settings["adam_epsilon"] = 1e-2  # which feels the size of a gradient
        trainer = make_trainer(tmp_path, settings=settings)
        if name == "outside":
            _, arguments = trainer.optimizer_cls_and_kwargs
            arguments["max_grad_norm"] = None
            trainer.remove_callback(
                next(c for c in trainer.callback_handler.callbacks if "Clip" in type(c).__name__)
            )
        trainer.train()
        assert trainer.args.max_grad_norm == settings["max_grad_norm"]
        runs[name] = weights(trainer)
        norms = [log["grad_norm"] for log in trainer.state.log_history if "loss" in log]
        assert len(norms) == 4 and all(0 < norm < math.inf for norm in norms)
    for inside, outside in zip(runs["inside"], runs["outside"], strict=True):
        torch.testing.assert_close(inside, outside, rtol=1e-5, atol=1e-7)
    pairs = zip(runs["inside"], runs["not at all"], strict=True)
    assert not all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in pairs)  # control


def test_the_bound_outlives_a_training_that_is_aborted(tmp_path):
    """The next training has it, and so have the arguments in the end."""

    class Abort(transformers.TrainerCallback):
        armed = True

        def on_step_end(self, args, state, control, **kwargs):
            if self.armed:
                self.armed = False
                raise KeyError

    trainer = make_trainer(tmp_path, settings={"max_grad_norm": 0.02})
    trainer.add_callback(Abort())
    with pytest.raises(KeyError):
        trainer.train()
    trainer.train()
    assert trainer.optimizer.optimizer.max_grad_norm == trainer.args.max_grad_norm == 0.02


def test_parameters_that_are_not_trained_are_in_no_group(tmp_path):
    """They need no gradient, as the Trainer's own groups have it."""
    trainer = make_trainer(tmp_path, exempt=["embeddings"])
    for param in trainer.model.bert.embeddings.parameters():
        param.requires_grad_(False)
    grouped = {id(p) for group in trainer.create_optimizer().param_groups for p in group["params"]}
    assert grouped == {id(param) for param in trainer.model.parameters() if param.requires_grad}


def test_skipping_under_a_norm_of_the_trainers_is_refused(tmp_path):
    """It would miss what is skipped."""

    class Skipping(SkipDroppedMixin, transformers.Trainer):
        pass

    trainer = make_trainer(tmp_path, granularity="layer", masked_norm=True, trainer_class=Skipping)
    for callback in [*trainer.callback_handler.callbacks]:
        if "Clip" in type(callback).__name__:
            trainer.remove_callback(callback)
    before = weights(trainer)
    with pytest.raises(ValueError, match="expects TrainingArguments.max_grad_norm=0.*got 1.0"):
        trainer.train()
    assert all(map(torch.equal, before, weights(trainer)))


def test_a_mixin_that_comes_too_late_is_refused():
    """Its training_step would never be called; one that a subclass overrides is its own affair."""
    with pytest.raises(TypeError, match=r"class Late\(SkipDroppedMixin, Trainer\)"):

        class Late(transformers.Trainer, SkipDroppedMixin):
            pass

    class Skipping(SkipDroppedMixin, transformers.Trainer):
        pass

    class Own(Skipping):
        def training_step(self, *args, **kwargs):
            return super().training_step(*args, **kwargs)


def test_skipping_dropped_layers_is_the_same_training(tmp_path):
    """Over micro-batches too; some layer has no gradient at some step."""
    runs, without = [], []

    class Look(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            without.append(sum(param.grad is None for param in model.parameters()))

    class Skipping(SkipDroppedMixin, transformers.Trainer):
        pass

    for skip in (True, False):
        trainer = make_trainer(
            tmp_path,
            settings={"gradient_accumulation_steps": 2},
            granularity="layer",
            masked_norm=True,
            trainer_class=Skipping if skip else transformers.Trainer,
        )
        trainer.add_callback(Look())
        trainer.train()
        runs.append(weights(trainer))
        assert all(param.requires_grad for param in trainer.model.parameters())
    assert all(map(torch.equal, *runs))
    assert max(without[:4]) > 0 and max(without[4:]) == 0


def test_masks_of_an_epoch_begin_with_it(tmp_path):
    """The callback that period="epoch" needs is there."""
    settings = {"max_steps": -1, "num_train_epochs": 3, "per_device_train_batch_size": 16}
    trainer = make_trainer(tmp_path, settings=settings, period="epoch")
    trainer.train()
    assert trainer.optimizer.optimizer.draws == [2, 2]


def test_the_log_says_what_is_kept(tmp_path):
    """Probability in force, fraction kept, dropped layers and norm stand beside each loss."""
    trainer = make_trainer(tmp_path, granularity="layer", drop_prob=0.25)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == 4
    for log in logs:
        assert log["drop_prob"] == pytest.approx(0.25)
        assert log["kept_is_exact"] and 0 < log["kept_fraction"] <= 1
        assert (log["dropped_layers"] > 0) == (log["kept_fraction"] < 1)
    assert not any("drop_prob" in log for log in trainer.state.log_history[4:])


def test_what_the_trainer_says_is_said_there_alone(tmp_path):
    """A knob that its arguments hold, an optimizer that is another's, layers that are not there."""
    model = make_model()
    for name in ("lr", "betas", "eps", "weight_decay", "max_grad_norm"):
        with pytest.raises(TypeError, match=f"got {name}=.*in the Trainer's arguments"):
            trainer_kwargs(model, make_args(tmp_path), **{name: 0.5})
    with pytest.warns(UserWarning, match="optim=.*adafactor.* is ignored"):
        trainer_kwargs(model, make_args(tmp_path, optim="adafactor"))
    with pytest.warns(UserWarning, match="optim_args=.*are ignored"):
        trainer_kwargs(model, make_args(tmp_path, optim_args="a=1"))
    with pytest.raises(ValueError, match="Invalid exempt.*'heads'.*expected some of"):
        trainer_kwargs(model, make_args(tmp_path), exempt=["heads"])
    with pytest.raises(TypeError, match=r"Invalid exempt: 'head': expected a list, .* \['head'\]"):
        trainer_kwargs(model, make_args(tmp_path), exempt="head")
    with pytest.raises(ValueError, match="no parameter of Linear is in a layer"):
        trainer_kwargs(torch.nn.Linear(2, 2), make_args(tmp_path), granularity="layer")
    with pytest.raises(ValueError, match="Invalid drop_prob|drop_prob"):
        trainer_kwargs(model, make_args(tmp_path), drop_prob=1.5)
