"""Laws of what a report compares: the same model, data, task, seed and settings, or nothing."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("scipy", reason="needs the extra xglue")

from helpers.report_runs import make_result, put, sweep

from graddrop.xglue.report import write_report
from graddrop.xglue.report.analysis_plan import AnalysisPlan, Primary
from graddrop.xglue.report.collect import Arm, Experiment, ReportError, collect
from graddrop.xglue.report.comparison import ALL_TASKS, Comparison, compare, scores_by_seed
from graddrop.xglue.report.document import Items
from graddrop.xglue.report.gains import Gains, gains
from graddrop.xglue.report.rates import at_chosen_rates, choose_rates
from graddrop.xglue.report.sections.provenance import origin_section
from graddrop.xglue.report.textsizes import CC100_GIB, text_sizes
from graddrop.xglue.tasks import TASKS

STANDARD, GRADDROP, MATCHED = Arm("standard"), Arm("graddrop", 0.5), Arm("lr-matched", 0.5)


def flat(value: float) -> dict[str, float]:
    """The same score in the languages of QADSM."""
    return dict.fromkeys(TASKS["qadsm"].languages, value)


def qadsm(method: str, seed: int, value: float, **settings: Any) -> dict[str, Any]:
    """A run of a task with three languages."""
    return make_result("qadsm", method, seed, flat(value), **settings)


def compared(experiment: Experiment, plan: AnalysisPlan | None = None) -> list[Comparison]:
    """All comparisons, each arm at its own learning rate."""
    rates = choose_rates(experiment)
    return compare(at_chosen_rates(experiment, rates), rates, plan or AnalysisPlan())


def gained(experiment: Experiment, sizes: Any) -> list[Gains]:
    """All gains."""
    return gains(experiment, choose_rates(experiment), sizes)


def test_runs_are_found_at_any_depth(tmp_path: Path) -> None:
    """What has not finished is named; a model's own configuration is no run."""
    put(tmp_path / "deep/er", qadsm("standard", 0, 0.5))
    put(tmp_path, qadsm("graddrop", 0, 0.6))
    for name, file, content in (
        ("failed", "failure.json", {"error": "OSError: no room", "attempts": 2}),
        ("begun", "config.json", {"task": "pos", "method": "standard", "seed": 0}),
        ("model", "config.json", {"model_type": "xlm-roberta"}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(json.dumps(content))
    found = collect(tmp_path)
    assert [run.name for run in found.runs] == [
        "deep/er/runs/qadsm-standard-0",
        "runs/qadsm-graddrop-0.5-0",
    ]
    assert found.failed == {"failed": "OSError: no room"}
    assert found.unfinished == ("begun",)


def test_a_setting_in_which_runs_differ_makes_arms(tmp_path: Path) -> None:
    """As the number of processes does, and a knob that was set by hand."""
    one, two = (qadsm("standard", n, 0.5, processes=n + 1) for n in (0, 1))
    found = collect(put(tmp_path / "processes", one, two))
    assert [arm.label for arm in found.arms] == ["standard processes=1", "standard processes=2"]
    by_preset, by_hand = (qadsm("graddrop", n, 0.5, rescale=(None, True)[n]) for n in (0, 1))
    found = collect(put(tmp_path / "rescale", by_preset, by_hand))
    labels = ["graddrop drop=0.5", "graddrop drop=0.5 rescale=true"]
    assert [arm.label for arm in found.arms] == labels


def test_runs_that_were_only_begun_are_counted(tmp_path: Path) -> None:
    """A folder of them is not said to hold none."""
    put(tmp_path, qadsm("standard", 0, 0.5))
    (tmp_path / "runs/qadsm-standard-0/result.json").unlink()
    with pytest.raises(ReportError, match="expected finished runs .*found 0 failed, 1 unfinished"):
        collect(tmp_path)
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(ReportError, match="expected finished runs .*found none"):
        collect(empty)


def test_a_finished_run_has_not_failed(tmp_path: Path) -> None:
    """A record of an earlier failure does not count against a result."""
    put(tmp_path, qadsm("standard", 0, 0.5))
    (tmp_path / "runs/qadsm-standard-0/failure.json").write_text('{"error": "once"}')
    assert collect(tmp_path).failed == {}


def _broken(change: Any) -> dict[str, Any]:
    result = qadsm("graddrop", 0, 0.5)
    change(result)
    return result


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([], "expected finished runs"),
        ([qadsm("standard", 0, 0.5, model="m"), qadsm("graddrop", 0, 0.5)], "share their model"),
        ([qadsm("standard", 0, 0.5, data="d"), qadsm("graddrop", 0, 0.5)], "share their data"),
        ([_broken(lambda r: r.pop("scores"))], "found no 'scores'"),
        ([_broken(lambda r: r["config"].update(method="magic"))], "unknown method 'magic'"),
        ([_broken(lambda r: r["config"].update(task="qg"))], "unknown task 'qg'"),
        (
            [qadsm("standard", 0, 0.5), _broken(lambda r: r["scores"]["test"].pop("fr"))],
            r"other languages \(test: fr\)",
        ),
    ],
)
def test_what_does_not_compare_is_refused(
    tmp_path: Path, results: list[dict[str, Any]], message: str
) -> None:
    """Each message says what was expected and names a folder."""
    put(tmp_path, *results)
    with pytest.raises(ReportError, match=message):
        collect(tmp_path)


