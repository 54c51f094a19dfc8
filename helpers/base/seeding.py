"""Seeds that follow from names: the same parts give the same numbers on every machine."""

import hashlib

import numpy as np


def derive_seed(*parts: int | str) -> int:
    """A seed below 2**63 that is a pure function of `parts` (SHA-256)."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_generator(*parts: int | str) -> np.random.Generator:
    """A NumPy generator seeded by `parts`."""
    return np.random.default_rng(derive_seed(*parts))
