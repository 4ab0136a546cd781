"""Row functions ("layouts"): one raw record in, one conversation out, or several.

A row function takes a mapping and returns a `Conversation` or an iterable of them (every thread of a tree); what is
wrong with the row it says by raising `RowError`, and what is wrong with one of several by yielding one.
A layout of one's own is any such function, named in the YAML by its dotted path (`my_package.my_module.my_function`).
"""

from ift.data.layouts.chats import messages, sharegpt
from ift.data.layouts.checks import check_turns
from ift.data.layouts.columns import map_columns
from ift.data.layouts.detection import detect_layout
from ift.data.layouts.fields import Row, RowError, RowFunction
from ift.data.layouts.pairs import alpaca, text
from ift.data.layouts.registry import LAYOUTS, Layout, Signature, layout_table, resolve_layout

__all__ = [
    "LAYOUTS",
    "Layout",
    "Row",
    "RowError",
    "RowFunction",
    "Signature",
    "alpaca",
    "check_turns",
    "detect_layout",
    "layout_table",
    "map_columns",
    "messages",
    "resolve_layout",
    "sharegpt",
    "text",
]