ODD = (None, 3, "x", [], [1], {}, {"a": 1}, math.inf, -1, True, 10**400)
PARTS = {  # of a result, and what fits among these
    ("task",): (),
    ("config",): (),
    ("config", "task"): (),
    ("config", "method"): (),
    ("config", "seed"): (3, -1),
    ("config", "lr"): (3, -1),
    ("config", "drop_prob"): (None, [], [1]),
    ("config", "exempt"): ([],),
    ("config", "site"): (None, "x"),
    ("config", "model"): ("x",),
    ("config", "newer"): ODD,
    ("data",): ("x",),
    ("metric",): (),
    ("scores",): ({},),
    ("scores", "test"): ({},),
    ("scores", "test", "fr"): (),
    ("scores", "test", "fr", "accuracy"): (),
    ("steps",): (3, -1),
    ("parameters",): (3, -1),
    ("history",): ([],),
    ("history", 0): (),
    ("history", 0, "loss"): (3, math.inf, -1, 10**400),
    ("history", 0, "step"): (3, -1),
    ("seconds",): (),
    ("seconds", "train"): (3, -1),
    ("versions",): ({},),
    ("versions", "torch"): ("x",),
    ("commit",): (None, "x"),
}


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_every_part_of_a_result_is_of_its_type(tmp_path: Path, part: tuple[Any, ...]) -> None:
    """Whoever wrote it: the file is named, with the part and what was found, before it is used."""
    for value in ODD:
        result = qadsm("graddrop", 0, 0.5, history=[{"loss": 1.0, "step": 1}])
        inner: Any = result
        for name in part[:-1]:
            inner = inner[name]
        inner[part[-1]] = value
        folder = tmp_path / str(len(list(tmp_path.iterdir()))) / "run"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(result))
        if any(value is fit or (type(value) is type(fit) and value == fit) for fit in PARTS[part]):
            collect(folder.parent)
            continue
        with pytest.raises(ReportError, match=r"run/result\.json: .*(expected|unknown)"):
            collect(folder.parent)


def test_the_same_run_twice_is_refused(tmp_path: Path) -> None:
    """A copy would count a seed twice; masks of a method that has none make no other run."""
    put(tmp_path / "a", qadsm("standard", 0, 0.5))
    put(tmp_path / "b", qadsm("standard", 0, 0.5, site="freeze", log_steps=3))
    with pytest.raises(ReportError, match="a/runs/qadsm-standard-0 and b/runs/qadsm-standard-0"):
        collect(tmp_path)
    with pytest.raises(ReportError, match="expected a folder"):
        collect(tmp_path / "c")


def partial(tmp_path: Path) -> Experiment:
    """Standard with seeds 0 to 3, GradDrop with 1 to 4, one lr-matched of another rate."""
    put(tmp_path, *(qadsm("standard", seed, 0.5 + 0.01 * seed) for seed in range(4)))
    put(tmp_path, *(qadsm("graddrop", s, 0.5 + 0.01 * s + 0.02 * s) for s in range(1, 5)))
    put(tmp_path, qadsm("lr-matched", 1, 0.6, drop_prob=0.9))
    return collect(tmp_path)


