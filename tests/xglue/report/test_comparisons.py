"""Laws of what is compared: pairs of one seed, each arm at its own rate, with its own controls."""

import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("scipy", reason="needs the extra xglue")

from helpers.report_runs import flat, make_result, put, qadsm

from graddrop.xglue.report.analysis_plan import AnalysisPlan, Primary
from graddrop.xglue.report.collect import Arm, Experiment, ReportError, collect
from graddrop.xglue.report.comparison import ALL_TASKS, Comparison, compare, scores_by_seed
from graddrop.xglue.report.document import Items
from graddrop.xglue.report.rates import at_chosen_rates, choose_rates
from graddrop.xglue.report.sections.provenance import origin_section
from graddrop.xglue.tasks import TASKS

STANDARD, GRADDROP, MATCHED = Arm("standard"), Arm("graddrop", 0.5), Arm("lr-matched", 0.5)


def compared(experiment: Experiment, plan: AnalysisPlan | None = None) -> list[Comparison]:
    """All comparisons, each arm at its own learning rate."""
    rates = choose_rates(experiment)
    return compare(at_chosen_rates(experiment, rates), rates, plan or AnalysisPlan())


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


def test_a_dev_set_that_leaks_test_chooses_no_rate(tmp_path: Path) -> None:
    """Thai dev of POS is Thai test; where Thai alone was scored, nothing chooses."""
    for lr, german, thai in ((1e-5, 0.8, 0.5), (2e-5, 0.7, 0.9)):
        result = make_result("pos", "standard", 100, {"en": 0.5}, lr=lr, evaluate=("dev",))
        dev = {
            code: dict.fromkeys(TASKS["pos"].metrics, value)
            for code, value in (("de", german), ("th", thai))
        }
        put(tmp_path / f"both/{lr}", {**result, "scores": {"dev": dev}})
        put(tmp_path / f"thai/{lr}", {**result, "scores": {"dev": {"th": dev["th"]}}})
    rates = [choose_rates(collect(tmp_path / name))["pos", STANDARD] for name in ("both", "thai")]
    assert [(rate.lr, rate.languages) for rate in rates] == [(1e-5, ("de",)), (1e-5, ())]


def test_rates_that_rounding_has_parted_are_equal(tmp_path: Path) -> None:
    """Of equal ones the lowest is taken."""
    parted = {1e-5: (0.15, 0.15), 2e-5: (0.1, 0.2)}
    means = [math.fsum(values) / 2 for values in parted.values()]
    assert means[0] < means[1] == pytest.approx(means[0])
    for lr, values in parted.items():
        result = make_result("qadsm", "standard", 100, {"en": 0.5}, lr=lr, evaluate=("dev",))
        scores = {c: {"accuracy": v} for c, v in zip(("en", "de"), values, strict=True)}
        put(tmp_path / f"{lr}", {**result, "scores": {"dev": scores}})
    assert choose_rates(collect(tmp_path))["qadsm", STANDARD].lr == 1e-5


def test_a_control_has_the_settings_of_its_masks(tmp_path: Path) -> None:
    """Of another batch it is no control of masks."""
    put(tmp_path, qadsm("graddrop", 0, 0.6, batch_size=16))
    for control in ("lr-matched", "batch-matched"):
        put(tmp_path, qadsm(control, 0, 0.5, batch_size=32))
    assert compared(collect(tmp_path)) == []
    for control in ("lr-matched", "batch-matched"):
        put(tmp_path / "same", qadsm(control, 0, 0.4, batch_size=16))
    found = compared(collect(tmp_path))
    assert [round(c.difference.mean, 6) for c in found] == [0.2, 0.2]


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


def test_a_confirmatory_family_does_not_grow_with_the_arms(tmp_path: Path) -> None:
    """A method that is run at another p later is not tested in its place, nor beside it."""
    for seed in range(3):
        put(tmp_path, qadsm("standard", seed, 0.5 + 0.01 * seed))
        for p in (0.5, 0.75):
            put(tmp_path / str(p), qadsm("graddrop", seed, 0.6 + 0.02 * seed, drop_prob=p))
    experiment = collect(tmp_path)
    with pytest.raises(ReportError, match=r"expected one comparison.*drop=0\.5 less.*drop=0\.75"):
        compared(experiment, AnalysisPlan(primary=(Primary("qadsm", "graddrop", "standard"),)))
    plan = AnalysisPlan(primary=(Primary("qadsm", "graddrop drop=0.5", "standard"),))
    families = {c.arm.label: c.family for c in compared(experiment, plan)}
    assert families == {"graddrop drop=0.5": "primary", "graddrop drop=0.75": "secondary"}


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
