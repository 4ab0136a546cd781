"""What a chain of stages forgets: losses on every stage's validation set after every stage, as table, JSON and curves.

Starts without torch. The forgetting of stage i after stage j is loss(j, i) less the least loss(k, i) of the stages k
from i to j - 1: how much worse the model has become on what it once did best (after Chaudhry et al. 2018, arXiv
1801.10112, who define it of accuracies). Negative values are backward transfer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ift.artifacts import write_json
from ift.commands.forgetting_chart import svg

BASELINE = "before"
"""Name of the row before the first stage."""


@dataclass(frozen=True)
class Measurement:
    """A validation of one model on one stage's validation set."""

    after: str | None
    """Stage whose model it is; none is what the first stage starts from."""
    on: str
    """Stage whose validation set it is."""
    loss: float
    """Mean cross-entropy per supervised token, in nats."""
    perplexity: float
    supervised_tokens: int
    key: str
    """Of model and data; with another one, it is to be measured again."""


@dataclass(frozen=True)
class Losses:
    """The losses of a chain."""

    names: Sequence[str]
    """Of the stages, in order."""
    values: Mapping[tuple[int, int], float]
    """Loss after stage j on the validation set of stage i, by (j, i), from 1; j = 0 is before the first stage."""

    @classmethod
    def of(cls, names: Sequence[str], measurements: Sequence[Measurement]) -> "Losses":
        """Arrange measurements."""
        number: dict[str | None, int] = {None: 0} | {name: place for place, name in enumerate(names, 1)}
        return cls(names, {(number[one.after], number[one.on]): one.loss for one in measurements})

    def forgetting(self, after: int, of: int) -> float | None:
        """Return the forgetting of an earlier stage, or `None` where it was not measured or is not defined."""
        earlier = [self.values[k, of] for k in range(of, after) if (k, of) in self.values]
        return self.values[after, of] - min(earlier) if earlier and (after, of) in self.values else None

    def mean_forgetting(self, after: int) -> float | None:
        """Return the mean forgetting over all earlier stages."""
        found = [one for of in range(1, after) if (one := self.forgetting(after, of)) is not None]
        return sum(found) / len(found) if found else None

    @property
    def num_measured(self) -> int:
        """Number of the last stage after which anything was measured."""
        return max((after for after, _ in self.values), default=0)


def table(losses: Losses) -> str:
    """Return the losses as a Markdown table that can be read as it is, forgetting in brackets."""
    head = ["after", *(f"{number} {name}" for number, name in enumerate(losses.names, 1)), "mean forgetting"]
    rows = [head]
    for after in range(losses.num_measured + 1):
        name = f"{after} {losses.names[after - 1]}" if after else BASELINE
        cells = [_cell(losses, after, of) for of in range(1, len(losses.names) + 1)]
        rows.append([name, *cells, _signed(losses.mean_forgetting(after))])
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [_line(row, widths) for row in rows]
    rule = f"|{'-' * (widths[0] + 2)}|" + "".join(f"{'-' * (width + 1)}:|" for width in widths[1:])
    return "\n".join([lines[0], rule, *lines[1:]])


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(row, widths, strict=True)
    return f"| {first[0]:<{first[1]}} | " + " | ".join(f"{text:>{width}}" for text, width in others) + " |"


def _cell(losses: Losses, after: int, of: int) -> str:
    if (after, of) not in losses.values:
        return ""
    change = _signed(losses.forgetting(after, of))
    return f"{losses.values[after, of]:.4f}" + (f" ({change})" if change else "")


def _signed(value: float | None) -> str:
    return f"{value:+.4f}" if value is not None else ""


def as_json(losses: Losses) -> dict[str, Any]:
    """Return all numbers by the names of the stages."""
    rows = []
    for after in range(losses.num_measured + 1):
        of = range(1, len(losses.names) + 1)
        rows.append(
            {
                "after": losses.names[after - 1] if after else None,
                "loss": {losses.names[i - 1]: losses.values[after, i] for i in of if (after, i) in losses.values},
                "forgetting": {
                    losses.names[i - 1]: value for i in of if (value := losses.forgetting(after, i)) is not None
                },
                "mean_forgetting": losses.mean_forgetting(after),
            }
        )
    return {"stages": list(losses.names), "rows": rows}


def write_report(losses: Losses, folder: Path) -> None:
    """Write `forgetting.json`, `forgetting.md` and `forgetting.svg`."""
    write_json(folder / "forgetting.json", as_json(losses))
    text = (
        "# Validation losses after every stage\n\n"
        f"{table(losses)}\n\n"
        "Mean cross-entropy per supervised token, in nats, on the validation set of each stage (columns), with the\n"
        f"model after each stage (rows; '{BASELINE}': what the first stage starts from). In brackets the forgetting:\n"
        "the loss less the least one after an earlier stage, from the set's own on; above 0 is forgotten.\n"
    )
    (folder / "forgetting.md").write_text(text, encoding="utf-8")
    (folder / "forgetting.svg").write_text(svg(losses.names, losses.values), encoding="utf-8")


def write_scalars(losses: Losses, folder: Path) -> None:
    """Write all curves into TensorBoard's folder anew, over the number of stages done, so that none stands twice."""
    from torch.utils.tensorboard import SummaryWriter

    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("events.out.tfevents.*"):
        path.unlink()
    with SummaryWriter(str(folder)) as writer:
        for (after, of), loss in sorted(losses.values.items()):
            name = losses.names[of - 1]
            writer.add_scalar(f"validation_of/{name}", loss, after)
            if (value := losses.forgetting(after, of)) is not None:
                writer.add_scalar(f"forgetting/{name}", value, after)
