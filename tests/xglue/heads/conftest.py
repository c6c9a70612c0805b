"""Tokenizers that the tests of heads share. Imports wait until one is asked for."""

from typing import Any

import pytest


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The tokenizer of the tiny model."""
    from helpers.small_tokenizers import TEXT

    from graddrop.xglue.heads.model import train_tokenizer

    return train_tokenizer(TEXT * 3, 300)


@pytest.fixture(scope="module")
def xlmr() -> Any:
    """The class of the published models."""
    from helpers import small_tokenizers

    return small_tokenizers.xlmr()


@pytest.fixture(scope="module")
def bert_like() -> Any:
    """Another family."""
    from helpers import small_tokenizers

    return small_tokenizers.bert_like()
