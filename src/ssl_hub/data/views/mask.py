"""Masks over the patches of a view: bool `(num_patches,)`, row by row, True where a patch is removed."""

import math
from collections.abc import Mapping

import numpy as np

from .draws import Draws
from .options import check_keys, choice, interval, number

_KEYS = {
    "random": ("ratio", "count"),
    "aligned": ("ratio", "cell"),
    "blockwise": ("count", "min_num_patches", "max_num_patches", "aspect"),
}
# After so many blocks in a row that do not fit, the rest is masked patch by patch.
_MAX_TRIES = 1000


def build_mask(mask: Mapping, where: str, size: int) -> "RandomMask | AlignedMask | BlockwiseMask":
    """Read the `mask` of a view of `size` pixels; what is built draws masks `(B, num_patches)`, one for each of its `Draws`,
    with `count` masked patches each.

    * `kind`: "random", "aligned" or "blockwise".
    * `patch`: pixels of a patch's edge (default 16).

    random: patches drawn uniformly, `ratio` of them (rounded up) or `count`.

    aligned (SimMIM, arXiv 2111.09886): `ratio` (default 0.6, rounded up) of the cells of `cell` pixels (default 32),
    whatever the size of a patch.

    blockwise (BEiT, arXiv 2106.08254): rectangles until exactly `count` patches are masked. A rectangle has
    `min_num_patches` (default 16) to `max_num_patches` (default: what is missing) patches, and height / width in
    `aspect` (default [0.3, 1 / 0.3]).
    """
    kinds = tuple(_KEYS)
    if not isinstance(mask, Mapping) or "kind" not in mask:
        raise ValueError(f"{where} must be a mapping with a kind out of {', '.join(kinds)}; got {mask!r}.")
    kind = choice(mask, where, "kind", None, kinds)
    check_keys(mask, where, ("kind", "patch", *_KEYS[kind]))
    patch = number(mask, where, "patch", 16, low=1, integer=True)
    if size % patch != 0:
        raise ValueError(f"{where}: the view's size must be a multiple of the patch's, got {size} and {patch=}.")
    grid = size // patch
    if kind == "random":
        return RandomMask(mask, where, grid)
    if kind == "aligned":
        return AlignedMask(mask, where, grid, patch)
    return BlockwiseMask(mask, where, grid)


class RandomMask:
    """Patches drawn uniformly."""

    def __init__(self, mask: Mapping, where: str, grid: int):
        if ("ratio" in mask) == ("count" in mask):
            raise ValueError(f"{where} needs either a ratio or a count of patches, got {dict(mask)!r}.")
        self.num_patches = grid**2
        if "count" in mask:
            self.count = _count(mask, where, self.num_patches)
        else:
            self.count = _share(mask, where, self.num_patches, "patches")

    def draw(self, draws: Draws) -> np.ndarray:
        return _draw_some(draws, self.num_patches, self.count)


class AlignedMask:
    """Cells of several patches, drawn uniformly."""

    def __init__(self, mask: Mapping, where: str, grid: int, patch: int):
        cell, size = number(mask, where, "cell", 32, low=1, integer=True), grid * patch
        if size % cell != 0 or cell % patch != 0:
            raise ValueError(
                f"{where}: a cell must be a multiple of a patch and divide the view's size, got {cell=}, {patch=} and "
                f"a size of {size}."
            )
        self.cells, self.patches_a_cell = size // cell, cell // patch
        self.num_cells = _share(mask, where, self.cells**2, "cells", 0.6)
        self.count = self.num_cells * self.patches_a_cell**2

    def draw(self, draws: Draws) -> np.ndarray:
        cells = _draw_some(draws, self.cells**2, self.num_cells).reshape(-1, self.cells, self.cells)
        return cells.repeat(self.patches_a_cell, 1).repeat(self.patches_a_cell, 2).reshape(len(draws), -1)


class BlockwiseMask:
    """Rectangles, one after the other, until the number of masked patches is reached."""

    def __init__(self, mask: Mapping, where: str, grid: int):
        self.grid = grid
        self.count = _count(mask, where, grid**2)
        self.smallest = number(
            mask, where, "min_num_patches", min(16, self.count), low=1, high=self.count, integer=True
        )
        self.largest = number(mask, where, "max_num_patches", self.count, low=self.smallest, high=grid**2, integer=True)
        self.log_aspect = [math.log(value) for value in interval(mask, where, "aspect", (0.3, 1 / 0.3))]

    def draw(self, draws: Draws) -> np.ndarray:
        return np.stack([self._draw_one(one) for one in draws])

    def _draw_one(self, draws: Draws) -> np.ndarray:
        mask = np.zeros((self.grid, self.grid), dtype=bool)
        missing, tries = self.count, 0
        while missing > 0 and tries < _MAX_TRIES:
            for numbers in draws.uniform(8, 4)[0].tolist():
                tries += 1
                limit = min(missing, self.largest)
                block = self._block(mask, limit, *numbers)
                newly_masked = block.size - np.count_nonzero(block)
                if 0 < newly_masked <= limit:
                    block[...] = True
                    missing, tries = missing - newly_masked, 0
                    if missing == 0:
                        break
        mask = mask.reshape(-1)
        if missing > 0:
            free = np.flatnonzero(~mask)
            mask[free[np.argsort(draws.uniform(len(free))[0])[:missing]]] = True
        return mask

    def _block(self, mask: np.ndarray, limit: int, area: float, aspect: float, top: float, left: float) -> np.ndarray:
        # Where less is missing than the smallest block has, the bounds change places, as in BEiT's code.
        area = self.smallest + area * (limit - self.smallest)
        low, high = self.log_aspect
        aspect = math.exp(low + aspect * (high - low))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height >= self.grid or width >= self.grid:
            return mask[:0]
        top, left = int(top * (self.grid - height + 1)), int(left * (self.grid - width + 1))
        return mask[top : top + height, left : left + width]


def _draw_some(draws: Draws, total: int, count: int) -> np.ndarray:
    masks = np.zeros((len(draws), total), dtype=bool)
    chosen = np.argpartition(draws.uniform(total), count - 1, axis=1)[:, :count]
    np.put_along_axis(masks, chosen, True, axis=1)
    return masks


def _count(mask: Mapping, where: str, total: int) -> int:
    if total == 1:
        raise ValueError(f"{where} masks the only patch of the view: make the patches smaller than the view.")
    return number(mask, where, "count", low=1, high=total - 1, integer=True)


def _share(mask: Mapping, where: str, total: int, what: str, default: float | None = None) -> int:
    count = math.ceil(number(mask, where, "ratio", default, high=1) * total)
    if not 0 < count < total:
        raise ValueError(
            f"{where}: ratio must mask some of the {total} {what} and keep some; {mask.get('ratio', default)!r} masks "
            f"{count} of them."
        )
    return count
