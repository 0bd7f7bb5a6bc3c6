"""Histograms of oriented gradients."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from ...field_types import NonNegativeInt, PositiveInt
from ..losses import to_float32
from .base import TargetGenerator


def hog(images: torch.Tensor, num_bins: int = 9, cell_size: int = 8, gaussian_window: int = 16) -> torch.Tensor:
    """Histograms of the orientations of an image's gradients, a colour channel and cell each, as MaskFeat takes them.

    Args:
        images: `(B, C, H, W)`.
        num_bins: orientations that are told apart, in half a turn.
        cell_size: side of a cell, in pixels.
        gaussian_window: side of a window, tiled over the image, whose middle counts most; 0 for none.

    Returns:
        `torch.Tensor`: `(B, C, num_bins, H / cell_size, W / cell_size)`, each histogram of unit length.
    """
    channels, (height, width) = images.shape[1], images.shape[-2:]
    steps = 1 - torch.arange(3, device=images.device, dtype=images.dtype)
    sobel = (2 - steps.abs())[:, None] * steps  # [[1, 0, -1], [2, 0, -2], [1, 0, -1]]
    kernels = torch.stack([sobel, sobel.T])[:, None].repeat(channels, 1, 1, 1)
    gradients = F.conv2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), kernels, groups=channels)
    along_x, along_y = gradients.unflatten(1, (channels, 2)).unbind(dim=2)
    magnitude = (along_x.square() + along_y.square()).sqrt()
    bins = (torch.atan2(along_x, along_y) / torch.pi * num_bins).floor() % num_bins
    if gaussian_window:
        positions = torch.arange(gaussian_window, device=images.device, dtype=images.dtype)
        weights = torch.exp(-(((positions - (gaussian_window - 1) / 2) / (gaussian_window / 2)) ** 2) / 2)
        window = weights[:, None] * weights
        magnitude = magnitude * (window / window.sum()).tile(height // gaussian_window, width // gaussian_window)
    # A bin at a time: an array of all bins would be `num_bins` times as large as the images.
    histograms = [F.avg_pool2d(magnitude * (bins == index), cell_size, divisor_override=1) for index in range(num_bins)]
    return F.normalize(torch.stack(histograms, dim=2), dim=2)


class HOGTargets(TargetGenerator):
    """Histograms of oriented gradients (MaskFeat, arXiv 2112.09133), by channel, bin, row and column of the cell.

    `target_options`: num_bins (default 9), cell_size (8 pixels), gaussian_window (16 pixels; 0 for none).
    """

    options: ClassVar[dict[str, Any]] = {
        "num_bins": PositiveInt,
        "cell_size": PositiveInt,
        "gaussian_window": NonNegativeInt,
    }

    def __init__(self, config, patch_size: int):
        super().__init__(config, patch_size)
        self.settings = {"num_bins": 9, "cell_size": 8, "gaussian_window": 16, **config.target_options}
        cell_size = self.settings["cell_size"]
        if patch_size % cell_size != 0:
            raise ValueError(
                f"the cells of HOG targets must divide the patches: a patch has {patch_size} pixels a side, a cell "
                f"{cell_size}; set cell_size in target_options"
            )
        self.cells = patch_size // cell_size
        self.size = self.num_channels * self.settings["num_bins"] * self.cells**2

    @torch.no_grad()
    def __call__(self, pixel_values: torch.Tensor, target_pixel_values: torch.Tensor | None = None) -> torch.Tensor:
        window, size = self.settings["gaussian_window"], tuple(pixel_values.shape[-2:])
        if window and (size[0] % window or size[1] % window):
            raise ValueError(
                f"the gaussian_window of HOG targets must divide the image: it has {size[0]} x {size[1]} pixels, the "
                f"window {window} a side; 0 in target_options goes without"
            )
        with torch.autocast(pixel_values.device.type, enabled=False):
            cells = hog(to_float32(pixel_values), **self.settings).flatten(1, 2)
        patches = F.pixel_unshuffle(cells, self.cells)  # (B, C * bins * cells**2, rows, columns)
        return patches.flatten(2).transpose(1, 2)

    def render(self, targets: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Draws each histogram as lines across its cell, along the edges it describes, as bright as its squared bins.

        A histogram has the norm 1, so that a single direction is a bright line and no direction a grey spot.
        """
        size, num_bins = self.settings["cell_size"], self.settings["num_bins"]
        positions = torch.arange(size, device=targets.device) - (size - 1) / 2
        angles = (torch.arange(num_bins, device=targets.device) + 0.5) * torch.pi / num_bins
        distances = positions * angles.sin()[:, None, None] + positions[:, None] * angles.cos()[:, None, None]
        lines = torch.exp(-((distances / (size / 8)) ** 2) / 2)
        cells = targets.transpose(1, 2).unflatten(2, self.grid(pixel_values))
        cells = F.pixel_shuffle(cells, self.cells).unflatten(1, (self.num_channels, num_bins)).clamp(min=0).square()
        pictures = torch.einsum("bckhw,kyx->bchywx", cells, lines)
        return pictures.flatten(2, 3).flatten(3, 4)
