import numpy as np
import pytest

from eval.aggregation import GROUP_MACRO, GROUP_MICRO, MACRO, MICRO, Cell
from eval.bootstrap import Sample, bootstrap_intervals
from eval.report import Outcome, summarize
from eval.statistics import Z_95
from ift.records import Prediction


def prediction(name: str) -> Prediction:
    return Prediction(name, "", "x")


def test_aggregations_by_hand() -> None:
    cells = [Cell("a", "g", 4, 1.0), Cell("b", "g", 1, 1.0), Cell("c", "h", 5, 5.0)]
    assert MICRO.function(cells) == 7 / 10
    assert MACRO.function(cells) == pytest.approx((0.25 + 1 + 1) / 3)
    assert GROUP_MICRO.function(cells) == pytest.approx((2 / 5 + 1) / 2)
    assert GROUP_MACRO.function(cells) == pytest.approx(((0.25 + 1) / 2 + 1) / 2)


def test_interval_of_a_mean_agrees_with_the_normal_approximation() -> None:
    values = np.random.default_rng(1).uniform(0, 10, 400)
    interval = bootstrap_intervals([Sample("a", "", tuple(values))], {"m": MICRO.function}, clustered=False)["m"]
    half = Z_95 * values.std() / np.sqrt(len(values))
    assert interval == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05)


def test_interval_of_a_macro_mean_has_the_variance_of_its_parts() -> None:
    generator = np.random.default_rng(2)
    samples = [
        Sample(str(i), "", tuple(generator.binomial(1, p, n).tolist()))
        for i, (n, p) in enumerate([(200, 0.2), (300, 0.6), (50, 0.5)])
    ]
    low, high = bootstrap_intervals(samples, {"m": MACRO.function}, clustered=False)["m"]
    variances = [np.var(sample.values) / len(sample.values) for sample in samples]
    assert (high - low) / 2 == pytest.approx(Z_95 * np.sqrt(sum(variances)) / 3, rel=0.08)


def test_clusters_widen_the_interval_by_the_variance_between_them() -> None:
    """Subjects whose items all agree: what counts is the number of subjects, not of items."""
    samples = [Sample(f"s{i}", "", (float(i % 2),) * 50) for i in range(40)]
    own = bootstrap_intervals(samples, {"m": MACRO.function}, clustered=True)["m"]
    assert bootstrap_intervals(samples, {"m": MACRO.function}, clustered=False)["m"] == (0.5, 0.5)
    assert (own[1] - own[0]) / 2 == pytest.approx(Z_95 * np.sqrt(0.25 / 40), rel=0.1)


def test_the_same_seed_gives_the_same_interval_and_groups_stay_whole() -> None:
    samples = [Sample("a", "g", (0.0, 1.0, 1.0)), Sample("a", "h", (3.0, 4.0)), Sample("b", "h", (9.0,))]
    first = bootstrap_intervals(samples, {"m": GROUP_MACRO.function}, clustered=True)
    assert first == bootstrap_intervals(samples, {"m": GROUP_MACRO.function}, clustered=True)
    # Group g is one category, whose items are drawn: 0 to 1. Group h is two, drawn whole: 3.5, 6.25 or 9.
    assert (3.5 + 0) / 2 <= first["m"][0] < first["m"][1] == (9 + 1) / 2


@pytest.mark.parametrize("clustered", [True, False])
def test_plain_averages_of_all_resamples_at_once_are_those_one_by_one(clustered: bool) -> None:
    generator = np.random.default_rng(4)
    samples = [Sample(str(i), "gh"[i % 3 == 0], tuple(generator.uniform(0, 1, 3 + i).tolist())) for i in range(9)]
    plain = {one.name: one.function for one in (MICRO, MACRO, GROUP_MICRO, GROUP_MACRO)}
    slow = {name: lambda cells, own=function: own(cells) for name, function in plain.items()}
    both = {**plain, **{f"slow {name}": own for name, own in slow.items()}}
    found = bootstrap_intervals(samples, both, clustered=clustered, resamples=200)
    for name in plain:
        assert found[name] == pytest.approx(found[f"slow {name}"], rel=1e-12)


