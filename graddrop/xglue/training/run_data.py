"""The examples and model inputs of one run."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from graddrop.xglue.config import FinetuneConfig
from graddrop.xglue.data.layouts import DataError
from graddrop.xglue.data.sources import Source
from graddrop.xglue.data.splits import evaluation_languages, load_split, silent
from graddrop.xglue.heads.encoding import encode, longest_first
from graddrop.xglue.scores.metrics import METRICS
from graddrop.xglue.tasks import EVAL_SPLITS, TRAIN_LANGUAGE, get_task

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


class EvaluationSet(NamedTuple):
    """One language of one split: the examples and the model inputs made of them."""

    examples: "Dataset"
    features: "Dataset"


class RunData:
    """The data of one run: every file that it will read is read at construction.

    So that what is wrong in one shows before the first step, not after the last.

    Args:
        config: The run, with its recipe filled in.
        source: Where its data come from.

    Raises:
        DataError: If the training set, or the English dev set that picks the checkpoint, is
            missing; if any file is empty, malformed, or cannot be scored.
    """

    def __init__(self, config: FinetuneConfig, source: Source) -> None:
        self.config = config
        self.task = get_task(config.task)
        self.source = source
        self.found: dict[str, list[str]] = {}
        self.missing: dict[str, list[str]] = {}
        """Languages scored at the end, and those of them without a file, by split."""
        for split in EVAL_SPLITS:
            there, absent = evaluation_languages(self.task, source, split, config.languages)
            whole, english = split in config.evaluate, f"en-{split}" in config.evaluate
            self.found[split], self.missing[split] = (
                [code for code in codes if whole or (english and code == TRAIN_LANGUAGE)]
                for codes in (there, absent)
            )
        # Strict zero-shot looks at English alone, averaging at every language that does not tell
        # of test.
        there, _ = evaluation_languages(self.task, source, "dev", config.languages)
        averages = config.select == "average-dev"
        judges = [
            code
            for code in there
            if code == TRAIN_LANGUAGE or (averages and code not in self.task.leaking)
        ]
        self.watched = there if config.eval_all else judges
        """Languages evaluated on dev during training."""
        if config.select != "last" and not judges:
            raise DataError(
                f"{source.where(self.task, 'dev', TRAIN_LANGUAGE)}: not among the languages "
                f"found; select={config.select} needs it, select=last does not"
            )
        self.train = load_split(self.task, source, "train", limit=config.limit_train)
        for split in EVAL_SPLITS:
            watched = self.watched if split == "dev" else []
            for language in dict.fromkeys(watched + self.found[split]):
                self._check_scorable(self._examples(split, language), split, language)

    def texts(self) -> Iterator[str]:
        """Yield every string of the training set, for training a tokenizer on."""
        for example in self.train:
            for value in example.values():
                if isinstance(value, str):
                    yield value
                elif isinstance(value, list):
                    yield " ".join(value)

    def train_features(self, tokenizer: "PreTrainedTokenizerBase") -> "Dataset":
        """Return the model inputs of the training set."""
        return self._encode(self.train, tokenizer)

    def evaluation_sets(
        self, split: str, tokenizer: "PreTrainedTokenizerBase", languages: list[str]
    ) -> Iterator[tuple[str, EvaluationSet]]:
        """Yield languages with their examples and model inputs, one at a time.

        Raises:
            DataError: If a split is empty or malformed.
        """
        for language in languages:
            examples = self._examples(split, language)
            with silent():
                features = longest_first(self._encode(examples, tokenizer))
            yield language, EvaluationSet(examples, features)

    def _examples(self, split: str, language: str) -> "Dataset":
        with silent():
            return load_split(self.task, self.source, split, language, self.config.limit_eval)

    def _check_scorable(self, examples: "Dataset", split: str, language: str) -> None:
        """Refuse rows of which no ranking can be scored."""
        if not self.task.ranks:
            return
        columns = examples.to_dict()
        try:
            METRICS[self.task.score](columns, columns["label"], language)
        except ValueError as error:
            limit = self.config.limit_eval
            rows = "" if limit is None else f"the first {len(examples)} rows of "
            raise DataError(
                f"{rows}{self.source.where(self.task, split, language)}: {error}"
                + ("" if limit is None else "; raise limit_eval")
            ) from error

    def _encode(self, examples: "Dataset", tokenizer: "PreTrainedTokenizerBase") -> "Dataset":
        assert self.config.max_length is not None
        return encode(self.task, examples, tokenizer, self.config.max_length)
