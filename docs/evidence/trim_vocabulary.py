"""Cut the vocabulary of a model folder with a Unigram tokenizer down to what a folder's texts need.

    python docs/evidence/trim_vocabulary.py MODEL DATA OUT_DIR

Texts in DATA (tables, lines, JSON) are cut into the same sub-words as before: the best cut of a
word stays the best when other pieces go. Single characters stay: anything can be written down.
"""

import json
import sys
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
WORDS = "embeddings.word_embeddings.weight"


def occurring(tokenizer: Tokenizer, folder: Path) -> list[int]:
    """Return the numbers of all sub-words of a folder's texts and of all single characters."""
    vocabulary = tokenizer.get_vocab()
    kept = {number for piece, number in vocabulary.items() if len(piece) == 1 or piece in SPECIAL}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        lines = path.read_text(encoding="utf-8").split("\n")
        if path.suffix == ".json":
            tables: list[dict[str, Any]] = []
            json.loads("\n".join(lines), object_hook=tables.append)
            lines = [v for table in tables for v in table.values() if isinstance(v, str)]
        for encoded in tokenizer.encode_batch_fast(lines, add_special_tokens=False):
            kept.update(encoded.ids)
    return sorted(kept)


def trim(model: Path, data: Path, output: Path) -> int:
    """Write a model folder with the sub-words that a folder's texts need.

    Args:
        model: folder with `model.safetensors`, `tokenizer.json` (Unigram) and `config.json`.
        data: folder of UTF-8 texts, at any depth.
        output: folder to make.

    Returns:
        The number of sub-words that are left.
    """
    tokenizer = AutoTokenizer.from_pretrained(model)
    kept = occurring(tokenizer.backend_tokenizer, data)
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["model"]["vocab"] = [content["model"]["vocab"][number] for number in kept]
    for token in content["added_tokens"]:
        token["id"] = kept.index(token["id"])
    tensors = load_file(model / "model.safetensors")
    tensors[WORDS] = tensors[WORDS][kept]
    tokenizer.save_pretrained(output)
    Tokenizer.from_str(json.dumps(content)).save(str(output / "tokenizer.json"))
    save_file(tensors, output / "model.safetensors", {"format": "pt"})
    config = AutoConfig.from_pretrained(model)
    config.vocab_size = len(kept)
    config.save_pretrained(output)
    return len(kept)


if __name__ == "__main__":
    print(f"{trim(*map(Path, sys.argv[1:])):,} sub-words")
