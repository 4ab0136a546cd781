"""What Triton 3.9's interpreter lacks of a compiled kernel: float arguments as scalars, and libdevice."""

from typing import Any

import numpy as np
import pytest
import triton
import triton.language as tl
from triton.language.extra import libdevice
from triton.runtime import interpreter


@triton.jit
def rsqrt(x):  # type: ignore[no-untyped-def]
    return 1 / tl.sqrt(x)


@triton.jit
def tanh(x):  # type: ignore[no-untyped-def]
    return 2 * tl.sigmoid(2 * x) - 1


def complete(patch: pytest.MonkeyPatch) -> None:
    """Add it, before Liger is imported."""
    plain = interpreter._implicit_cvt

    def converted(argument: Any) -> Any:
        if isinstance(argument, float):
            return tl.tensor(interpreter.TensorHandle(np.array([argument], dtype=np.float32), tl.float32), tl.float32)
        return plain(argument)

    patch.setattr(interpreter, "_implicit_cvt", converted)
    patch.setattr(libdevice, "rsqrt", rsqrt)
    patch.setattr(libdevice, "tanh", tanh)