def test_only_pairs_are_compared(tmp_path: Path) -> None:
    """Seeds 1, 2, 3 are in both: differences 0.02, 0.04, 0.06; no control of rate 0.5 is there."""
    found = compared(partial(tmp_path))
    assert [(c.arm.label, c.control.label, c.family) for c in found] == [
        ("graddrop drop=0.5", "standard", "secondary"),
        ("lr-matched drop=0.9", "standard", None),
    ]
    first, second = found
    assert first.difference.mean == pytest.approx(0.04)
    assert first.difference.n == 3
    assert first.difference.half_width == pytest.approx(4.302653 * 0.02 / 3**0.5)
    assert first.p == pytest.approx(0.0741799)
    assert first.p_holm == first.p  # of one test
    assert (second.difference.n, second.p, second.p_holm) == (1, None, None)


def test_the_control_has_the_same_rate(tmp_path: Path) -> None:
    """GradDrop is paired with lr-matched at its own drop probability; standard is not."""
    put(tmp_path, qadsm("standard", 0, 0.5))
    for rate, value in ((0.2, 0.6), (0.5, 0.7)):
        put(tmp_path, qadsm("graddrop", 0, value, drop_prob=rate))
        put(tmp_path, qadsm("lr-matched", 0, value - rate, drop_prob=rate))
    found = [c for c in compared(collect(tmp_path)) if c.control.method == "lr-matched"]
    assert {(c.arm.label, c.control.label) for c in found} == {
        ("graddrop drop=0.2", "lr-matched drop=0.2"),
        ("graddrop drop=0.5", "lr-matched drop=0.5"),
    }
    assert [c.difference.mean for c in found] == pytest.approx([0.2, 0.5])


def test_other_settings_make_another_arm(tmp_path: Path) -> None:
    """A batch size parts arms and their pairs; a knob of the method alone does neither."""
    for size, value in ((16, 0.5), (32, 0.6)):
        put(tmp_path / str(size), qadsm("standard", 0, value, batch_size=size))
        other = qadsm("graddrop", 0, value + size / 1000, batch_size=size, site="freeze")
        put(tmp_path / str(size), other)
    found = collect(tmp_path)
    assert [arm.label for arm in found.arms] == [
        "standard batch_size=16",
        "standard batch_size=32",
        "graddrop drop=0.5 batch_size=16",
        "graddrop drop=0.5 batch_size=32",
    ]
    assert [c.difference.mean for c in compared(found)] == pytest.approx([0.016, 0.032])


def tuned(folder: Path) -> Path:
    """Two methods with rates of their own: standard is best at 2e-5 on dev, graddrop at 4e-5.

    Tuning seeds have dev scores alone, the others test scores and English dev.
    """
    zero = {"en": 0.5, "de": 0.5, "fr": 0.5}
    best = {"standard": 2e-5, "graddrop": 4e-5, "lr-matched": 4e-5, "batch-matched": 4e-5}
    for method, top in best.items():
        for lr in (1e-5, 2e-5, 4e-5) if method in ("standard", "graddrop") else ():
            for seed in (100, 101):
                result = make_result("qadsm", method, seed, zero, lr=lr, evaluate=("dev",))
                score = {"accuracy": 0.6 + 0.1 * (lr == top) + 0.01 * (seed - 100)}
                result["scores"] = {"dev": dict.fromkeys(("en", "de", "fr"), score)}
                put(folder / f"{lr}", result)
        for seed in range(6):
            place = list(best).index(method)
            values = {"en": 0.9, "de": 0.5 + 0.01 * place + 0.001 * seed * place, "fr": 0.5}
            settings: dict[str, Any] = {"evaluate": ("test", "en-dev")}
            result = make_result("qadsm", method, seed, values, lr=top, **settings)
            result["scores"]["dev"] = {"en": {"accuracy": 0.99}}
            put(folder / "final", result)
    return folder


def test_english_dev_may_decide(tmp_path: Path) -> None:
    """Strictly zero-shot, or by all languages: the plan says which; final seeds decide nothing."""
    for lr, english, german in ((1e-5, 0.8, 0.5), (2e-5, 0.7, 0.7), (4e-5, 0.6, 0.6)):
        result = make_result("qadsm", "standard", 100, {"en": 0.5}, lr=lr, evaluate=("dev",))
        scores = {"en": {"accuracy": english}, "de": {"accuracy": german}}
        put(tmp_path / f"{lr}", {**result, "scores": {"dev": scores}})
    final = make_result("qadsm", "standard", 0, {"en": 0.9}, lr=4e-5, evaluate=("test", "en-dev"))
    final["scores"]["dev"] = {"en": {"accuracy": 0.99}}
    put(tmp_path / "final", final)
    everything = collect(tmp_path)
    assert choose_rates(everything)["qadsm", STANDARD].lr == 2e-5
    assert choose_rates(everything, "en-dev")["qadsm", STANDARD].lr == 1e-5


