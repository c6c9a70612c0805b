"""Laws of a sweep's plan: which runs it stands for, and what is refused before any begins."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from helpers.root import ROOT

from graddrop.xglue.config import FinetuneConfig
from graddrop.xglue.methods import METHODS
from graddrop.xglue.report.analysis_plan import read_analysis_plan
from graddrop.xglue.settings import make_config, read_settings
from graddrop.xglue.sweep.plan import SweepPlan, read_plan
from graddrop.xglue.sweep.progress import SweepProgress, seconds_left

DOCS = ROOT / "docs"


def plan(**changes: Any) -> SweepPlan:
    """A plan of two arms for one task; whatever is no list or table of its own is a setting."""
    values: dict[str, Any] = {"tasks": ["pos"], "arms": ["standard", "graddrop"]}
    tables = {
        name: changes.pop(name) for name in ("tasks", "arms", "task", "arm") if name in changes
    }
    return SweepPlan(**(values | tables), settings={"data": "D", **changes})


def names(some: SweepPlan) -> list[str]:
    """The folders of the runs, in the order in which they begin."""
    return [Path(config.output).name for config in some.configs(Path("out"))]


def test_a_plan_is_a_product_in_an_order_that_compares_early() -> None:
    """All methods of one task and seed come together; drop probabilities only where they count."""
    made = plan(
        tasks=["pos", "ner"],
        arms=["standard", "graddrop", "lr-matched"],
        seeds=[3, 1],
        drop_probs=[0.1, 0.5],
    )
    each = ["standard", "graddrop-p0.1", "graddrop-p0.5", "lr-matched-p0.1", "lr-matched-p0.5"]
    assert names(made) == [
        f"{task}-{method}-s{seed}" for seed in (3, 1) for task in ("pos", "ner") for method in each
    ]
    [config] = [
        c for c in made.configs(Path("out")) if c.output == "out/runs/ner-lr-matched-p0.1-s1"
    ]
    assert (config.task, config.method, config.drop_prob, config.seed) == (
        "ner",
        "lr-matched",
        0.1,
        1,
    )


def test_a_run_is_known_by_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they were spelt: not by whether a path exists, here or by now."""
    monkeypatch.chdir(tmp_path)
    values = {"task": "pos", "data": "DATA", "output": "o", "model": "m"}
    before = FinetuneConfig(**values).to_json()  # type: ignore[arg-type]
    for name in ("DATA", "m"):
        (tmp_path / name).mkdir()
    assert FinetuneConfig(**values).to_json() == before  # type: ignore[arg-type]
    assert (before["data"], before["model"]) == ("DATA", "m")
    other = FinetuneConfig(**values | {"data": "OTHER"}).to_json()  # type: ignore[arg-type]
    assert other != before


def test_without_drop_probs_each_method_has_its_preset() -> None:
    """The folder names it all the same, so that a list given later finds the run."""
    made = plan(arms=list(METHODS))
    for config in made.configs(Path("out")):
        method = METHODS[config.method]
        assert config.drop_prob == (method.drop_prob or None)
        spelt = ",".join(map(str, method.drop_probs))
        assert (f"-p{spelt}-" in config.output) == any(method.drop_probs)
    assert set(names(plan(arms=["graddrop"]))) == set(names(plan(drop_probs=[0.5]))) - {
        "pos-standard-s0"
    }


def test_close_drop_probs_have_folders_of_their_own() -> None:
    """A name holds the whole number; 0 and 0.0 are the same one."""
    assert len(set(names(plan(drop_probs=[0.5, 0.5000000001, 1e-5])))) == 4
    assert names(plan(drop_probs=[0])) == names(plan(drop_probs=[0.0]))


def test_the_closer_table_wins() -> None:
    """A method's settings replace a task's, which replace those for all."""
    made = plan(
        tasks=["pos", "ner"],
        lr=1.0,
        epochs=7,
        batch_size=8,
        task={"pos": {"lr": 2.0, "epochs": 8}},
        arm={"graddrop": {"lr": 3.0, "drop_probs": [0.25]}},
    )
    found = {Path(c.output).name: (c.lr, c.epochs, c.batch_size) for c in made.configs(Path("o"))}
    assert found == {
        "pos-standard-s0": (2.0, 8, 8),
        "pos-graddrop-p0.25-s0": (3.0, 8, 8),
        "ner-standard-s0": (1.0, 7, 8),
        "ner-graddrop-p0.25-s0": (3.0, 7, 8),
    }


