"""Uniform random numbers that are a function of keys: the same in any order, process or batch, and on any machine."""

from collections.abc import Iterator

import numpy as np

# SplitMix64 (Steele, Lea, Flood 2014): a counter in steps of the golden ratio, each value mixed to a random number.
_STEP = np.uint64(0x9E3779B97F4A7C15)


class Draws:
    """A stream of numbers for each image of a batch, which begins with the image's key.

    Args:
        words: Whole numbers or arrays `(B,)` of them, from 0 to 2**64 - 1. Together they are the keys.
    """

    def __init__(self, *words: "int | np.ndarray"):
        state = np.zeros(1, np.uint64)
        for word in words:
            state = _mix((state + _STEP) ^ np.atleast_1d(np.asarray(word, np.uint64)))
        self._state, self._count = state, 0

    def __len__(self) -> int:
        return len(self._state)

    def __iter__(self) -> Iterator["Draws"]:
        """The streams one by one, as they stand."""
        for i in range(len(self)):
            one = Draws()
            one._state, one._count = self._state[i : i + 1], self._count
            yield one

    def split(self, word: int) -> "Draws":
        """Streams of their own with the same keys and a further word."""
        return Draws(self._state, word)

    def uniform(self, *shape: int) -> np.ndarray:
        """The next numbers from [0, 1), `(B, *shape)`, double precision."""
        size = int(np.prod(shape, dtype=int))
        counters = np.arange(self._count + 1, self._count + size + 1, dtype=np.uint64) * _STEP
        self._count += size
        numbers = _mix(self._state[:, None] + counters) >> np.uint64(11)
        return (numbers * 2.0**-53).reshape(len(self), *shape)

    def happens(self, probability: float) -> np.ndarray:
        """Whether something of this probability happens, bool `(B,)`."""
        return self.uniform() < probability


def _mix(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
