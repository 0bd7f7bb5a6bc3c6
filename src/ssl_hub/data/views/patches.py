"""Patches from a jittered grid, whose places RelativeLoc guesses."""

from collections.abc import Mapping

import numpy as np
import torch

from .operations import build_operations, draw_operations, render_operations, resize
from .options import MAX_SIZE, check_keys, interpolation, number, statistics

_KEYS = ("kind", "count", "grid", "size", "jitter", "resize", "interpolation", "grayscale", "mean", "std")


class PatchesView:
    """Patches from a grid (arXiv 1505.05192), by default those of MMSelfSup's RelativeLoc.

    Makes `pixel_values`, uint8 `(grid * grid, 3, size, size)`, **column by column**: with a grid of 3, patch 1 is the
    one below patch 0, and patch 4 the centre.

    * `resize`: the image is resized to a square of so many pixels, whatever its ratio (default 292);
      `interpolation`: "bilinear" (default) or "bicubic".
    * `grid`: cells a side (default 3), `size`: edge of a patch in pixels (default 64), `jitter`: pixels that a cell is
      larger than its patch (default 21). The cells are cut from a random place; so is each patch in its cell, which
      leaves gaps between the patches.
    * `grayscale`: as in `CropView`, default `{p: 0.66, weights: mean}`.
    * `mean`, `std`: what `pixel_values` are normalised with (default: the model's).

    MMSelfSup's cells overlap by a pixel, except at the border, so that its patches may lie one pixel further down or
    to the right.
    """

    def __init__(self, view: Mapping, where: str):
        check_keys(view, where, _KEYS)
        self.grid = number(view, where, "grid", 3, low=2, integer=True)
        self.size = number(view, where, "size", 64, low=1, high=MAX_SIZE, integer=True)
        self.jitter = number(view, where, "jitter", 21, integer=True)
        self.resize = number(view, where, "resize", 292, low=1, high=MAX_SIZE, integer=True)
        self.interpolation = interpolation(view, where, "bilinear")
        self.cell = self.size + self.jitter
        if self.resize < self.grid * self.cell:
            raise ValueError(
                f"{where}: an image of resize={self.resize} pixels is smaller than the grid of {self.grid} cells of "
                f"size + jitter = {self.cell} pixels; resize must be at least {self.grid * self.cell}."
            )
        view = {"grayscale": {"p": 0.66, "weights": "mean"}, **view}
        self.operations = build_operations(view, where)
        self.statistics = {"pixel_values": statistics(view, where)}

    def draw(self, height: int, width: int) -> dict:
        """Draw the places of grid and patches, and whether an image of `height` x `width` pixels becomes gray."""
        top, left = torch.randint(0, self.resize - self.grid * self.cell + 1, (2,)).tolist()
        return {
            "image_size": (height, width),
            "grid": {"top": top, "left": left},
            "patches": torch.randint(0, self.jitter + 1, (self.grid * self.grid, 2)).tolist(),
            "operations": draw_operations(self.operations, self.resize, self.resize),
        }

    def resolution(self, parameters: dict) -> float:
        """The share of the image's height and width at which it is as large as the square that it is resized to."""
        return self.resize / min(parameters["image_size"])

    def render(self, image: np.ndarray, parameters: dict) -> dict[str, torch.Tensor]:
        """Render what `draw` drew for RGB pixels `(H, W, 3)` of that size, or of `resolution` times that size."""
        pixels = resize(image, self.resize, self.interpolation)
        edge, (top, left) = self.grid * self.cell, parameters["grid"].values()
        pixels = np.ascontiguousarray(pixels[top : top + edge, left : left + edge])
        pixels = render_operations(pixels, self.operations, parameters["operations"])
        patches = []
        for i, (down, right) in enumerate(parameters["patches"]):
            column, row = divmod(i, self.grid)
            top, left = row * self.cell + down, column * self.cell + right
            patches.append(pixels[top : top + self.size, left : left + self.size])
        return {"pixel_values": torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2)}