def test_an_arm_is_a_set_of_settings_under_a_name() -> None:
    """Two arms may be of one method; each has its own values, and lists of them, in its folders."""
    made = plan(
        arms=["standard", "half-batch", "graddrop"],
        lrs=[1e-3, 2e-3],
        seeds=[0, 1],
        batch_size=16,
        arm={
            "half-batch": {"method": "standard", "batch_size": 8, "lr": 5e-4, "seeds": [1, 2]},
            "graddrop": {"drop_probs": [0.5, [0.5, 0.25]], "seed": 0},
        },
    )
    found = {
        Path(c.output).name: (c.method, c.lr, c.batch_size, c.drop_prob)
        for c in made.configs(Path("o"))
    }
    assert found == {
        "pos-standard-lr0.001-s0": ("standard", 1e-3, 16, None),
        "pos-standard-lr0.002-s0": ("standard", 2e-3, 16, None),
        "pos-graddrop-p0.5-lr0.001-s0": ("graddrop", 1e-3, 16, 0.5),
        "pos-graddrop-p0.5,0.25-lr0.001-s0": ("graddrop", 1e-3, 16, (0.5, 0.25)),
        "pos-graddrop-p0.5-lr0.002-s0": ("graddrop", 2e-3, 16, 0.5),
        "pos-graddrop-p0.5,0.25-lr0.002-s0": ("graddrop", 2e-3, 16, (0.5, 0.25)),
        "pos-standard-lr0.001-s1": ("standard", 1e-3, 16, None),
        "pos-standard-lr0.002-s1": ("standard", 2e-3, 16, None),
        "pos-half-batch-s1": ("standard", 5e-4, 8, None),
        "pos-half-batch-s2": ("standard", 5e-4, 8, None),
    }
    assert [name[-2:] for name in found] == sorted(name[-2:] for name in found)


TOML = """
data = "D"
output = "O"
tasks = ["paws-x"]
arms = ["lr-matched"]
max-steps = 5
lr = 5e-6
drop-probs = [0.5]
[task.paws-x]
log-steps = 2
[arm.lr-matched]
weight-decay = 0
"""
YAML = """
data: D
output: O
tasks: [paws-x]
arms:
  - lr-matched
max-steps: 5
lr: 5e-6
drop-probs: [.5]
task:
  paws-x: {log-steps: 2}
arm:
  lr-matched:
    weight-decay: 0
"""


