"""A page of documentation for each published method, made of its row in ``graddrop.methods``.

``python -m graddrop.method_pages docs/methods`` writes them.
"""

import sys
from pathlib import Path
from typing import Any

from .methods import PRESETS, Made, Preset

_SITES = {
    "grad": (
        "m_t = b1 m_(t-1) + (1 - b1) k s g\n"
        "v_t = b2 v_(t-1) + (1 - b2) (k s g)^2\n"
        "w_t = (1 - lr wd) w_(t-1) - lr m^_t / (sqrt(v^_t) + eps)"
    ),
    "update": (
        "m_t = b1 m_(t-1) + (1 - b1) g\n"
        "v_t = b2 v_(t-1) + (1 - b2) g^2\n"
        "w_t = (1 - lr wd) w_(t-1) - s lr m^_t / (sqrt(v^_t) + eps)   where k\n"
        "w_t = w_(t-1)                                                elsewhere"
    ),
    "freeze": (
        "w_t, m_t, v_t = AdamW of s g                where k\n"
        "w_t, m_t, v_t = w_(t-1), m_(t-1), v_(t-1)   elsewhere"
    ),
}
_ALIGNMENT = "a_t = 0.9 a_(t-1) + 0.1 sigmoid(cos(g, m_(t-1)) / 2),   a_0 = 1/2"
_SCALES: dict[bool | str, str] = {
    False: "1",
    True: "1 / (realised keep probability)",
    "alignment": "a_t, a number of each tensor, for which one that is skipped looks at its "
    "gradient, too",
}
_UNITS = {"element": "entry", "row": "row", "tensor": "tensor", "layer": "layer"}
_SELECTS = {
    "bernoulli": "each {unit} is dropped with probability p, by its own 16 random bits",
    "exact": "of n {unit}s the round(n p) that come first in a random order are dropped",
    "ascending": "n - round(n p) of n {unit}s are kept, in turns, from the lowest number up",
    "descending": "n - round(n p) of n {unit}s are kept, in turns, from the highest number down",
    "shuffled": (
        "n - round(n p) of n {unit}s are kept, in turns, in an order drawn anew for each round"
    ),
}
_PERIODS = {
    "step": "drawn anew at each step",
    "epoch": "until `new_mask()` begins another: at each epoch, say",
    "run": "drawn once for the whole training; where p falls, what was kept stays kept",
}


def page(name: str) -> str:
    """The page of a method, in Markdown.

    Args:
        name: key of ``graddrop.methods.PRESETS``.

    Raises:
        KeyError: unknown name.
    """
    preset = PRESETS[name]
    knobs: dict[str, Any] = {
        "granularity": "element",
        "select": "bernoulli",
        "period": "step",
        "site": "grad",
        "rescale": False,
        **preset.knobs,
    }
    period = _PERIODS.get(knobs["period"], f"drawn anew every K = {knobs['period']} steps")
    select = _SELECTS[knobs["select"]].format(unit=_UNITS[knobs["granularity"]])
    chosen = f"{select}; {period}"
    equation, scale = _SITES[knobs["site"]], _SCALES[knobs["rescale"]]
    if knobs["rescale"] == "alignment":
        equation = f"{_ALIGNMENT}\n{equation}"
    if preset.made is not None:
        chosen, knobs = _loaded(preset.made), {"site": knobs["site"]}
    elif preset.categories:
        chosen = chosen.replace("of n tensors", "of a category's n tensors in a layer")
    lines = [
        f"# {name}",
        "",
        f"{preset.law[0].upper()}{preset.law[1:]}.",
        "",
        f"Source: {preset.source}.",
        "",
        "## Equation",
        "",
        "```",
        equation,
        "```",
        "",
        "w is a parameter, g its gradient, m and v its moments, hats their bias corrections, lr, "
        "wd, b1, b2, eps AdamW's.",
        f"k, the mask: {chosen}. s = {scale}.",
        "",
        "## Knobs",
        "",
        "| knob | value |",
        "|---|---|",
        *(f"| `{knob}` | `{value!r}` |" for knob, value in knobs.items()),
        "| `drop_prob` | p, yours |" if preset.made is None else "| `drop_prob` | `0.0` |",
        "",
    ]
    if preset.differs:
        lines += ["What to know: " + preset.differs + ".", ""]
    if preset.reported:
        lines += ["## Reported", "", f"{preset.reported[0].upper()}{preset.reported[1:]}.", ""]
    found = "[what we found](../evidence.md)"
    measured = f"Its scores stand in {found}, beside standard fine-tuning's."
    if not preset.measured:
        measured = f"No training with it is among {found} yet."
    lines += ["## Measured", "", measured, ""]
    lines += ["## Cost", "", _cost(knobs, preset.made), "", "## Use", "", _use(name, preset)]
    return "\n".join(lines)


