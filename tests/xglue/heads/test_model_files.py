"""Laws of model folders: whatever is in one, it is loaded, or refused in a line."""

import io
import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the extra xglue")

import torch
from safetensors.torch import load_file, save_file

from graddrop.xglue.heads.model import load_model, load_tokenizer, train_tokenizer
from graddrop.xglue.tasks import get_task

TASK = get_task("qam")
Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder and its tokenizer."""
    folder = tmp_path_factory.mktemp("model") / "whole"
    tokenizer = train_tokenizer(["the cat sees a moon"] * 3, 300)
    load_model("tiny", TASK, tokenizer, 0).base_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load(folder: Path) -> Any:
    """What a run loads."""
    return load_model(str(folder), TASK, load_tokenizer(str(folder), ()), 0)


def cut(size: int, name: str = "model.safetensors") -> Change:
    """A file that ends early."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def config(**values: Any) -> Change:
    """Other values in config.json."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def text(name: str, content: str) -> Change:
    """Another content of a file."""
    return lambda folder: (folder / name).write_text(content)


def pickled(content: Callable[[dict[str, torch.Tensor]], bytes]) -> Change:
    """Weights in the older format."""

    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        (folder / "pytorch_model.bin").write_bytes(content(load_file(path)))
        path.unlink()

    return change


def saved(value: Any) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


class Command:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return sys.exit, (7,)


def broken(folder: Path) -> None:
    """One weight of thousands is no number."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    next(iter(weights.values())).view(-1)[3] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})


FAULTS: dict[str, tuple[Change, str]] = {
    "no bytes": (cut(0), "SafetensorError: .*header too small"),
    "half a header": (cut(1000), "SafetensorError: .*invalid header length"),
    "lacks its end": (cut(-1000), "SafetensorError: .*not fully covered"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no file named model"),
    "nan": (broken, "embeddings.* holds numbers that are not finite"),
    "pickle cut": (
        pickled(lambda weights: saved(weights)[:5000]),
        "could not be loaded as",
    ),
    "pickle empty": (pickled(lambda weights: b""), "EOFError"),
    "pickle of code": (pickled(lambda weights: saved({"a": Command()})), "UnpicklingError"),
    "plain pickle of code": (
        pickled(lambda weights: pickle.dumps(Command(), protocol=2)),
        "UnpicklingError",
    ),
    "text as width": (config(hidden_size="64"), "'hidden_size' expected int, got str"),
    "layers and a half": (config(num_hidden_layers=2.5), "expected int, got float"),
    "no heads": (config(num_attention_heads=0), "ZeroDivisionError"),
    "negative width": (config(intermediate_size=-1), "negative dimension"),
    "unknown activation": (config(hidden_act="nope"), "KeyError: 'nope'"),
    "huge": (config(max_position_embeddings=10**30), "OverflowError"),
    "classes as list": (config(id2label=[1]), "AttributeError"),
    "another head": (
        config(vocab_size=17),
        "has a head for something else than task qam with its 2 labels",
    ),
    "unknown type": (config(model_type="nope"), "does not recognize this architecture"),
    "config a list": (text("config.json", "[]"), "mapping, not list|Unrecognized model"),
    "config empty": (text("config.json", ""), "not a valid JSON file"),
    "config deep": (text("config.json", "[" * 100_000), "RecursionError"),
    "tokenizer cut": (cut(300, "tokenizer.json"), "Unterminated string"),
    "tokenizer a list": (text("tokenizer.json", "[]"), "TypeError"),
    "tokenizer settings a list": (text("tokenizer_config.json", "[]"), "AttributeError"),
    "tokenizer class a number": (
        text("tokenizer_config.json", '{"tokenizer_class": 7}'),
        "Error: ",
    ),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_model_is_one_line(name: str, whole: Path, tmp_path: Path) -> None:
    """That names it, with what the library says, whatever it raises."""
    change, message = FAULTS[name]
    folder = tmp_path / "broken"
    shutil.copytree(whole, folder)
    change(folder)
    with pytest.raises(ValueError, match=message) as error:
        load(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_a_whole_model_is_loaded(whole: Path, tmp_path: Path) -> None:
    """Control: in either format, as the same weights."""
    folder = tmp_path / "pickled"
    shutil.copytree(whole, folder)
    pickled(saved)(folder)
    first, second = (load(place).base_model.state_dict() for place in (whole, folder))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_code_that_comes_with_a_model_is_never_run(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is anybody asked whether to run it: on standard input there may be anything."""
    folder, ran = tmp_path / "strange", tmp_path / "ran"
    shutil.copytree(whole, folder)
    (folder / "code.py").write_text(f"open({str(ran)!r}, 'w')\n")
    classes = {
        "AutoConfig": "code.C",
        "AutoModelForSequenceClassification": "code.M",
        "AutoTokenizer": ["code.T", "code.T"],
    }
    config(model_type="strange", auto_map=classes)(folder)
    text("tokenizer_config.json", json.dumps({"auto_map": classes, "tokenizer_class": "T"}))(folder)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    tokenizer = load_tokenizer(str(whole), ())
    for attempt in (
        lambda: load_tokenizer(str(folder), ()),
        lambda: load_model(str(folder), TASK, tokenizer, 0),
    ):
        with pytest.raises(ValueError, match="contains custom code|no tokenizer could be loaded"):
            attempt()
    assert not ran.exists() and sys.stdin.read() == "y\n" * 9
