"""How much of a model's alignment across languages survives, as a retrieval of translations.

    python docs/evidence/alignment.py XNLI_FOLDER MODEL... --output FILE
    python docs/evidence/alignment.py --table FILE

For each English premise of XNLI's test the nearest sentence (cosine) is looked for among the same
premises in another language. A sentence is the mean of its sub-words' states, after the layer in
the middle and after the last one. MODEL is a model's folder, or that of a finished run, which is
then named by task, method and seed. One JSON line a model; the table has a row a method.
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

BATCH = 32


def premises(folder: Path, count: int) -> dict[str, list[str]]:
    """Return the first distinct premises of every language's test, in English's order."""
    columns = {
        path.stem: [line.split("\t")[0] for line in path.read_text("utf-8").split("\n") if line]
        for path in sorted(folder.glob("*.test"))
    }
    english = columns["en"]
    first = [place for place, text in enumerate(english) if english.index(text) == place]
    first = first[:count]
    return {code: [texts[place] for place in first] for code, texts in columns.items()}


@torch.inference_mode()
def states(model: Any, tokenizer: Any, texts: Sequence[str]) -> dict[str, Tensor]:
    """Return sentences as unit vectors, float32 [texts, width], after two layers."""
    layers = model.config.num_hidden_layers
    places = {"middle": layers // 2, "last": layers}
    found: dict[str, list[Tensor]] = {name: [] for name in places}
    for start in range(0, len(texts), BATCH):
        batch = tokenizer(
            list(texts[start : start + BATCH]),
            padding=True,
            truncation=True,
            max_length=128,
            return_tensors="pt",
        )
        hidden = model(**batch, output_hidden_states=True).hidden_states
        weight = batch["attention_mask"][..., None].float()
        for name, place in places.items():
            mean = (hidden[place] * weight).sum(dim=1) / weight.sum(dim=1)
            found[name].append(normalize(mean, dim=1))
    return {name: torch.cat(parts) for name, parts in found.items()}


def retrieved(ours: Tensor, theirs: Tensor) -> float:
    """Return the share of rows of `ours` whose nearest row of `theirs` is that of their number."""
    nearest = (ours @ theirs.T).argmax(dim=1)
    return (nearest == torch.arange(len(ours))).float().mean().item()


def alignment(folder: Path, texts: dict[str, list[str]]) -> dict[str, dict[str, float]]:
    """Return the share of English sentences whose translation is found, by layer and language."""
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    by_language = {code: states(model, tokenizer, lines) for code, lines in texts.items()}
    english = by_language.pop("en")
    return {
        layer: {code: retrieved(ours, found[layer]) for code, found in by_language.items()}
        for layer, ours in english.items()
    }


def rows(folders: Sequence[Path], texts: dict[str, list[str]]) -> Iterator[dict[str, Any]]:
    """Yield what was found of each model, with what it is."""
    for folder in folders:
        result = folder / "result.json"
        config = json.loads(result.read_text())["config"] if result.is_file() else {}
        names = ("task", "method", "drop_prob", "lr", "seed", "max_steps")
        what = {name: config[name] for name in names if name in config} or {"model": folder.name}
        yield {
            **what,
            "sentences": len(texts["en"]),
            "retrieved": alignment(folder / "model" if config else folder, texts),
        }


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Return means over languages and seeds in per cent, with the range over seeds."""
    found: dict[str, list[dict[str, dict[str, float]]]] = {}
    for line in lines:
        found.setdefault(line.get("method", line.get("model")), []).append(line["retrieved"])
    shown = [
        "| model | runs | layer | mean of languages | lowest language |",
        "|---|--:|---|--:|--:|",
    ]
    for name, models in found.items():
        for layer in models[0]:
            means = [100 * statistics.mean(model[layer].values()) for model in models]
            by_language = {
                code: 100 * statistics.mean(model[layer][code] for model in models)
                for code in models[0][layer]
            }
            worst = min(by_language, key=lambda code: by_language[code])
            spread = f" ({min(means):.1f} to {max(means):.1f})" if len(means) > 1 else ""
            shown.append(
                f"| {name} | {len(models)} | {layer} | {statistics.mean(means):.1f}{spread} | "
                f"{worst} {by_language[worst]:.1f} |"
            )
    return "\n".join(shown)


def main() -> None:
    """Write a line for each model, or the table of what was written."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("xnli", type=Path, nargs="?", help="folder with en.test and others")
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("--sentences", type=int, default=100)
    parser.add_argument("--output", type=Path, help="file that lines are added to")
    parser.add_argument("--table", type=Path, metavar="FILE", help="show what FILE holds")
    arguments = parser.parse_args()
    if arguments.table:
        print(table([json.loads(line) for line in arguments.table.read_text().splitlines()]))
        return
    if not (arguments.xnli and arguments.models and arguments.output):
        parser.error("expected a folder, models and --output, or --table alone")
    for row in rows(arguments.models, premises(arguments.xnli, arguments.sentences)):
        with arguments.output.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(row)}\n")


if __name__ == "__main__":
    main()
