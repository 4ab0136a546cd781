"""What came out of the experiment: a table for people and numbers for programs."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Score:
    """A model on the held-out documents."""

    bits_per_character: float
    low: float | None
    """Of the 95 % interval, over documents drawn again; none where these are too few."""
    high: float | None
    tokens: int
    characters: int
    loss_per_token: float
    """Mean cross-entropy, in nats."""

    @staticmethod
    def read(report: Path, predictions: Path, *, characters: int) -> "Score":
        """Read the report of `python -m eval score perplexity` and its predictions."""
        found = json.loads(report.read_text(encoding="utf-8"))["aggregates"]["bits_per_character"]
        rows = [json.loads(line) for line in predictions.read_text(encoding="utf-8").splitlines()]
        tokens = sum(row["option_num_tokens"][0] for row in rows)
        nats = -sum(row["option_scores"][0] for row in rows)
        low, high = found["interval"]
        return Score(found["score"], low, high, tokens, characters, loss_per_token=nats / tokens)

    @property
    def tokens_per_character(self) -> float:
        """Tokens that a character of the held-out documents costs."""
        return self.tokens / self.characters


@dataclass(frozen=True)
class Arm:
    """A model, and what it was trained on in its arm."""

    name: str
    num_rows: int
    """Tokens of its vocabulary."""
    tokens: int
    """Trained on, all runs together."""
    tokens_per_training_character: float
    seconds: float
    """Of training."""
    score: Score

    @staticmethod
    def read(name: str, runs: list[Path], num_rows: int, score: Score) -> "Arm":
        """Read the manifests of the runs of an arm."""
        manifests = [json.loads((run / "manifest.json").read_text(encoding="utf-8")) for run in runs]
        sessions = [session for manifest in manifests for session in manifest["sessions"]]
        sources = manifests[-1]["data"]["sources"]
        texts = [line for source in sources for line in Path(source["path"]).read_text(encoding="utf-8").splitlines()]
        characters = sum(len(json.loads(line)["text"]) for line in texts)
        tokens = sum(source["tokens"] for source in sources)
        # A block's first token is read and not learned.
        share = tokens / sum(source["supervised_tokens"] for source in sources)
        return Arm(
            name=name,
            num_rows=num_rows,
            tokens=round(sum(session["supervised_tokens"] for session in sessions) * share),
            tokens_per_training_character=tokens / characters,
            seconds=sum(session["training_seconds"] for session in sessions),
            score=score,
        )

    @property
    def characters(self) -> int:
        """Characters trained on, by the mean of the text."""
        return round(self.tokens / self.tokens_per_training_character)

    def row(self) -> list[str]:
        """Return the cells of the table."""
        score = self.score
        interval = "" if score.low is None else f" [{score.low:.3f}, {score.high:.3f}]"
        return [
            self.name,
            f"{self.num_rows:,}",
            f"{self.tokens:,}",
            f"{self.characters:,}",
            f"{self.seconds:,.0f}",
            f"{score.tokens_per_character:.3f}",
            f"{score.loss_per_token:.3f}",
            f"**{score.bits_per_character:.3f}**{interval}",
        ]


HEADS = ("", "pieces", "tokens trained", "characters trained", "seconds", "tokens per character", "loss per token")
LAST_HEAD = "bits per character"


@dataclass(frozen=True)
class Outcome:
    """The experiment's result."""

    text: str
    described: dict[str, Any]


def outcome(arms: list[Arm], tuned: dict[str, Any], *, sizes: str, flops: float, seconds: float) -> Outcome:
    """Return the table, the verdict, and all numbers.

    Args:
        arms: the base, the original vocabulary, and last the merged one.
        tuned: held-out losses of instruction tuning, `before` and `after` so many `steps`.
        sizes: of the models, in words.
        flops: compute of each arm.
        seconds: of the whole experiment.
    """
    original, merged = arms[1], arms[-1]
    heads = [*HEADS, LAST_HEAD]
    lines = [f"| {' | '.join(heads)} |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    lines += [f"| {' | '.join(arm.row())} |" for arm in arms]
    ratio = merged.score.tokens_per_character / original.score.tokens_per_character
    gain = original.score.bits_per_character - merged.score.bits_per_character
    lines += [
        "",
        f"{sizes}; {flops:.3g} FLOPs per arm. "
        f"The merged vocabulary needs {ratio:.2f} times the tokens; at equal compute it "
        f"{'saves' if gain > 0 else 'costs'} {abs(gain):.3f} bits per character. Instruction tuning on top: held-out "
        f"loss {tuned['before']:.3f}, then {tuned['after']:.3f} after {tuned['steps']} steps. {seconds:,.0f} s in all.",
    ]
    described = {"arms": [asdict(arm) for arm in arms], "instruction": tuned, "flops": flops, "seconds": seconds}
    return Outcome("\n".join(lines) + "\n", described)
