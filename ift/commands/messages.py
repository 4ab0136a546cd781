"""jsonargparse's messages in the user's terms: pure functions on their text."""

import ast
import difflib
import re


def key_in(text: str) -> str:
    """Return the key that a message is about, or nothing."""
    match = re.search(
        r"^(?:Parser )?[Kk]ey \"([^\"]+)\"|^([\w.]+): |^the following arguments are required: ([\w.]+)", text
    )
    return next(filter(None, match.groups()), "") if match else ""


def is_missing(text: str) -> bool:
    """Whether a message says that a key is required."""
    return text.startswith("the following arguments are required: ")


def simplified(text: str) -> str:
    """Return a message without Python's names for types and without what failed for other types."""
    text = re.sub(r"^Parser key \"([^\"]+)\":", r"\1:", text).replace("typing.", "")
    text = re.sub(r"<class '([\w.]+)'>", r"\1", _without_union(text))
    text = re.sub(r"Problem with given class_path '[^']*': ", "", text)
    return re.sub(r"a Literal\[([^\]]*)\]", r"one of \1", text) + _nearest_choice(text)


def nearest(name: str, known: list[str], *, prefix: str = "") -> str:
    """Return ` Did you mean '…'?` with the nearest known name, or the names known beside it, or nothing.

    Args:
        name: as typed; a dotted path, or a single name.
        known: what would have been right.
        prefix: of an option on the command line.
    """
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not found:  # the right last name in the wrong place
        last = name.rpartition(".")[2]
        found = [key for key in known if key.rpartition(".")[2] == last][:1]
    if found:
        return f" Did you mean '{prefix}{found[0]}'?"
    siblings = [key for key in known if key.rpartition(".")[0] == name.rpartition(".")[0]]
    return f" Known there: {', '.join(siblings[:30])}." if siblings else ""


def _nearest_choice(text: str) -> str:
    match = re.search(r"Literal(\[[^\]]*\]).*Got value: (\S+)", text)
    if not match:
        return ""
    found = difflib.get_close_matches(match[2], [str(choice) for choice in ast.literal_eval(match[1])], n=1)
    return f". Did you mean '{found[0]}'?" if found else ""


def _without_union(text: str) -> str:
    """Shorten jsonargparse's list of what failed for each member of a union to the failures that matter."""
    text = re.sub(r"- Expected a path but .*? either not accessible or invalid - ", "", text)
    text = re.sub(r"Expected a dot import path string: (.*?)(?= - |$)", "Expected a class by its dotted path", text)
    start, found, rest = text.rpartition("Errors: - ")
    if found:
        failures, _, value = rest.partition(" Given value type:")
        parts = [p for p in failures.split(" - ") if not p.startswith(("Expected a <class 'NoneType'>", "Not a "))]
        parts = [p for p in parts if "does not correspond to a subclass" not in p] or parts
        own = [p for p in parts if not p.startswith("Expected a")]  # a type that fits, with a value that does not
        key = re.match(r"[\w.\[\]]+: ", start)
        told = (own or ["Expected a " + " or ".join(part.removeprefix("Expected a ") for part in parts)])[0]
        got = "" if own or "Got value:" in told else f". Got value: {value.partition('Given value: ')[2]}"
        text = f"{key[0] if key else ''}{told}{got}"
    return re.sub(r"Expected an? (?!Literal|class by)", "Expected ", text)
