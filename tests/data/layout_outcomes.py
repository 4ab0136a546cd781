"""Run a row function as the preparation does: every conversation checked, what cannot be used as its reason."""

from typing import Any

from ift.data.conversation import Conversation
from ift.data.layouts import LAYOUTS, RowError, check_turns


def outcomes(layout: str, row: Any) -> list[Conversation | RowError]:
    try:
        given = LAYOUTS[layout].function(row)
        return [checked(one) for one in ([given] if isinstance(given, Conversation) else given)]
    except RowError as error:
        return [error]


def checked(one: Conversation | RowError) -> Conversation | RowError:
    if isinstance(one, RowError):
        return one
    try:
        check_turns(one, needs_response=True)
    except RowError as error:
        return error
    return one


def reasons(layout: str, row: Any) -> list[str]:
    """Return why nothing can be used, or fail."""
    result = outcomes(layout, row)
    assert all(isinstance(one, RowError) for one in result), result
    return [str(one) for one in result]
