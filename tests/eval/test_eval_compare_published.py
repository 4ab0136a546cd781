"""`compare` on published predictions of MMCU: 11,845 questions of 25 subjects, and what scipy says of them."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from compared_reports import compare, write
from scipy import stats

from eval.aggregation import MACRO
from eval.report import Outcome

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data" / "mmcu_predictions"
NAMES = {
    "small": "bloomz_1b1_test_results_0515",
    "large": "bloomz_3b_test_results_0515",
    "moss": "MOSS16B_test_results_0515",
}
pytestmark = [pytest.mark.real_data, pytest.mark.skipif(not FOLDER.exists(), reason="the published files are not here")]


def right(name: str) -> dict[str, list[bool]]:
    """Return which answers equal their label, by subject."""
    subjects = json.loads((FOLDER / f"{NAMES[name]}.json").read_text(encoding="utf-8"))["subjects"]
    return {
        subject: [one == label for one, label in zip(own["pred"], own["label"], strict=True)]
        for subject, own in subjects.items()
    }


def test_published_predictions_are_compared_as_scipy_does(tmp_path: Path) -> None:
    for name in NAMES:
        outcomes = [
            Outcome(f"{subject}-{number}", subject, one)
            for subject, own in right(name).items()
            for number, one in enumerate(own)
        ]
        write(tmp_path / name, outcomes, "mmcu", aggregations=(MACRO,), clustered=True)
    assert compare(tmp_path / "small", tmp_path / "large", tmp_path / "moss", "--output", tmp_path / "out") == 0
    with (tmp_path / "out" / "compare.csv").open(encoding="utf-8", newline="") as file:
        rows = {(row["name"], row["system"]): row for row in csv.DictReader(file)}
    answers = {name: right(name) for name in NAMES}
    tested = 0
    for name in ("large", "moss"):
        differences = []
        for subject, own in answers[name].items():
            base = answers["small"][subject]
            wins = sum(one > other for one, other in zip(own, base, strict=True))
            losses = sum(one < other for one, other in zip(own, base, strict=True))
            exact = stats.binomtest(wins, wins + losses).pvalue
            mid_p = exact - stats.binom.pmf(min(wins, losses), wins + losses, 0.5)
            assert float(rows[subject, name]["p_value"]) == pytest.approx(
                min(1, mid_p if wins != losses else 1), rel=1e-9
            )
            assert float(rows[subject, name]["difference"]) == pytest.approx((wins - losses) / len(own))
            differences.append((wins - losses) / len(own))
            tested += 1
        # The macro average over a sample of subjects, held against Student's t of their differences.
        t_test = stats.ttest_1samp(differences, 0)
        bounds, overall = t_test.confidence_interval(0.95), rows["macro", name]
        half = (bounds.high - bounds.low) / 2
        assert float(overall["difference"]) == pytest.approx(np.mean(differences))
        assert float(overall["difference_low"]) == pytest.approx(bounds.low, abs=0.15 * half)
        assert float(overall["difference_high"]) == pytest.approx(bounds.high, abs=0.15 * half)
        assert (float(overall["p_value"]) < 0.05) == (t_test.pvalue < 0.05)
    assert tested == 50
