"""Laws of gains by language, and of how they follow the size of its pretraining text."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("scipy", reason="needs the extra xglue")

from helpers.report_runs import make_result, put, qadsm, sweep

from graddrop.xglue.report import write_report
from graddrop.xglue.report.collect import Arm, Experiment, collect
from graddrop.xglue.report.comparison import ALL_TASKS
from graddrop.xglue.report.gains import Gains, gains
from graddrop.xglue.report.rates import choose_rates
from graddrop.xglue.report.textsizes import CC100_GIB, text_sizes
from graddrop.xglue.tasks import TASKS

STANDARD, MATCHED = Arm("standard"), Arm("lr-matched", 0.5)


def gained(experiment: Experiment, sizes: Any) -> list[Gains]:
    """All gains."""
    return gains(experiment, choose_rates(experiment), sizes)


def test_gains_are_means_of_pairs_then_of_tasks(tmp_path: Path) -> None:
    """German is in both tasks, Spanish in one; English was trained on."""
    put(tmp_path, *(qadsm("standard", seed, 0.5) for seed in (0, 1)))
    put(tmp_path, qadsm("graddrop", 0, 0.52), qadsm("graddrop", 1, 0.56), qadsm("graddrop", 2, 1))
    paws = {"en": 0.5, "de": 0.5, "es": 0.5, "fr": 0.5}
    put(tmp_path, make_result("paws-x", "standard", 0, paws))
    put(tmp_path, make_result("paws-x", "graddrop", 0, paws | {"de": 0.6, "es": 0.3}))
    together, *single = gained(collect(tmp_path), CC100_GIB)
    assert together.by_language == pytest.approx({"de": 0.07, "es": -0.2, "fr": 0.02})
    assert together.tasks == {"de": 2, "es": 1, "fr": 2}
    assert together.seeds == (1, 2)
    assert together.correlation is None  # three languages
    assert [(entry.task, set(entry.by_language)) for entry in single] == [
        ("paws-x", {"de", "es", "fr"}),
        ("qadsm", {"de", "fr"}),
    ]


def test_gains_are_correlated_with_sizes(tmp_path: Path) -> None:
    """A gain that falls with the pretraining text gives -1; sizes turned around give 1."""

    def score(task: str, method: str, language: str, seed: int) -> float:
        gain = 0.1 - 0.0001 * CC100_GIB[language]
        return 0.5 + (gain if method == "graddrop" else 0.0)

    sweep(tmp_path, ["mlqa"], ["standard", "graddrop", "lr-matched"], [0, 1], score)
    experiment = collect(tmp_path)
    found = gained(experiment, CC100_GIB)
    assert [entry.control for entry in found] == [STANDARD, MATCHED]
    for entry in found:
        assert entry.correlation is not None
        assert entry.correlation.rho == pytest.approx(-1.0)
        assert entry.correlation.n == 6
        assert entry.correlation.p == pytest.approx(2 / 720)  # of 6! orders
        assert entry.p_holm == pytest.approx(4 / 720)
    turned = gained(experiment, {code: 1 / size for code, size in CC100_GIB.items()})
    assert turned[0].correlation is not None
    assert turned[0].correlation.rho == pytest.approx(1.0)


def test_means_over_tasks_are_a_family_of_their_own(tmp_path: Path) -> None:
    """One correlation of means is not corrected; those of single tasks count each other."""

    def score(task: str, method: str, language: str, seed: int) -> float:
        gain = 0.1 - 0.0001 * CC100_GIB[language]
        return 0.5 + (gain if method == "graddrop" else 0.0)

    sweep(tmp_path, ["mlqa", "wpr", "ner"], ["standard", "graddrop"], [0], score)
    found = gained(collect(tmp_path), CC100_GIB)
    families = [
        [e for e in found if (e.task is ALL_TASKS) == together] for together in (True, False)
    ]
    sizes = []
    for family in families:
        made = [(e.correlation.p, e.p_holm) for e in family if e.correlation]
        smallest, corrected = min(made)
        assert corrected == pytest.approx(len(made) * smallest)
        sizes.append(len(made))
    assert sizes == [1, 2]  # ner has three zero-shot languages, too few


def test_languages_stand_in_the_benchmarks_order(tmp_path: Path) -> None:
    """Which is neither that of the alphabet nor that of the files; gains go by amount of text."""
    sweep(tmp_path, ["mlqa"], ["standard", "graddrop"], [0], lambda task, method, code, seed: 0.5)
    order = list(TASKS["mlqa"].languages)
    assert order != sorted(order)
    assert collect(tmp_path).languages("mlqa", "test") == order
    write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    table = text[text.index("**Gain over standard on test in points") :].split("\n\n")[1]
    codes = [row.strip("| ").split()[0] for row in table.splitlines()[2:]]
    assert codes == sorted(codes, key=lambda code: -CC100_GIB[code])
    assert set(codes) == set(order) - {"en"}


def test_sizes_come_from_where_the_model_does(tmp_path: Path) -> None:
    """A file goes before the model's record, which is also found from above the report."""
    report = tmp_path / "somewhere/demo"
    model = tmp_path / "somewhere/demo/model"
    model.mkdir(parents=True)
    (model / "pretrain.json").write_text('{"bytes": {"en": 9, "de": 4}}')
    for name in (str(model), "demo/model"):
        found = text_sizes(name, report)
        assert found is not None
        assert (found.by_language, found.unit) == ({"en": 9.0, "de": 4.0}, "bytes")
    file = tmp_path / "sizes.json"
    file.write_text('{"de": 7.5}')
    chosen = text_sizes(str(model), report, file)
    assert chosen is not None
    assert chosen.by_language == {"de": 7.5}
    for name in ("xlm-roberta-base", "FacebookAI/xlm-roberta-large"):
        known = text_sizes(name, report)
        assert known is not None
        assert known.by_language == CC100_GIB
    assert text_sizes("bert-base-multilingual-cased", report) is None
    assert text_sizes("someone/xlm-roberta-base-tuned", report) is None


@pytest.mark.parametrize("content", ["[]", "{}", '{"de": 0}', '{"de": "9"}', '{"de": true}', "{"])
def test_bad_sizes_are_refused(tmp_path: Path, content: str) -> None:
    """The message names the file."""
    file = tmp_path / "sizes.json"
    file.write_text(content)
    with pytest.raises(ValueError, match="sizes.json(:1)?: expected"):
        text_sizes("xlm-roberta-base", tmp_path, file)


def test_every_language_of_the_benchmark_has_a_size() -> None:
    """The table of CC-100 knows all of them."""
    assert {code for task in TASKS.values() for code in task.languages} == set(CC100_GIB)
