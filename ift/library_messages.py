"""Messages of libraries that mean nothing here, kept from the user one by one."""

import logging
import warnings

_MISSING_KERNEL = "Failed to load CPU gemm_4bit_forward"
"""bitsandbytes reports at its import a kernel of inference that it could download; nothing here calls it."""


def hide_missing_kernel() -> None:
    """Let bitsandbytes not report that kernel; all else that it says is told."""
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    if _is_of_interest not in logger.filters:
        logger.addFilter(_is_of_interest)


def _is_of_interest(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_MISSING_KERNEL)


def hide_advice() -> None:
    """Hide the libraries' warnings that are none here."""
    # One batch is one step here, so Lightning's advice on workers and batch sizes does not apply.
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # jsonargparse passes every default of a PEFT configuration, and PEFT takes some for a wish.
    warnings.filterwarnings("ignore", message="`loftq_config` specified")
