"""Targets that are the image's own pixels."""

from typing import Any, ClassVar

import torch

from ...field_types import PositiveFloat
from ..losses import to_float32
from ..masking import patchify, unpatchify
from .base import TargetGenerator, normalize


class PixelTargets(TargetGenerator):
    """The normalised pixels of a patch, by row, column and channel."""

    def __init__(self, config, patch_size: int):
        super().__init__(config, patch_size)
        self.size = patch_size**2 * self.num_channels

    @torch.no_grad()
    def __call__(self, pixel_values: torch.Tensor, target_pixel_values: torch.Tensor | None = None) -> torch.Tensor:
        return patchify(self.images(to_float32(pixel_values)), self.patch_size)

    def images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return pixel_values

    def render(self, targets: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.denormalize(unpatchify(targets, self.patch_size, self.num_channels, self.grid(pixel_values)))


class NormalizedPixelTargets(PixelTargets):
    """Pixels, normalised by mean and variance of their own patch (MAE, arXiv 2111.06377)."""

    @torch.no_grad()
    def __call__(self, pixel_values: torch.Tensor, target_pixel_values: torch.Tensor | None = None) -> torch.Tensor:
        patches = super().__call__(pixel_values)
        mean, std = self.statistics(patches)
        return (patches - mean) / std

    def render(self, targets: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        mean, std = self.statistics(super().__call__(pixel_values))
        return super().render(targets * std + mean, pixel_values)

    def statistics(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return patches.mean(dim=-1, keepdim=True), (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()


class LowFrequencyTargets(PixelTargets):
    """Pixels without their high frequencies (PixMIM, arXiv 2303.02416).

    `target_options`: radius, in periods an image (default 40): frequencies above it are left out.
    """

    options: ClassVar[dict[str, Any]] = {"radius": PositiveFloat}

    def __init__(self, config, patch_size: int):
        super().__init__(config, patch_size)
        self.radius = config.target_options.get("radius", 40)

    def images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        height, width = pixel_values.shape[-2:]
        # The disc lies about the middle of the spectrum, between its four central entries where their number is even.
        rows, columns = (torch.arange(size, device=pixel_values.device) - (size - 1) / 2 for size in (height, width))
        disc = rows[:, None] ** 2 + columns**2 <= self.radius**2
        spectrum = torch.fft.fftshift(torch.fft.fft2(self.denormalize(pixel_values)), dim=(-2, -1))
        images = torch.fft.ifft2(torch.fft.ifftshift(spectrum * disc, dim=(-2, -1))).abs()
        return normalize(images, self.image_mean, self.image_std)
