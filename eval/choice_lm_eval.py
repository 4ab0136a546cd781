"""The protocol that runs an exam as lm-evaluation-harness 0.4.13 does, the same for every exam with options A to D."""

from eval.aggregation import MACRO, MICRO, Aggregation, micro
from eval.benchmark import Benchmark
from eval.choice_exam import Exam
from eval.choice_prompts import Wording, asking
from eval.choice_scores import Marking, Ranking, scoring

_ONE_BLANK = Ranking(blanks=(" ",), first_of_ties=True)


def lm_eval_protocol(name: str, exam: Exam, wording: Wording, *, part: str, part_subjects: frozenset[str]) -> Benchmark:
    """Return the protocol: the likelihood of ` A` to ` D`, the first of equals, and the mean over questions.

    Args:
        name: of the benchmark.
        exam: its subjects and files.
        wording: of its prompts in lm-evaluation-harness.
        part: name of a set of subjects that is reported apart.
        part_subjects: these subjects.
    """
    marking = Marking(
        _ONE_BLANK,
        # Every choice is one character long, so that normalising by length changes nothing.
        (MICRO, MACRO, Aggregation("acc", micro), Aggregation("acc_norm", micro)),
        group_score=MICRO,
        part=part,
        part_subjects=part_subjects,
    )
    return Benchmark(
        name=name,
        protocol="lm_eval",
        version=1,
        description="as lm-evaluation-harness 0.4.13: likelihood of ' A' to ' D', mean over questions; 0 to 5 shots",
        prepare=asking(exam, wording, options=_ONE_BLANK.options),
        score=scoring(exam, marking),
        shots=range(6),
        template="raw",
    )
