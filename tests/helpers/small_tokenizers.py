"""Texts in several scripts, and tokenizers of other families than that of the tiny model."""

import re
import unicodedata
from typing import Any

import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

TEXT = [
    "the quick brown fox jumps over the lazy dog",
    "eine Straße, naïve façade",
    "北京是中国的首都",
]
"""Sentences that the tokenizer of bytes is trained on."""

CONTEXTS = [
    ("The quick brown fox jumps over the lazy dog. " * 4 + "It is 12 km, naïvely!", "12 km"),
    ("北京是中国的首都，人口两千万。" * 3 + "今天 天气好 。", "天气好"),
    ("यह एक घर है। दिल्ली भारत की राजधानी है।", "दिल्ली"),
    ("تقع القاهرة على نهر النيل في مصر.", "نهر النيل"),
    ("𝔊othic 🦊 and e\u0301 combined", "🦊 and e\u0301"),
]
"""Paragraphs, each with an answer in it."""


def xlmr() -> Any:
    """The class of the published models, with a small vocabulary of every character at hand."""
    texts = [*TEXT, *(context for context, _ in CONTEXTS)]
    characters = sorted(set(unicodedata.normalize("NFKC", "".join(texts))) - {" "})
    words = sorted({"▁" + word for word in re.findall("[a-z]+", " ".join(texts))})
    vocabulary = [(name, 0.0) for name in ("<s>", "<pad>", "</s>", "<unk>", "▁")]
    vocabulary += [(word, -5.0) for word in words] + [(char, -9.0) for char in characters]
    made = transformers.XLMRobertaTokenizer(vocab=vocabulary, model_max_length=512)
    # In place of the published models' own table of characters.
    made.backend_tokenizer.normalizer = normalizers.NFKC()
    return made


def bert_like() -> Any:
    """Another family: one separator, segments told apart by token types, pieces of words."""
    pieces = ["[CLS]", "[SEP]", "[UNK]", "[PAD]", *"abcdefghijklmnopqrstuvwxyz"]
    pieces += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    inner = Tokenizer(
        models.WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]")
    )
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.BertProcessing(("[SEP]", 1), ("[CLS]", 0))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
