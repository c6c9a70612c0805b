"""Every snippet of README, docs and docstrings is run: code trains, commands are those there are.

The pages of methods have a test of their own (``test_method_pages.py``), plans another
(``tests/xglue/sweep/test_sweep_plan.py``).
"""

import contextlib
import inspect
import io
import pkgutil
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.root import ROOT

import graddrop
from graddrop import cli
from graddrop.methods import PRESETS

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md")))
}
SCRIPT = "if __name__ =="  # a block that is a file of its own


def blocks(text: str, language: str) -> list[str]:
    """Blocks of a page in a language; "" for those that name none."""
    fenced = re.findall(r"^```([^\n]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for name, block in fenced if name == language]


def code_of(page: str) -> list[str]:
    """What a reader of the page types one after the other."""
    return [block for block in blocks(PAGES[page], "python") if SCRIPT not in block]


@pytest.fixture
def at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What pages take for granted: a model of two layers, its data, the Trainer, a folder DATA."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    from helpers.finetune_runs import write_data

    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / "DATA")
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.BertConfig(vocab_size=50, num_hidden_layers=2, **sizes)
    return {
        "__name__": "page",
        "Trainer": transformers.Trainer,
        "model": transformers.BertForSequenceClassification(config),
        "args": transformers.TrainingArguments(
            str(tmp_path / "out"), max_steps=2, report_to=[], use_cpu=True, disable_tqdm=True
        ),
        "data": [{"input_ids": [1, 2, 3], "labels": 0}] * 4,
        "batches": [{"input_ids": torch.ones(1, 3).long(), "labels": torch.zeros(1).long()}] * 2,
    }


@pytest.mark.parametrize(
    "page", [name for name in PAGES if code_of(name) and not name.startswith("docs/methods/")]
)
def test_the_code_of_a_page_runs(page: str, at_hand: dict[str, Any]) -> None:
    """In its order; a Trainer that it makes trains."""
    names: dict[str, Any] = {}
    for block in code_of(page):
        names |= at_hand | {"trainer": None}
        exec(compile(block.replace("max_steps=100", "max_steps=2"), page, "exec"), names)
        if trainer := names["trainer"]:
            before = [param.detach().clone() for param in names["model"].parameters()]
            trainer.train()
            pairs = zip(before, names["model"].parameters(), strict=True)
            assert any(not torch.equal(*pair) for pair in pairs)


def test_groups_by_hand_are_what_the_page_says(at_hand: dict[str, Any]) -> None:
    """Layers of the encoder are dropped, the rest is exempt; trainer_kwargs exempts the head."""
    first, _, by_hand, _ = [b for b in code_of("docs/trainers.md") if "Trainer(" in b]
    exec(first, at_hand)
    at_hand["trainer"].train()
    optimizer = at_hand["trainer"].optimizer.optimizer
    assert {group["drop_prob"] for group in optimizer.param_groups} == {0.5, 0.0}
    exec(by_hand, at_hand)
    body, head = at_hand["optimizer"].param_groups
    assert set(body["layers"]) == {0, 1} and body["drop_prob"] == 0.5
    assert set(head["layers"]) == {None} and head["drop_prob"] == 0.0


def examples(documentation: str) -> list[str]:
    """Indented blocks of a docstring that follow two colons."""
    found = re.findall(r"::\n\n((?: {4}.*\n|\n)+)", inspect.cleandoc(documentation) + "\n")
    return [textwrap.dedent(block) for block in found]


# Where docstrings show code, and what each takes for granted beside what pages do.
SHOWN = (
    "graddrop.mask_makers",
    "graddrop.categories",
    "graddrop.trainer",
    "graddrop.trainer.SkipDroppedMixin",
    "graddrop.GradualUnfreezing",
    "graddrop.FusedGradDropAdamW.skip_dropped",
)


@pytest.mark.parametrize("name", SHOWN)
def test_the_code_of_a_docstring_runs(name: str, at_hand: dict[str, Any]) -> None:
    """In the names of its module, with a model and its data, and an optimizer that drops layers."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    shown = pkgutil.resolve_name(name)
    module = sys.modules[getattr(shown, "__module__", name)]
    loss_of, batch = at_hand["model"], at_hand["batches"][0]
    named = at_hand["model"].named_parameters()
    names = vars(module) | at_hand | {"graddrop": graddrop, "PRESETS": PRESETS}
    names["FusedGradDropAdamW"] = graddrop.FusedGradDropAdamW
    names["optimizer"] = graddrop.FusedGradDropAdamW(named, granularity="layer")
    if name.endswith("skip_dropped"):  # the model is its loss there
        names |= {"model": lambda inputs: loss_of(**inputs).loss, "inputs": batch}
    (code,) = examples(shown.__doc__ or "")
    exec(compile(code, name, "exec"), names)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page, block",
    [(name, b) for name, text in PAGES.items() for b in blocks(text, "python") if SCRIPT in b],
)
def test_a_script_of_a_page_runs(page: str, block: str, at_hand: dict[str, Any]) -> None:
    """As a file, since its workers import it."""
    Path("script.py").write_text(block, encoding="utf-8")
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(Path("runs").rglob("result.json"))


def commands(text: str) -> list[list[str]]:
    """Commands of the blocks without a language, as a shell splits them."""
    lines = "\n".join(blocks(text, "")).replace("\\\n", " ").splitlines()
    known = ("graddrop ", "make ", "python ", "bash ", "torchrun ")
    return [shlex.split(line, comments=True) for line in lines if line.startswith(known)]


def complaint(words: list[str]) -> str:
    """Why a command cannot run; empty if it can."""
    program, *arguments = words
    if program == "graddrop":
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
            cli._parser(arguments).parse_args(arguments)
        return said.getvalue()
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return "" if arguments[0] in targets else f"no target {arguments[0]}"
    if "-m" in arguments:
        module = arguments[arguments.index("-m") + 1].replace(".", "/")
        found = (ROOT / f"{module}.py").exists() or module == "pytest"
        return "" if found else f"no module {module}"
    scripts = [word for word in arguments if word.endswith((".py", ".sh"))]
    return "" if scripts and (ROOT / scripts[0]).exists() else f"no script in {arguments}"


def test_commands_are_those_that_there_are() -> None:
    """Every option exists, and so do targets, modules and scripts."""
    found = [(page, words) for page, text in PAGES.items() for words in commands(text)]
    assert len(found) > 20
    assert [(*row, complaint(row[1])) for row in found if complaint(row[1])] == []
    for wrong in (  # negative controls
        "graddrop finetune --task pos --epocs 3",
        "make tests",
        "python -m bench.absent",
        "torchrun examples/absent.py",
    ):
        assert complaint(wrong.split())


INLINE = re.compile(r"`(?:[A-Z]+=\S+ )*((?:python|bash|make|graddrop|pytest) [^`]+)`")


def test_what_a_sentence_tells_to_type_exists() -> None:
    """Scripts, modules and targets that a sentence names."""
    found = [
        (page, line.split())
        for page, text in PAGES.items()
        for line in INLINE.findall(re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    ]
    assert len(found) > 10
    for page, words in found:
        paths = [word.partition("::")[0] for word in words if re.search(r"\.(py|sh)\b", word)]
        assert all((ROOT / path).exists() for path in paths), (page, words)
        if words[0] == "make":
            assert not complaint(words), (page, words)