_SCORES = {
    "fisher_scores": "mean squared gradient",
    "gradient_scores": "magnitude of the mean gradient",
}


def _loaded(made: Made) -> str:
    of = "of each tensor" if made.per_tensor else "of all entries together"
    within = f'with "{made.within}" in their names' if made.within else "but for the head's"
    number = "all training data, once" if made.n_losses is None else f"{made.n_losses} of them"
    return (
        f"{of}, in parameters {within}, the share 1 - p of the largest {_SCORES[made.scores]}, "
        f"each of {made.losses} (published with {number}); p is yours; loaded, it stays until "
        "another is"
    )


def _cost(knobs: dict[str, Any], made: Made | None) -> str:
    wholes = knobs.get("granularity") in ("tensor", "layer")
    text = "No memory beyond AdamW's: masks are functions of seed, draw, parameter and element."
    if made is not None:
        text = (
            "An eighth of a byte per entry for the mask, read in the same pass. To make it: four "
            "bytes per entry,\nonce, and a backward pass for each loss."
        )
    if knobs["site"] == "freeze" and wholes:
        text += " The step neither reads nor writes what is frozen as a whole."
    else:
        text += (
            " The step moves as many bytes as AdamW's: 28 per entry in fp32, in one pass; "
            "[performance](../performance.md) has its time."
        )
    if knobs.get("rescale") == "alignment":
        text = (
            "One number per tensor beyond AdamW's memory: masks are functions of seed, draw, "
            "parameter and element.\nBefore the step, which moves as many bytes as AdamW's, 28 per "
            "entry in fp32, a pass reads gradients and\nfirst moments, 8 more; it finds the norm "
            "of `max_grad_norm` as well, which then costs no other pass.\nNothing waits for a "
            "device; shards add up three numbers per tensor. `make bench` has a row for\n"
            '`rescale="alignment"`.'
        )
    if wholes and knobs["site"] != "update":
        text += (
            "\n`optimizer.skip_dropped()` leaves out the backward pass of what is dropped: with c "
            "the share of\nthe layers' matrix products in a step, at best 1 - p c / 3 of its time. "
            "`python -m bench.whole_step`\nmeasures it."
        )
    return text


def _use(name: str, preset: Preset) -> str:
    wholes = preset.knobs.get("granularity") in ("tensor", "layer")
    skips = wholes and preset.knobs.get("site") != "update"
    step = ["loss = model(**batch).loss", "loss.backward()"]
    if skips:
        step = ["with optimizer.skip_dropped():", *(f"    {line}" for line in step)]
    loop = [
        "for batch in batches:",
        *(f"    {line}" for line in step),
        "    optimizer.step()",
        "    optimizer.zero_grad()",
    ]
    if preset.knobs.get("period") == "epoch":
        begin = ["for epoch in range(3):", "    optimizer.new_mask(epoch)"]
        loop = [*begin, *(f"    {line}" for line in loop)]
    made, drop_prob = preset.made, "p" if preset.made is None else "0.0"
    params = "by_category(model)" if preset.categories else "model.named_parameters()"
    imported = [f"from graddrop.mask_makers import {made.scores}, top_masks"] if made else []
    lines = [
        "```python",
        "from graddrop import FusedGradDropAdamW",
        *(["from graddrop.categories import by_category"] if preset.categories else []),
        *imported,
        "from graddrop.methods import PRESETS",
        "",
        f'knobs = PRESETS["{name}"].knobs',
        f"optimizer = FusedGradDropAdamW({params}, lr=2e-5, drop_prob={drop_prob}, **knobs)",
        *(_made(made) if made else []),
        *loop,
        "```",
        "",
        "With transformers' Trainer:",
        "",
        "```python",
    ]
    maker, norm = "Trainer", ""
    if skips:
        maker, norm = "MaskedTrainer", ", masked_norm=True"
        lines += [
            "from graddrop.trainer import SkipDroppedMixin",
            "",
            "",
            "class MaskedTrainer(SkipDroppedMixin, Trainer):",
            "    pass",
            "",
            "",
        ]
    if made:
        lines += [
            *(["import itertools", ""] if made.n_losses else []),
            *([] if made.within else ["from graddrop.exemptions import head_of"]),
            f"from graddrop.mask_makers import broadcast_masks, {made.scores}, top_masks",
            "",
        ]
    categories = ", categories=True" if preset.categories else ""
    lines += [
        f"ours = graddrop.trainer_kwargs(model, args, drop_prob={drop_prob}{norm}{categories}, "
        "**knobs)",
        f"trainer = {maker}(model=model, args=args, train_dataset=data, **ours)",
        *(_made_in_trainer(made) if made else []),
        "```",
        "",
    ]
    if made:
        lines += [
            "Where a training goes on from a checkpoint, the masks that it holds take the place of "
            "these.",
            "`broadcast_masks` gives all processes those that the first has made of its batches.",
            "",
        ]
    return "\n".join(lines)