def test_which_languages_a_run_scores_is_no_part_of_its_arm(tmp_path: Path) -> None:
    """Runs that tune may score dev of English alone: their rate is taken for the final ones."""
    for lr, value in ((1e-5, 0.5), (2e-5, 0.6)):
        tuned = {"evaluate": ("dev",), "languages": ("en",), "lr": lr}
        put(tmp_path / f"{lr}", make_result("qadsm", "standard", 100, {"en": value}, **tuned))
    put(tmp_path / "final", qadsm("standard", 0, 0.7, evaluate=("test",), lr=2e-5))
    found = collect(tmp_path)
    assert list(found.arms) == [STANDARD]
    assert choose_rates(found, "en-dev")["qadsm", STANDARD].lr == 2e-5


def test_each_method_has_its_own_learning_rate(tmp_path: Path) -> None:
    """The best on dev; tuning seeds are in no pair; controls of masks have the masks' rate."""
    everything = collect(tuned(tmp_path))
    rates = choose_rates(everything)
    assert {arm.label: rate.lr for (_, arm), rate in rates.items()} == {
        "standard": 2e-5,
        "graddrop drop=0.5": 4e-5,
        "lr-matched drop=0.5": 4e-5,
        "batch-matched drop=0.5": 4e-5,
    }
    assert rates["qadsm", STANDARD].dev == pytest.approx({1e-5: 0.605, 2e-5: 0.705, 4e-5: 0.605})
    assert rates["qadsm", STANDARD].languages == ("en", "de", "fr")
    assert rates["qadsm", MATCHED].follows == GRADDROP
    found = compared(everything)
    assert [(c.arm.method, c.control.method, c.difference.n) for c in found] == [
        ("graddrop", "standard", 6),
        ("lr-matched", "standard", 6),
        ("batch-matched", "standard", 6),
        ("graddrop", "lr-matched", 6),
        ("graddrop", "batch-matched", 6),
    ]
    # Of de and fr, the zero-shot languages: half of what de gains.
    assert found[0].difference.mean == pytest.approx((0.01 + 0.0025) / 2)
    assert found[0].p == pytest.approx(2 / 64)  # all six of one sign
    assert [c.family for c in found] == ["secondary", None, None, "secondary", "secondary"]


def test_a_control_at_another_rate_than_the_masks_is_none(tmp_path: Path) -> None:
    """lr-matched is compared with the masks whose learning rate it has."""
    for seed in (0, 1):
        put(
            tmp_path, qadsm("graddrop", seed, 0.6, lr=1e-5), qadsm("lr-matched", seed, 0.5, lr=2e-5)
        )
    assert compared(collect(tmp_path)) == []
    for seed in (0, 1):
        put(tmp_path / "more", qadsm("lr-matched", seed, 0.4, lr=1e-5))
    [found] = compared(collect(tmp_path))
    assert found.difference.mean == pytest.approx(0.2)


def test_controls_have_the_knobs_of_their_masks(tmp_path: Path) -> None:
    """Masks of an epoch, of a step, and those that exempt the head have each their own control."""
    kinds: dict[str, dict[str, Any]]
    kinds = {"graddrop": {}, "graddrop-epoch": {"period": "epoch"}, "layer-graddrop": {}}
    kinds["layer-graddrop"] = {"granularity": "layer"}
    for place, (method, knobs) in enumerate(kinds.items()):
        put(tmp_path, qadsm(method, 0, 0.5 + 0.01 * place))
        put(tmp_path / method, qadsm("lr-matched", 0, 0.4, **knobs))
    put(tmp_path, qadsm("batch-matched", 0, 0.3))
    put(tmp_path / "head", qadsm("graddrop", 0, 0.9, exempt=("head",)))
    found = compared(collect(tmp_path))
    assert {(c.arm.label, c.control.label, round(c.difference.mean, 6)) for c in found} == {
        ("graddrop drop=0.5", "lr-matched drop=0.5", 0.1),
        ("graddrop-epoch drop=0.5", "lr-matched drop=0.5 period=epoch", 0.11),
        ("layer-graddrop drop=0.5", "lr-matched drop=0.5 granularity=layer", 0.12),
        ("graddrop drop=0.5", "batch-matched drop=0.5", 0.2),
        ('graddrop drop=0.5 exempt=["head"]', "batch-matched drop=0.5", 0.6),
    }


