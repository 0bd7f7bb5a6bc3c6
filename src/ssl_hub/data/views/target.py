"""A second look at the same crop, which a target generator reads (CAE: DALL-E's tokens of a smaller image)."""

from collections.abc import Mapping
from typing import NamedTuple

from .options import MAX_SIZE, check_keys, interpolation, number, statistics


class Target(NamedTuple):
    size: int
    interpolation: str
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None


def build_target(target: Mapping, where: str) -> Target:
    """Read a view's `target`.

    * `size`: pixels.
    * `interpolation`: "bicubic" (default) or "bilinear".
    * `mean`, `std`: what `target_pixel_values` are normalised with (default: the model's). DALL-E's pixels
      0.8 * x + 0.1 are those with a mean of -0.125 and a standard deviation of 1.25.
    """
    check_keys(target, where, ("size", "interpolation", "mean", "std"), required=["size"])
    size = number(target, where, "size", low=1, high=MAX_SIZE, integer=True)
    return Target(size, interpolation(target, where), statistics(target, where))
