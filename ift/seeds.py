"""Seeds that depend on where a run stands, not on what drew random numbers before."""

import numpy as np


def mixed_seed(*numbers: int) -> int:
    """Return one 64-bit seed out of several numbers, such that different numbers give unrelated streams."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
