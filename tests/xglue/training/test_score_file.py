"""Laws of the file of scores: a line says what ran and how it came out, and finds its run again."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the extra xglue")

from helpers.report_runs import make_result

from graddrop.xglue.config import BYSTANDERS, FinetuneConfig
from graddrop.xglue.report.collect import collect
from graddrop.xglue.training.run_folder import RunFolderError
from graddrop.xglue.training.score_file import ScoreFile, result_of, row_of

CONFIG = FinetuneConfig(
    "qadsm", "DATA", "o", method="graddrop", drop_prob=(0.5, 0.25), lr=1e-4, seed=3, model="m"
)


def finished(config: FinetuneConfig) -> dict[str, Any]:
    """The result of a run of these settings."""
    result = make_result("qadsm", "standard", 0, {"en": 0.75, "de": 0.5, "fr": 0.25})
    resolved = config.resolved().to_json()
    history = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}, {"step": 2, "eval_en": 0.1}]
    return {**result, "config": resolved, "history": history, "steps": 2, "commit": "abc"}


def test_a_line_holds_settings_scores_and_origin(tmp_path: Path) -> None:
    """In its own words, on one line, whatever else the result has."""
    path = tmp_path / "deep/runs.jsonl"
    ScoreFile(path).append(finished(CONFIG))
    [line] = path.read_text(encoding="utf-8").splitlines()
    row = json.loads(line)
    assert {name: row[name] for name in ("task", "method", "drop_prob", "lr", "seed")} == {
        "task": "qadsm",
        "method": "graddrop",
        "drop_prob": [0.5, 0.25],
        "lr": 1e-4,
        "seed": 3,
    }
    assert row["knobs"]["exempt"] == [] and row["knobs"]["period"] is None
    assert row["settings"]["batch_size"] == 32 and row["settings"]["model"] == "m"
    assert row["scores"]["test"]["de"] == {"accuracy": 0.5}
    assert (row["steps"], row["train_loss"], row["commit"]) == (2, 1.5, "abc")
    assert "history" not in row


def test_a_run_is_found_by_its_settings_alone(tmp_path: Path) -> None:
    """Wherever data and model lie; not if one setting differs that can change a score."""
    path = tmp_path / "runs.jsonl"
    there = {"data": str(tmp_path / "a/DATA"), "model": str(tmp_path / "a/M")}
    ScoreFile(path).append(finished(dataclasses.replace(CONFIG, **there)))
    kept = ScoreFile(path)
    for place in ("", "../b/", "/x/y/"):
        moved = {"data": f"{place}DATA", "model": f"{place}M"}
        assert kept.find(dataclasses.replace(CONFIG, **moved, output="other")) is not None
    assert kept.find(dataclasses.replace(CONFIG, **there | {"model": "of/M"})) is None  # the Hub's
    assert str(tmp_path) not in path.read_text()
    others: dict[str, Any] = {field.name: None for field in dataclasses.fields(CONFIG)}
    others |= {"task": "qam", "data": "D", "model": "n", "method": "layer-graddrop", "seed": 4}
    others |= {"drop_prob": 0.5, "drop_schedule": "linear", "languages": ("de",), "epochs": 3}
    others |= {"max_steps": 3, "batch_size": 2, "accumulation": 2, "lr": 2e-4, "period": 3}
    others |= {"weight_decay": 0.1, "warmup_steps": 3, "max_grad_norm": 2.0, "max_length": 3}
    others |= {"precision": "bf16", "processes": 2, "activation_checkpointing": True}
    others |= {"exempt": ("head",), "granularity": "row", "site": "update", "rescale": True}
    others |= {"unfreeze_over": 0.5, "select": "last", "patience": 3, "eval_steps": 3}
    others |= {"limit_train": 3, "limit_eval": 3, "log_steps": 3, "save_steps": 3}
    others |= {"eval_batch_size": 3, "eval_all": True, "keep_checkpoints": True}
    others |= {"write_predictions": True, "report_to": ("tensorboard",)}
    for name, value in others.items():
        if value is not None:
            found = kept.find(dataclasses.replace(CONFIG, **there | {name: value}))
            assert (found is not None) == (name in BYSTANDERS), name
    sift = dataclasses.replace(CONFIG, method="sift", drop_prob=0.9)
    kept.append(finished(sift))
    assert kept.find(dataclasses.replace(sift, mask_batches=1)) is not None  # as published
    assert kept.find(dataclasses.replace(sift, mask_batches=2)) is None


def test_lines_are_read_as_folders_are(tmp_path: Path) -> None:
    """A report of a file has the scores, seeds and arms of a report of the runs themselves."""
    path = tmp_path / "runs.jsonl"
    kept = ScoreFile(path)
    for method, seed in (("standard", 0), ("graddrop", 0), ("graddrop", 1)):
        config = FinetuneConfig("qadsm", "D", "o", method=method, seed=seed)
        kept.append(finished(config))
    found = collect(path)
    assert [(run.name, run.arm.label, run.seed) for run in found.runs] == [
        ("runs.jsonl:1", "standard", 0),
        ("runs.jsonl:2", "graddrop drop=0.5", 0),
        ("runs.jsonl:3", "graddrop drop=0.5", 1),
    ]
    assert {run.score("test") for run in found.runs} == {0.5}
    assert row_of(result_of(kept.rows[1]) | {"history": []}) == kept.rows[1] | {"train_loss": None}


def test_a_setting_that_a_line_does_not_know_had_its_default(tmp_path: Path) -> None:
    """A file outlives the version that wrote it."""
    path = tmp_path / "runs.jsonl"
    row = row_of(finished(CONFIG))
    del row["settings"]["precision"], row["knobs"]["rescale"]
    path.write_text(json.dumps(row) + "\n")
    assert ScoreFile(path).find(CONFIG) is not None
    assert ScoreFile(path).find(dataclasses.replace(CONFIG, precision="bf16")) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1, 2\n", "runs.jsonl:1: expected JSON"),
        (b"[1]\n", "runs.jsonl:1: expected a finished run, found no 'task'"),
        (b"{}\n", "runs.jsonl:1: expected a finished run, found no 'task'"),
        (b"\xff\n", "runs.jsonl:1: expected JSON"),
        (b"[" * 100_000 + b"\n", "runs.jsonl:1: expected JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}\n", "runs.jsonl:1: expected JSON"),
    ],
)
def test_what_is_no_line_of_a_run_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    """With file and line; a torn last line as well, before anything is put after it."""
    path = tmp_path / "runs.jsonl"
    path.write_bytes(content)
    with pytest.raises(RunFolderError, match=message):
        ScoreFile(path)
    path.write_text(json.dumps(row_of(finished(CONFIG))))
    with pytest.raises(RunFolderError, match="runs.jsonl:1: expected a line end after the last"):
        ScoreFile(path)
    path.write_text(json.dumps(row_of(finished(CONFIG)) | {"scores": 3}) + "\n")
    with pytest.raises(RunFolderError, match="runs.jsonl:1: scores: expected a table, got 3"):
        ScoreFile(path)
    row = row_of(finished(CONFIG))
    for part, value in {"lr": "x", "metric": [], "settings": {}, "task": {}, "seed": None}.items():
        path.write_text(json.dumps(row) + "\n" + json.dumps(row | {part: value}) + "\n")
        with pytest.raises(RunFolderError, match="runs.jsonl:2: .*(expected|unknown)"):
            ScoreFile(path)
