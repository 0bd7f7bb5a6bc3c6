"""Checks of what a recipe says about a view; the errors name the place, such as `views[1].mask`."""

import difflib
import math
from collections.abc import Mapping, Sequence
from numbers import Real

# Pixels of an edge: more is a slip of the pen that would fill the memory.
MAX_SIZE = 8192
INTERPOLATIONS = ("bicubic", "bilinear")


def check_keys(given: Mapping, where: str, allowed: Sequence[str], required: Sequence[str] = ()) -> None:
    if not isinstance(given, Mapping):
        raise ValueError(f"{where} must be a mapping with keys out of {', '.join(allowed)}; got {given!r}.")
    for key in given:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{where} has the unknown key {key!r}; allowed are {', '.join(allowed)}.{hint}")
    for key in required:
        if key not in given:
            raise ValueError(f"{where} needs the key {key!r}, got {dict(given)!r}.")


def number(given: Mapping, where: str, key: str, default=None, *, low=0, high=math.inf, integer=False):
    value = given.get(key, default)
    kind = int if integer else Real
    if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high:
        what = "a whole number" if integer else "a number"
        limits = f"of at least {low}" if high == math.inf else f"from {low} to {high}"
        raise ValueError(f"{where}: {key} must be {what} {limits}, got {value!r}.")
    return value


def interval(given: Mapping, where: str, key: str, default: tuple, high=1e6) -> tuple[float, float]:
    value, low = given.get(key, default), 1e-6
    numbers = isinstance(value, list | tuple) and all(isinstance(v, Real) and not isinstance(v, bool) for v in value)
    if not numbers or len(value) != 2 or not low <= value[0] <= value[1] <= high:
        raise ValueError(f"{where}: {key} must be [low, high] with {low:g} <= low <= high <= {high:g}, got {value!r}.")
    return tuple(value)


def choice(given: Mapping, where: str, key: str, default: str | None, allowed: Sequence[str]) -> str:
    value = given.get(key, default)
    if value not in allowed:
        raise ValueError(f"{where}: {key} must be one of {', '.join(allowed)}; got {value!r}.")
    return value


def interpolation(given: Mapping, where: str, default: str = "bicubic") -> str:
    return choice(given, where, "interpolation", default, INTERPOLATIONS)


def statistics(given: Mapping, where: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The (mean, std) that the pixels are normalised with, None for the model's."""
    if "mean" not in given and "std" not in given:
        return None
    values = [given.get("mean"), given.get("std")]
    numbers = all(
        isinstance(value, list | tuple) and len(value) == 3 and all(isinstance(v, Real) for v in value)
        for value in values
    )
    if not numbers or not all(-1 <= m <= 1 for m in values[0]) or not all(0 < s <= 2 for s in values[1]):
        raise ValueError(
            f"{where}: mean and std must be three numbers each, in units where 1 is white, got mean={values[0]!r} and "
            f"std={values[1]!r}. Divide statistics of 0..255 pixels by 255."
        )
    return tuple(values[0]), tuple(values[1])
