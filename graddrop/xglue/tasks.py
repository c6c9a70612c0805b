"""The nine understanding tasks of XGLUE as one table: adding a task is adding a row.

Layout, labels and languages are those of the benchmark's archive (Liang et al., 2020,
arXiv 2004.01401). The recipes for base models are those published with its baseline, those for
large ones with the code of xTune (bozheng-hit/xTune) for XLM-R Large.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from graddrop.xglue.names import meant

TRAIN_LANGUAGE = "en"
"""XGLUE trains on English only; every other language is evaluated zero-shot."""

EVAL_SPLITS = ("dev", "test")


@dataclass(frozen=True)
class Recipe:
    """How a task is fine-tuned unless the user says otherwise.

    Args:
        lr: Peak learning rate, decayed linearly to zero without warm-up.
        epochs: Passes over the English training set.
        batch_size: Examples per optimizer step.
        max_length: Sub-words per model input, special tokens included.
    """

    lr: float
    epochs: float
    batch_size: int
    max_length: int


@dataclass(frozen=True)
class Task:
    """One row of the table.

    Args:
        name: Name on the command line.
        folder: Folder of the task in the official archive, also used for prediction files.
        layout: Shape of the files: `words` (one word per line), `rows` (TAB columns) or `squad`
            (SQuAD v1.1 JSON).
        files: Path inside `folder` for each split; `{language}` stands for the language.
        head: What is put on the encoder: `token`, `sequence` or `span`.
        languages: Languages of the official dev and test sets.
        metrics: Names in the scorer's table; the first one is the task's official score.
        recipe: Published hyperparameters for base models.
        large_recipe: Those for large models; where none are published, None: as for base models.
        labels: Label spellings in the order of their class numbers.
        columns: Names of the TAB columns in order (`rows` only). The label is called `label`.
        first: Columns joined by one space into the first segment (`rows` only).
        second: Columns joined by one space into the second segment (`rows` only).
        ranks: Whether predictions are scores to rank by, labels being grades (`rows` only).
        leaking: Languages whose dev set holds the sentences of test: no score on it may select.
        header: Splits whose files begin with a line of column names.
        aliases: Other spellings of labels found in official files.
        hub_config: Configuration of the parquet mirror.
        hub_columns: Spellings of our columns in the mirror, where they differ.
    """

    name: str
    folder: str
    layout: str
    files: Mapping[str, str]
    head: str
    languages: tuple[str, ...]
    metrics: tuple[str, ...]
    recipe: Recipe
    large_recipe: Recipe | None = None
    labels: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    second: tuple[str, ...] = ()
    ranks: bool = False
    leaking: frozenset[str] = frozenset()
    header: frozenset[str] = frozenset()
    aliases: Mapping[str, str] = field(default_factory=dict)
    hub_config: str = ""
    hub_columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def recipe_for(self, size: str) -> Recipe:
        """Return how the task is fine-tuned unless the user says otherwise.

        Args:
            size: Of the model, `base` or `large`.
        """
        return self.large_recipe or self.recipe if size == "large" else self.recipe

    @property
    def score(self) -> str:
        """Name of the task's official score."""
        return self.metrics[0]

    def check_languages(self, wanted: Iterable[str]) -> None:
        """Refuse languages that the task does not have.

        Raises:
            ValueError: If there is one.
        """
        for language in wanted:
            if language not in self.languages:
                raise ValueError(
                    f"task {self.name} has no language {language!r}; "
                    f"expected some of {', '.join(self.languages)}"
                )

    def path(self, split: str, language: str = TRAIN_LANGUAGE) -> str:
        """Return the path of a file relative to the root of the archive.

        Args:
            split: `train`, `dev` or `test`.
            language: Two-letter code; the training file exists in English only.
        """
        return f"{self.folder}/{self.files[split].format(language=language)}"


def _word_files() -> dict[str, str]:
    return {"train": "en.train", "dev": "{language}.dev", "test": "{language}.test"}


def _xglue_files(task: str) -> dict[str, str]:
    return {
        "train": f"xglue.{task}.en.train",
        "dev": f"xglue.{task}.{{language}}.dev",
        "test": f"xglue.{task}.{{language}}.test",
    }


def _languages(codes: str) -> tuple[str, ...]:
    return tuple(codes.split())


_PAIR_RECIPE = Recipe(lr=5e-6, epochs=10, batch_size=32, max_length=256)

