"""Warnings of libraries that advise what does not apply here."""

import warnings


def hide_advice() -> None:
    """Hide the libraries' warnings that are none here."""
    # One batch is one step here, so Lightning's advice on workers and batch sizes does not apply.
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # jsonargparse passes every default of a PEFT configuration, and PEFT takes some for a wish.
    warnings.filterwarnings("ignore", message="`loftq_config` specified")