def test_coverage_of_clustered_intervals_in_a_simulation() -> None:
    """Subjects drawn from a population: the interval holds its mean in about 95 of 100 cases."""
    generator = np.random.default_rng(3)
    hits = 0
    for trial in range(200):
        shares = generator.beta(4, 4, 30)
        samples = [Sample(str(i), "", tuple(generator.binomial(1, p, 40).tolist())) for i, p in enumerate(shares)]
        interval = bootstrap_intervals(samples, {"m": MACRO.function}, clustered=True, resamples=300, seed=trial)["m"]
        hits += interval[0] <= 0.5 <= interval[1]
    assert 180 <= hits <= 198


def test_values_of_a_judge_are_averaged_and_unread_items_left_out() -> None:
    outcomes = [
        Outcome("1", "math", value=0.5),
        Outcome("2", "math", value=1.0),
        Outcome("3", "code", value=0.0),
        Outcome("4", "code", status="unread", note="out of range: 8"),
        Outcome("5", "code", status="excluded", note="empty"),
    ]
    report = summarize(outcomes, [prediction(one.id) for one in outcomes], aggregations=(MACRO,))
    assert report.headline[0] == "macro" and report.headline[1].score == pytest.approx(0.375)
    assert (report.overall.n, report.overall.score) == (3, 0.5)
    assert report.unread == {"4": "out of range: 8"} and report.excluded == {"empty": 1}
    assert report.categories["math"].method == "bootstrap over items"


def test_kinds_cut_across_categories_and_groups_hold_them() -> None:
    outcomes = [
        Outcome("1", "a", True, group="g", kinds=("single",)),
        Outcome("2", "a", False, group="g", kinds=("multi",)),
        Outcome("3", "b", True, group="g", kinds=("single",)),
        Outcome("4", "c", False, group="h", kinds=("single",)),
    ]
    report = summarize(outcomes, [prediction(one.id) for one in outcomes], clustered=True, group_score=MACRO)
    assert {name: (one.n, one.score) for name, one in report.groups.items()} == {"g": (3, 0.75), "h": (1, 0.0)}
    assert {name: (one.n, one.score) for name, one in report.kinds.items()} == {"single": (3, 2 / 3), "multi": (1, 0.0)}
    # Three subjects are too few to be taken as a sample of subjects.
    assert report.aggregates["micro"].method == "wilson"
    many = [Outcome(str(number), f"subject {number % 12}", number % 2 == 0) for number in range(48)]
    report = summarize(many, [prediction(one.id) for one in many], clustered=True)
    assert report.aggregates["micro"].method == "bootstrap over categories"


def test_no_certainty_comes_from_items_that_do_not_vary() -> None:
    wrong = [Outcome(str(number), f"s{number % 2}") for number in range(18)]
    report = summarize(wrong, [prediction(one.id) for one in wrong], aggregations=(MACRO,))
    assert report.headline[1].interval == report.overall.interval == (0.0, pytest.approx(0.1759, abs=1e-4))
    alone = [Outcome("1", "math", value=0.5)]
    report = summarize(alone, [prediction("1")], aggregations=(MACRO,))
    assert np.isnan(report.headline[1].interval).all() and np.isnan(report.categories["math"].interval).all()
    single = [Outcome(str(number), f"s{number}", number > 0) for number in range(4)]
    report = summarize(single, [prediction(one.id) for one in single], aggregations=(MACRO,))
    assert report.headline[1].interval == report.overall.interval


@pytest.mark.parametrize("n", [10, 30])
def test_coverage_of_a_mean_of_few_scores(n: int) -> None:
    """A judge's scores of one task: without widening, 10 items hold about 89 of 100."""
    generator = np.random.default_rng(n)
    hits = 0
    for trial in range(400):
        values = tuple(np.clip(generator.normal(6, 2, n), 0, 12).tolist())
        interval = bootstrap_intervals(
            [Sample("t", "", values)], {"m": MICRO.function}, clustered=False, resamples=400, seed=trial
        )["m"]
        hits += interval[0] <= 6 <= interval[1]
    assert 366 <= hits <= 394
