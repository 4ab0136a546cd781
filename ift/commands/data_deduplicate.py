"""`ift data deduplicate`: leave out rows that equal an earlier one, exactly or nearly."""

from collections import Counter
from collections.abc import Sequence

from ift.commands.option_parser import OptionParser
from ift.commands.row_files import add_input_options, check_new, json_lines, sift, sources_of
from ift.data.conversation import Conversation
from ift.data.duplicates import ExactDuplicates, NearDuplicates
from ift.data.row_conversations import Reject
from ift.data.rows import RawRow, Source
from ift.errors import UserError

DEFAULT_THRESHOLD = 0.8


class DuplicateJudge:
    """Leaves out a row all of whose conversations are left out; the first of equal ones stays.

    Args:
        near: whether nearly equal counts.
        threshold: least Jaccard similarity of nearly equal texts.
    """

    def __init__(self, *, near: bool, threshold: float) -> None:
        self._filters: list[ExactDuplicates | NearDuplicates] = [ExactDuplicates()]
        if near:
            self._filters.append(NearDuplicates(threshold))
        self.partly: Counter[str] = Counter()
        """Kind to the number of conversations that are duplicates in a row that stays for another one of its own."""

    def __call__(self, conversations: Sequence[Conversation], row: RawRow, source: Source) -> Reject | None:
        """Return why a row is left out, or `None`."""
        place = f"{row.file or source.path} {row.place}"
        found = [self._reason(conversation, place) for conversation in conversations]
        reasons = [one for one in found if one is not None]
        if len(reasons) == len(found):
            kind, reason = reasons[0]
            return Reject.of(row, source.path, kind=kind, reason=reason)
        self.partly.update(kind for kind, _ in reasons)
        return None

    def _reason(self, conversation: Conversation, place: str) -> tuple[str, str] | None:
        for one in self._filters:
            reason = one.check(conversation, place)
            if reason is not None:
                return one.name, reason
        return None


def parser() -> OptionParser:
    """Return the options."""
    result = OptionParser(
        "ift data deduplicate",
        "Leave out rows that equal an earlier one. The rows that stay are written unchanged, one JSON object per line; "
        "the others with file, line and the place of the row that they equal.",
    )
    add_input_options(result)
    result.add_argument("--near", action="store_true", help="leave out nearly equal rows too (needs datasketch)")
    result.add_argument(
        "--threshold",
        type=float,
        default=None,
        metavar="SHARE",
        help="with --near: least Jaccard similarity of the sets of runs of five characters (default: 0.8)",
    )
    result.add_argument("--output", required=True, metavar="FILE", help="new JSON-lines file for the rows that stay")
    result.add_argument("--removed", required=True, metavar="FILE", help="new JSON-lines file for the other rows")
    return result


def run(subcommand: str, arguments: list[str]) -> None:
    """Run `deduplicate`.

    Raises:
        UserError: an option or a file that is wrong.
    """
    options = parser().parse(arguments)
    if options.threshold is not None and not options.near:
        raise UserError("--threshold: says what counts as nearly equal, so it needs --near.")
    sources = sources_of(options.input, options.layout)
    check_new({"output": options.output, "removed": options.removed})
    threshold = DEFAULT_THRESHOLD if options.threshold is None else options.threshold
    judge = DuplicateJudge(near=options.near, threshold=threshold)
    with json_lines(options.output) as keep, json_lines(options.removed) as remove:
        all_counts = sift(sources, judge, keep=keep, remove=remove)
    for counts in all_counts:
        print(counts)
    for kind, number in judge.partly.items():
        print(f"{number} conversations are {kind} in a row that stays, because the row holds others")
    print(f"kept {sum(counts.kept for counts in all_counts)} rows: {options.output}")
    print(f"removed {sum(counts.removed.total() for counts in all_counts)} rows: {options.removed}")
