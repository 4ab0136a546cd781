"""Normalised text, and 64-bit hashes of every window of a sequence: what looks for equal text is built on these.

The hashes depend on nothing but the values: equal on every machine, in every process and version of Python.
"""

import unicodedata

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
UNICODE_VERSION = unicodedata.unidata_version
"""Of the tables by which text is normalised; it comes with Python."""


def normalised(text: str) -> str:
    """Return the text as it is compared: NFKC (full width equals half width) and without upper case."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def code_points(text: str) -> Hashes:
    """Return the characters of a text as numbers, `(length,)`."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)


def mixed(values: Hashes) -> Hashes:
    """Return numbers whose every bit depends on every bit of the given ones; no two become equal.

    The finalizer of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
    """
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def window_hashes(values: Hashes, length: int) -> Hashes:
    """Return one hash for each window of `length` values, `(max(1, len(values) - length + 1),)`.

    A sequence shorter than a window is filled up with zeros on the right, and so gives the one hash of its whole.

    Args:
        values: `(n,)`.
        length: of a window, above 0.
    """
    if len(values) < length:
        values = np.pad(values, (0, length - len(values)))
    values = mixed(values)
    number = len(values) - length + 1
    total = np.zeros(number, dtype=np.uint64)
    # Odd factors, one per place, so that the same values in another order give another sum. They are SplitMix64's own
    # sequence: mixed small numbers would be among the mixed values, and value i at place j would weigh as j at i.
    factors = mixed(np.arange(1, length + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) | np.uint64(1)
    for offset, factor in enumerate(factors):
        total += values[offset : offset + number] * factor
    return mixed(total)