def _made(made: Made) -> list[str]:
    """The lines that make and load masks."""
    chosen = f'"{made.within}" in name' if made.within else "name not in head"
    of = ("example", "examples") if made.losses == "one example" else ("batch", "batches")
    per_tensor = ", per_tensor=True" if made.per_tensor else ""
    return [
        f"chosen = {{name: w for name, w in model.named_parameters() if {chosen}}}",
        f"losses = (model(**{of[0]}).loss for {of[0]} in {of[1]})",
        f"masks = top_masks({made.scores}(chosen, losses), density=1 - p{per_tensor})",
        "optimizer.load_masks(masks)",
    ]


def _made_in_trainer(made: Made) -> list[str]:
    """The same, of the Trainer's data."""
    loader = "trainer.get_train_dataloader()"
    some = loader if made.n_losses is None else f"itertools.islice({loader}, {made.n_losses})"
    lines = [f"batches = {some}"]
    if made.losses == "one example":
        lines = [
            "examples = (",
            "    {key: value[i : i + 1] for key, value in batch.items()}",
            "    for batch in trainer.get_train_dataloader()",
            '    for i in range(len(batch["labels"]))',
            ")",
            f"examples = itertools.islice(examples, {made.n_losses})",
        ]
    *made_lines, _ = _made(made)
    return [
        "trainer.create_optimizer()",
        *([] if made.within else ["head = head_of(model)"]),
        *lines,
        *made_lines,
        "trainer.optimizer.load_masks(broadcast_masks(masks))",
    ]


def index() -> str:
    """The table of all methods, in Markdown."""
    lines = [
        "# Methods",
        "",
        "Published masking methods as knobs of one optimizer: each row is a preset of",
        "`graddrop.methods.PRESETS`, and a method of `graddrop finetune --method` and of sweeps. A "
        "test in",
        "`tests/optimizer` states its law.",
        "",
        "| method | what it does | knobs | source | test |",
        "|---|---|---|---|---|",
    ]
    for name, preset in PRESETS.items():
        columns = [f"[{name}]({name}.md)", preset.law, _knobs(preset), preset.source]
        file, _, test = preset.test.partition("::")
        lines.append("| " + " | ".join([*columns, f"`{file}`: `{test}`"]) + " |")
    return "\n".join(lines) + "\n"


def _knobs(preset: Preset) -> str:
    """What a preset sets, in a cell."""
    said = [f"`{knob}={value!r}`" for knob, value in preset.knobs.items()]
    if preset.categories:
        said.append("`by_category`")
    if preset.made is not None:
        of = ", per tensor" if preset.made.per_tensor else ""
        said.append(f"`load_masks` of `{preset.made.scores}`{of}")
    return ", ".join(said) or "none"


def main(folder: str) -> None:
    """Write all pages.

    Args:
        folder: where to; made if it is not there.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    (target / "README.md").write_text(index(), encoding="utf-8")
    for name in PRESETS:
        (target / f"{name}.md").write_text(page(name), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
