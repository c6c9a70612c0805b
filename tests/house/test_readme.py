"""The README keeps its word."""

import re
import tomllib

import pytest
import torch
from helpers.root import ROOT

from graddrop import FusedGradDropAdamW

README = ROOT / "README.md"


def test_the_first_example_runs_as_it_stands():
    """Ten lines, copied as they are, train: the loss falls."""
    example = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for line in example.group(1).splitlines() if line.strip()]
    assert len(lines) <= 11
    losses: list[float] = []
    code = example.group(1).replace(
        "loss.backward()", "loss.backward(); losses.append(loss.item())"
    )
    exec(compile(code, str(README), "exec"), {"losses": losses, "__name__": "readme"})
    assert len(losses) == 20
    assert losses[-1] < losses[0]


def test_the_trainer_takes_both_ways(tmp_path):
    """Both examples make the Trainer's optimizer: by what it knows, and with groups of our own."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    examples = [block for block in blocks if "Trainer(" in block]
    assert len(examples) == 2
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.BertConfig(vocab_size=50, num_hidden_layers=2, **sizes)
    names = {
        "Trainer": transformers.Trainer,
        "FusedGradDropAdamW": FusedGradDropAdamW,
        "args": transformers.TrainingArguments(
            str(tmp_path), max_steps=2, report_to=[], use_cpu=True, disable_tqdm=True
        ),
        "data": [{"input_ids": [1, 2, 3], "labels": 0}] * 4,
    }
    given = None
    for example in examples:
        torch.manual_seed(0)
        names["model"] = transformers.BertForSequenceClassification(config)
        exec(compile(example, str(README), "exec"), names)
        names["trainer"].train()
        given = given or names["trainer"].optimizer.optimizer
    assert {group["drop_prob"] for group in given.param_groups} == {0.5, 0.0}
    body, head = names["optimizer"].param_groups
    assert set(body["layers"]) == {0, 1} and body["drop_prob"] == 0.5
    assert set(head["layers"]) == {None} and head["drop_prob"] == 0.0
    assert names["optimizer"].draws == [2, 2]


def test_what_it_links_to_exists():
    """Every relative link and every path in the first code of a command leads to a file."""
    text = README.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (README.parent / target).exists(), target
    for script in re.findall(r"`(?:python|pytest)(?: -s)? ([\w/]+\.py)", text):
        assert (README.parent / script).exists(), script


PIP_LINES = re.compile(r"pip install [^`\n]*")


def installs(text):
    """Arguments of each ``pip install`` of a text, up to a comment or the end of its quotes."""
    return [
        re.split(r"\s+#|`|[\"']?,? *$|\)", line)[0].removeprefix("pip install ").strip()
        for line in PIP_LINES.findall(text)
    ]


def wrong_installs(text):
    """Those that name us as an index would: no index has us. A checkout is ".", with extras."""
    return [line for line in installs(text) if re.search(r"\bgraddrop\b", line)]


def test_every_pip_line_can_work():
    """Documents and messages install a checkout, by extras that there are, or others' packages."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = set(extras["optional-dependencies"])
    files = [README, ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]
    files += [*ROOT.glob("graddrop/**/*.py"), *ROOT.glob("kernels/**/*.py")]
    lines = {path: installs(path.read_text(encoding="utf-8")) for path in files}
    assert sum(map(len, lines.values())) >= 5
    for path, found in lines.items():
        assert wrong_installs(path.read_text(encoding="utf-8")) == [], path
        for line in found:
            for names in re.findall(r"\.\[([\w,-]*)\]", line):
                assert set(names.split(",")) <= known, (path, line)
    assert wrong_installs('pip install "graddrop[xglue]"')  # negative controls
    assert wrong_installs('pip install "graddrop[xglue] @ ."')
