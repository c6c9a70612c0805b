"""Laws of the scripts that build the study's model: nothing of it changes but what is said."""

import sys

import numpy as np
import pytest
from helpers.root import ROOT

pytest.importorskip("transformers")
sys.path.insert(0, str(ROOT / "docs" / "evidence"))

import make_model
import trim_vocabulary
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer, BertConfig, PreTrainedTokenizerFast

PIECES = ["<s>", "<pad>", "</s>", "<unk>", "\u2581", "a", "b", "c", "ab", "\u2581ab", "bc", "abc"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder with a dozen sub-words, the likelier the longer, and a mask token."""
    folder = tmp_path_factory.mktemp("model")
    scored = [(piece, float(len(piece)) - 9) for piece in PIECES]
    backend = make_model.make_tokenizer(scored, {"A": "a"})
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)
    words = np.arange(len(PIECES) * 3, dtype=np.float32).reshape(-1, 3)
    save_file({trim_vocabulary.WORDS: words}, folder / "model.safetensors")
    BertConfig(vocab_size=len(PIECES), hidden_size=3).save_pretrained(folder)
    return folder


def test_trimming_leaves_the_cuts_and_rows_of_what_occurs(folder, tmp_path):
    """Texts of the data are cut into the same sub-words, with the same embeddings."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "text.tsv").write_text("ab c\nAb\n")
    left = trim_vocabulary.trim(folder, tmp_path / "data", tmp_path / "small")
    before, after = (AutoTokenizer.from_pretrained(f) for f in (folder, tmp_path / "small"))
    rows, fewer = (
        load_file(f / "model.safetensors")[trim_vocabulary.WORDS]
        for f in (folder, tmp_path / "small")
    )
    for text in ("ab c", "Ab", "c a b"):
        assert before.tokenize(text) == after.tokenize(text)
        assert np.array_equal(rows[before(text).input_ids], fewer[after(text).input_ids])
    assert left == len(fewer) < len(rows)
    assert before.tokenize("abc") != after.tokenize("abc")  # negative control: it does not occur


def test_four_bits_are_unpacked():
    """Low halves of a block's bytes come first, then the high ones; 8 is zero."""
    block = np.zeros(1, make_model.BLOCK)
    block["scale"], block["bytes"][0, 0], block["bytes"][0, 1:] = 0.5, 0xF0, 0x88
    weights = make_model.unpack(block)
    assert weights.shape == (1, 32)
    assert (weights[0, 0], weights[0, 16]) == (-4.0, 3.5)
    assert not weights[0, 1:16].any() and not weights[0, 17:].any()