@pytest.mark.parametrize("suffix", ["yaml", "yml"])
def test_toml_and_yaml_say_the_same(tmp_path: Path, suffix: str) -> None:
    """The suffix tells which; 5e-6 is a number in both."""
    (tmp_path / "plan.toml").write_text(TOML)
    (tmp_path / f"plan.{suffix}").write_text(YAML)
    first, second = (read_plan(tmp_path / f"plan.{kind}") for kind in ("toml", suffix))
    assert first == second
    made, output = first
    assert output == "O"
    [config] = made.configs(Path("out"))
    assert (config.max_steps, config.lr, config.log_steps) == (5, 5e-6, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": []}, r"tasks: expected a list with at least one value, got \[\]"),
        ({"tasks": "pos"}, "tasks: expected a list with at least one value, got 'pos'"),
        ({"tasks": ["pos", "poss"]}, "tasks: unknown 'poss'; expected some of ner, pos"),
        ({"arms": ["sgd"]}, "arms: unknown 'sgd'; expected some of standard"),
        ({"arms": ["standard", "standard"]}, "arms: 'standard' stands there twice"),
        ({"seeds": [1, 2, 1]}, "seeds: 1 stands there twice"),
        ({"seeds": [True]}, "wrong type .seed: expected int, got True"),
        ({"seeds": [-1]}, r"run pos-standard-s-1: seed must be in \[0, 2\*\*32\), got -1"),
        ({"drop_probs": []}, "drop_probs: expected a list with at least one value"),
        ({"drop_probs": [0.5, 0.5]}, "drop_probs: 0.5 stands there twice"),
        ({"drop_probs": [1.5]}, r"drop_prob must be in \[0, 1\], got 1.5"),
        ({"arms": ["standard"], "drop_probs": [0.5]}, "no arm here drops anything"),
        ({"lrr": 1}, "lrr: unknown setting; known: data, model"),
        ({"lr": -1}, "run pos-standard-s0: lr must be positive and finite, got -1"),
        ({"lr": "big"}, "the wrong type .lr: expected float | None, got 'big'"),
        ({"max-steps": True}, "the wrong type .max_steps: expected int | None, got True"),
        ({"languages": ["de", "xx"]}, "task pos has no language 'xx'; expected some of pl"),
        ({"task": "pos"}, r"task: expected tables \[task.NAME\], got 'pos'"),
        ({"task": {"poss": {}}}, r"\[task.poss\]: unknown task; expected one of ner"),
        ({"task": {"pos": 3}}, r"\[task.pos\]: expected a table of settings, got 3"),
        ({"task": {"pos": {"lrr": 1}}}, r"\[task.pos\] lrr: unknown setting"),
        ({"lrs": [1e-3, 1e-3]}, "lrs: 0.001 stands there twice"),
        ({"lrs": 1e-3}, "lrs: expected a list with at least one value, got 0.001"),
        ({"lrs": [1e-3], "lr": 1e-3}, "lrs: lr is there as well; leave out one"),
        ({"lrs": [1e-3, "x"]}, "wrong type .lr: expected float | None, got 'x'"),
        ({"task": {"pos": {"seeds": []}}}, r"\[task.pos\] seeds: expected a list"),
        ({"method": "graddrop"}, r"method: list the arms, or name it in a table \[arm.NAME\]"),
        ({"arms": ["half"]}, "arms: unknown 'half'; expected some of standard"),
        ({"arm": {"half": {"lr": 1}}}, r"\[arm.half\]: unknown method 'half'; expected method"),
        ({"arm": {"half": {"method": 3}}}, r"\[arm.half\]: unknown method 3"),
        ({"arm": {"a/b": {"method": "standard"}}}, "expected a name that a folder can have"),
        (
            {"arms": ["standard", "too"], "arm": {"too": {"method": "standard"}}},
            "pos-standard-s0 and pos-too-s0 are the same run; leave out one of the arms",
        ),
        ({"arm": {"graddrop": {"drop-probs": []}}}, r"\[arm.graddrop\] drop_probs: expected"),
        ({"arm": {"standard": {"drop-probs": [1.0]}}}, "drop_probs: no arm here drops anything"),
        ({"arm": {"graddrop": {"output": "x"}}}, "runs get folders of their own"),
        ({"output": 3}, "output: expected a folder, got 3"),
        ({"data": None}, "data: expected str, got None"),
        (
            {"accumulation": 3},
            "run pos-standard-s0: accumulation must divide batch_size, got 3 for",
        ),
        ({"arm": {"graddrop": {"site": "x"}}}, "run pos-graddrop-p0.5-s0: Invalid site: 'x'"),
        ({"max_steps": 1, "max-steps": 2}, "max_steps is set twice"),
    ],
)
def test_bad_plans_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """The message names the file and the setting."""
    values = {"data": "D", "tasks": ["pos"], "arms": ["standard", "graddrop"]} | changes
    path = tmp_path / "plan.yaml"
    path.write_text(json.dumps(values))  # which is YAML, too
    with pytest.raises(ValueError, match=message) as error:
        read_plan(path)
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.yaml", "lr: [1", "expected YAML"),
        ("p.yaml", "lr: 1\nlr: 2", "lr is set twice"),
        ("p.yaml", "- 1", r"expected a table of settings, got \[1\]"),
        ("p.yaml", "1: 2", "expected a table of settings, got {1: 2}"),
        ("p.yaml", "x: !!python/object/apply:os.getcwd []", "expected YAML"),
        ("p.toml", "lr: 1", "expected TOML"),
        ("p.toml", "lr = 1\nlr = 2", "expected TOML"),
        ("p.toml", "lr = " + "[" * 100_000, "expected TOML .nested too deep"),
        ("p.yaml", "lr: " + "[" * 100_000, "expected YAML .nested too deep"),
        ("p.toml", "lr = " + "1" * 5000, "expected TOML .*digits"),
        ("p.yaml", "lr: " + "1" * 5000, "expected YAML .*digits"),
        ("p.yaml", "lr: 2001-13-45", "expected YAML .month must be in"),
        ("p.yaml", "lr: !!int x", "expected YAML .invalid literal"),
        ("p.yaml", "lr: !!bool x", "expected YAML"),
        ("p.yaml", "lr: !!timestamp x", "expected YAML"),
        ("p.yaml", "!!map x", "expected YAML"),
        ("p.yaml", "? [a]\n: b", "expected YAML"),
        ("p.yaml", "a: \x07", "expected YAML .*special characters are not allowed"),
        ("p.toml", "a = '\x07'", "expected TOML"),
        ("p.toml", 'a = "\\ud83d"', "expected TOML"),
    ],
)
def test_bad_files_of_settings_are_refused(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    """As one kind of error, whatever the language."""
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_settings(tmp_path / name)


def test_what_a_run_died_of_does_not_command_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its error may quote the data."""
    with SweepProgress({"a": "pos"}, 1) as progress:
        progress.failed("a", "found \x1b[2J\u202e\u2028")
    assert r"failed: a: found \x1b[2J\u202e\u2028" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["p.toml", "p.yaml", "p.yml"])
def test_a_byte_order_mark_before_settings_is_passed_over(tmp_path: Path, name: str) -> None:
    """Some editors write one before UTF-8."""
    (tmp_path / name).write_text('\ufeffa = "b"' if name == "p.toml" else "\ufeffa: b")
    assert read_settings(tmp_path / name) == {"a": "b"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: 9" + "9" * 400, "wrong type .lr: expected float . None, got 9+"),
        ("max_steps: 9223372036854775808", "wrong type .max_steps: .*got 9223372036854775808"),
        ("max_steps: -9223372036854775809", "wrong type .max_steps"),
        ('model: "a\\ud83d"', r"wrong type .model: expected str, got 'a\\ud83d'"),
        ('data: "a\\0"', r"wrong type .data: expected str, got 'a\\x00'"),
        ('languages: ["d\\0"]', r"wrong type .languages"),
        ("lr: &a [&b [*a, *a, *a], *b, *b]", r"wrong type .lr: .*got \[\["),
        ('"\\e[2J": 1', r"unknown setting '\\x1b\[2J'"),
        ("lr: .nan", "lr must be positive and finite, got nan"),
    ],
)
def test_no_setting_is_beyond_what_the_system_takes(
    tmp_path: Path, text: str, message: str
) -> None:
    """Numbers of 64 bits, texts that can name a file; messages stay short whatever came."""
    path = tmp_path / "p.yaml"
    path.write_text(text)
    values = {"task": "pos", "data": "D", "output": "O"} | read_settings(path)
    with pytest.raises(ValueError, match=message) as error:
        make_config(values, str(path))
    assert len(str(error.value)) < 1500
    make_config({"task": "pos", "data": "D", "output": "O", "max_steps": 2**63 - 1}, "")  # control


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    """Its text is not guessed at."""
    path = tmp_path / "plan.toml"
    path.write_bytes('output = "Läufe"'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"plan\.toml:1: expected UTF-8"):
        read_settings(path)


def test_documented_plans_are_plans(tmp_path: Path) -> None:
    """What the guide shows first is the file beside it, and stands for as many runs as it says."""
    guide = (DOCS / "xglue.md").read_text(encoding="utf-8")
    shown = re.findall(r"```toml\n(.*?)```", guide, re.DOTALL)
    assert (DOCS / "sweep.toml").read_text(encoding="utf-8") == shown[0]
    for text in shown:
        (tmp_path / "plan.toml").write_text(text)
        read = read_analysis_plan if "[[primary]]" in text else read_plan
        read(tmp_path / "plan.toml")
    made, output = read_plan(DOCS / "sweep.toml")
    assert output == "runs/sweep"
    assert f"{len(made.configs(Path(output)))} runs" in guide


def test_time_left_goes_by_the_mean_of_the_same_task() -> None:
    """Two places halve it, unless there is one run left; other tasks stand in for a new one."""
    seconds = {"pos": [10.0, 20.0], "ner": [100.0]}
    assert seconds_left(seconds, ["pos", "ner"], 1) == 115.0
    assert seconds_left(seconds, ["pos", "ner"], 2) == 57.5
    assert seconds_left(seconds, ["pos"], 2) == 15.0
    assert seconds_left(seconds, ["xnli"], 1) == 130 / 3
    assert seconds_left({}, ["pos"], 1) is None