def test_a_confirmatory_family_is_corrected_by_itself(tmp_path: Path) -> None:
    """Two named tests count two; the others count each other; means and controls are not tested."""
    values = {"standard": 0.0, "graddrop": 0.02, "layer-graddrop": 0.01, "lr-matched": 0.005}
    for task in ("qadsm", "qam"):
        for method, gain in values.items():
            for seed in range(4):
                noise = 0.001 * ((seed * (3 + list(values).index(method))) % 4)
                put(tmp_path, make_result(task, method, seed, flat(0.5 + gain + noise)))
    named = tuple(Primary(task, "graddrop", "standard") for task in ("qadsm", "qam"))
    for plan, counts in ((AnalysisPlan(), (0, 6)), (AnalysisPlan(primary=named), (2, 4))):
        found = compared(collect(tmp_path), plan)
        for family, count in zip(("primary", "secondary"), counts, strict=True):
            members = [c for c in found if c.family == family]
            assert len(members) == count
            for place, c in enumerate(sorted(members, key=lambda c: c.p or 0)):
                assert c.p is not None and c.p_holm is not None
                if place == 0:
                    assert c.p_holm == pytest.approx(min(1, count * c.p))
        untested = [c for c in found if c.family is None]
        assert untested and all(c.p is None for c in untested)
        assert all(c.task is None or c.arm.method == "lr-matched" for c in untested)


def test_a_report_is_about_the_runs_that_are_asked_for(tmp_path: Path) -> None:
    """Others are passed over before anything is compared."""
    put(tmp_path / "a", qadsm("standard", 0, 0.5, max_steps=5))
    put(tmp_path / "b", qadsm("standard", 0, 0.6, max_steps=6))
    assert len(collect(tmp_path).arms) == 2
    found = collect(tmp_path, AnalysisPlan(where={"max_steps": 6}).covers)
    assert [(run.arm.label, run.score("test")) for run in found.runs] == [("standard", 0.6)]
    with pytest.raises(ReportError, match="expected finished runs"):
        collect(tmp_path, AnalysisPlan(where={"max_steps": 7}).covers)


def test_knobs_of_a_method_part_its_arms(tmp_path: Path) -> None:
    """Each is paired with the same control, whatever the control's own knobs say."""
    put(tmp_path, qadsm("standard", 0, 0.5, exempt=("head",)))
    for site, value in (("freeze", 0.6), ("update", 0.8)):
        put(tmp_path / site, qadsm("graddrop", 0, value, site=site, exempt=("head",)))
    found = compared(collect(tmp_path))
    assert [c.arm.label for c in found] == [
        "graddrop drop=0.5 site=freeze",
        "graddrop drop=0.5 site=update",
    ]
    assert {c.control for c in found} == {STANDARD}
    assert [c.difference.mean for c in found] == pytest.approx([0.1, 0.3])
    items = next(block for block in origin_section(collect(tmp_path)) if isinstance(block, Items))
    assert 'All runs of graddrop: exempt = ["head"].' in items.texts
    assert not any("site" in text for text in items.texts)


def test_the_mean_over_tasks_needs_them_all(tmp_path: Path) -> None:
    """It takes the seeds with a run in every task; an arm without one has none."""
    put(tmp_path, *(qadsm("standard", seed, 0.4) for seed in (0, 1)))
    put(
        tmp_path, *(make_result("qam", "standard", seed, flat(0.2 + 0.4 * seed)) for seed in (1, 2))
    )
    put(tmp_path, qadsm("graddrop", 1, 0.5))
    experiment = collect(tmp_path)
    assert scores_by_seed(experiment, ALL_TASKS, STANDARD) == pytest.approx({1: 0.5})
    assert scores_by_seed(experiment, ALL_TASKS, GRADDROP) == {}
    assert scores_by_seed(experiment, "qadsm", GRADDROP) == pytest.approx({1: 0.5})


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
