"""Patches from a jittered grid, whose places RelativeLoc guesses."""

from collections.abc import Mapping

import numpy as np
import torch

from . import batched
from .draws import Draws
from .operations import build_operations, draw_operations, render_operations, render_operations_batch, resize
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
        self.edge = self.grid * self.cell
        if self.resize < self.edge:
            raise ValueError(
                f"{where}: an image of resize={self.resize} pixels is smaller than the grid of {self.grid} cells of "
                f"size + jitter = {self.cell} pixels; resize must be at least {self.edge}."
            )
        view = {"grayscale": {"p": 0.66, "weights": "mean"}, **view}
        self.operations = build_operations(view, where)
        self.statistics = {"pixel_values": statistics(view, where)}

    def draw(self, heights: np.ndarray, widths: np.ndarray, draws: Draws) -> dict[str, np.ndarray]:
        """Draw the places of grid and patches, and whether images of these sizes in pixels become gray."""
        none = np.zeros_like(heights)
        return {
            "box": np.stack([none, none, heights, widths], axis=1),
            "grid": (draws.uniform(2) * (self.resize - self.edge + 1)).astype(int),
            "patches": (draws.uniform(self.grid * self.grid, 2) * (self.jitter + 1)).astype(int),
            **draw_operations(self.operations, draws),
        }

    def resolution(self, parameters: Mapping[str, np.ndarray]) -> np.ndarray:
        """The share of the images' height and width at which they are as large as the square that they are resized to."""
        return self.resize / parameters["box"][..., 2:].min(axis=-1)

    def largest_resolution(self, height: int, width: int) -> float:
        """What `resolution` is at most."""
        return self.resize / min(height, width)

    def render(self, image: np.ndarray, parameters: Mapping) -> dict[str, torch.Tensor]:
        """Render what was drawn for an image from its RGB pixels `(H, W, 3)`."""
        top, left, bottom, right = parameters["box"].tolist()
        pixels = resize(image[top:bottom, left:right], self.resize, self.interpolation)
        top, left = parameters["grid"].tolist()
        pixels = np.ascontiguousarray(pixels[top : top + self.edge, left : left + self.edge])
        pixels = render_operations(pixels, self.operations, parameters)
        corners = (parameters["patches"] + self._cells()).tolist()
        patches = [pixels[top : top + self.size, left : left + self.size] for top, left in corners]
        return {"pixel_values": torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2)}

    def render_batch(self, images: torch.Tensor, parameters: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """Render what was drawn for images `(B, H, W, 3)`, on their device."""
        rows, columns = (parameters["grid"][:, i : i + 1] + np.arange(self.edge) for i in (0, 1))
        pixels = batched.resize(images, parameters["box"], self.resize, self.interpolation, rows, columns)
        render_operations_batch(pixels, self.operations, parameters)
        return {"pixel_values": batched.cut(pixels, parameters["patches"] + self._cells(), self.size).to(torch.uint8)}

    def _cells(self) -> np.ndarray:
        """Top and left of each cell in the grid, `(grid * grid, 2)`."""
        columns, rows = np.divmod(np.arange(self.grid * self.grid), self.grid)
        return np.stack([rows, columns], axis=1) * self.cell