_ROWS = (
    Task(
        name="ner",
        folder="NER",
        layout="words",
        files=_word_files(),
        head="token",
        languages=_languages("en de es nl"),
        metrics=("entity_f1", "token_accuracy"),
        recipe=Recipe(lr=5e-6, epochs=20, batch_size=32, max_length=256),
        # Published for another data set of the same entities.
        large_recipe=Recipe(lr=7e-6, epochs=10, batch_size=32, max_length=256),
        labels=("O", *(f"{b}-{kind}" for kind in ("PER", "ORG", "LOC", "MISC") for b in "BI")),
        hub_config="ner",
        hub_columns={"tags": ("ner",)},
    ),
    Task(
        name="pos",
        folder="POS",
        layout="words",
        files=_word_files(),
        head="token",
        languages=_languages("pl ar ru bg de el en es fr hi it nl pt th tr ur vi zh"),
        metrics=("chunk_precision", "token_accuracy"),
        recipe=Recipe(lr=2e-5, epochs=20, batch_size=32, max_length=128),
        large_recipe=Recipe(lr=5e-6, epochs=10, batch_size=32, max_length=128),
        labels=_languages(
            "ADJ ADP ADV AUX CCONJ DET INTJ NOUN NUM PART PRON PROPN PUNCT SCONJ SYM VERB X"
        ),
        leaking=frozenset({"th"}),
        hub_config="pos",
        hub_columns={"tags": ("pos",)},
    ),
    Task(
        name="nc",
        folder="NC",
        layout="rows",
        files=_xglue_files("nc"),
        head="sequence",
        languages=_languages("en de es fr ru"),
        metrics=("accuracy",),
        recipe=_PAIR_RECIPE,
        labels=_languages(
            "foodanddrink sports travel finance lifestyle news entertainment health video autos"
        ),
        columns=("title", "body", "label"),
        first=("title",),
        second=("body",),
        hub_config="nc",
        hub_columns={
            "title": ("news_title",),
            "body": ("news_body",),
            "label": ("news_category",),
        },
    ),
    Task(
        name="mlqa",
        folder="MLQA",
        layout="squad",
        files={
            "train": "squad1.1/train-v1.1.json",
            "dev": "MLQA_V1/dev/dev-context-{language}-question-{language}.json",
            "test": "MLQA_V1/test/test-context-{language}-question-{language}.json",
        },
        head="span",
        languages=_languages("en de ar es hi vi zh"),
        metrics=("answer_f1", "exact_match"),
        recipe=Recipe(lr=3e-5, epochs=2, batch_size=12, max_length=384),
        large_recipe=Recipe(lr=1.5e-5, epochs=4, batch_size=32, max_length=384),
        hub_config="mlqa",
    ),
    Task(
        name="xnli",
        folder="XNLI",
        layout="rows",
        files={
            "train": "multinli.train.en.tsv",
            "dev": "{language}.dev",
            "test": "{language}.test",
        },
        head="sequence",
        languages=_languages("ar bg de el en es fr hi ru sw th tr ur vi zh"),
        metrics=("accuracy",),
        recipe=_PAIR_RECIPE,
        labels=("entailment", "neutral", "contradiction"),
        columns=("premise", "hypothesis", "label"),
        first=("premise",),
        second=("hypothesis",),
        header=frozenset({"train"}),
        aliases={"contradictory": "contradiction"},
        hub_config="xnli",
    ),
    Task(
        name="paws-x",
        folder="PAWSX",
        layout="rows",
        files={
            "train": "en/train.tsv",
            "dev": "{language}/dev_2k.tsv",
            "test": "{language}/test_2k.tsv",
        },
        head="sequence",
        languages=_languages("en de es fr"),
        metrics=("accuracy",),
        recipe=_PAIR_RECIPE,
        large_recipe=Recipe(lr=1e-5, epochs=10, batch_size=32, max_length=256),
        labels=("0", "1"),
        columns=("id", "sentence1", "sentence2", "label"),
        first=("sentence1",),
        second=("sentence2",),
        header=frozenset({"train", "dev", "test"}),
        hub_config="paws-x",
    ),
    Task(
        name="qadsm",
        folder="QADSM",
        layout="rows",
        files=_xglue_files("qadsm"),
        head="sequence",
        languages=_languages("en de fr"),
        metrics=("accuracy",),
        recipe=_PAIR_RECIPE,
        labels=("Bad", "Good"),
        columns=("query", "title", "description", "label"),
        first=("query",),
        second=("title", "description"),
        hub_config="qadsm",
        hub_columns={
            "title": ("ad_title",),
            "description": ("ad_description",),
            "label": ("relevance_label",),
        },
    ),
    Task(
        name="wpr",
        folder="WPR",
        layout="rows",
        files=_xglue_files("wpr"),
        head="sequence",
        languages=_languages("en de es fr it pt zh"),
        metrics=("ndcg",),
        recipe=_PAIR_RECIPE,
        labels=("0", "1", "2", "3", "4"),
        columns=("query", "title", "snippet", "label"),
        first=("query",),
        second=("title", "snippet"),
        ranks=True,
        hub_config="wpr",
        # The mirror inherits the spellings of the reader it was made with.
        hub_columns={
            "title": ("web_page_title", "wed_page_title"),
            "snippet": ("web_page_snippet",),
            "label": ("relavance_label", "relevance_label"),
        },
    ),
    Task(
        name="qam",
        folder="QAM",
        layout="rows",
        files=_xglue_files("qam"),
        head="sequence",
        languages=_languages("en de fr"),
        metrics=("accuracy",),
        recipe=_PAIR_RECIPE,
        labels=("0", "1"),
        columns=("question", "passage", "label"),
        first=("question",),
        second=("passage",),
        hub_config="qam",
        hub_columns={"passage": ("answer", "annswer")},
    ),
)

TASKS: Mapping[str, Task] = {task.name: task for task in _ROWS}


def get_task(name: str) -> Task:
    """Return a row of the table.

    Args:
        name: Name of a task, as on the command line.

    Raises:
        ValueError: If there is no such task.
    """
    if name not in TASKS:
        raise ValueError(
            f"unknown task {name!r}; expected one of {', '.join(TASKS)}{meant(name, TASKS)}"
        )
    return TASKS[name]
