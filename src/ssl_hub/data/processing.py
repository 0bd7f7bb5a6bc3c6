"""From 8-bit pixels to what a model takes, and back."""

from collections.abc import Mapping, Sequence

import torch
from transformers import BitImageProcessor

from .views import View


class Normalize(torch.nn.Module):
    """Normalise batches on their device.

    Args:
        mean, std: Of the red, green and blue channel, in units where 1 is white.
        views: The views of the batches (see `build_views`), which may have statistics of their own.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], views: Sequence[View] = ()):
        super().__init__()
        _check_statistics(mean, std)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        # For each name one module a view that makes it, in the order of the views.
        self.by_name = torch.nn.ModuleDict()
        for view in views:
            for name, own in view.statistics.items():
                if name not in self.by_name:
                    self.by_name[name] = torch.nn.ModuleList()
                self.by_name[name].append(Normalize(*(own or (mean, std))))

    def forward(self, batch):
        """Turn images of 8 bits into float32 `(pixels / 255 - mean) / std`.

        Args:
            batch: Images `(..., 3, H, W)`, a list of such views, or a batch of the training loader, a dict by name: its
                uint8 tensors are normalised, the rest is passed through.
        """
        if isinstance(batch, Mapping):
            return {name: self._by_name(name, value) for name, value in batch.items()}
        if isinstance(batch, list):
            return [self(view) for view in batch]
        return (batch.float() / 255).sub_(self.mean).div_(self.std)

    def _by_name(self, name: str, value):
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(pixels, torch.Tensor) and pixels.dtype == torch.uint8 for pixels in values):
            return value
        modules = self.by_name[name] if name in self.by_name else [self] * len(values)
        normalized = [module(pixels) for module, pixels in zip(modules, values, strict=True)]
        return normalized if isinstance(value, list) else normalized[0]

    def denormalize(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Turn normalised pixels `(..., 3, H, W)` back into an image with values from 0 to 1 (what is beyond is cut)."""
        return (pixel_values * self.std + self.mean).clamp(0, 1)


def build_image_processor(
    image_size: int, mean: Sequence[float], std: Sequence[float], crop_ratio: float = 224 / 256
) -> BitImageProcessor:
    """Build the usual image processor of evaluation: resize (bicubic), centre crop, normalise.

    Args:
        image_size: Edge of the crop, in pixels.
        mean, std: As in `Normalize`.
        crop_ratio: Edge of the crop over the shortest edge of the resized image, in (0, 1].
    """
    _check_statistics(mean, std)
    if not isinstance(image_size, int) or image_size < 1 or not 0 < crop_ratio <= 1:
        raise ValueError(
            f"image_size must be a whole number of at least 1 and crop_ratio in (0, 1], got {image_size=}, {crop_ratio=}."
        )
    return BitImageProcessor(
        size={"shortest_edge": round(image_size / crop_ratio)},
        crop_size={"height": image_size, "width": image_size},
        image_mean=list(mean),
        image_std=list(std),
    )


def _check_statistics(mean: Sequence[float], std: Sequence[float]) -> None:
    if len(mean) == len(std) != 3:
        raise ValueError(
            f"datasets give RGB images, so a model that is trained on them needs num_channels=3; this one has {len(mean)} "
            "values of image_mean and image_std, one a channel. Set num_channels of its backbone_config to 3, or call the "
            "model with tensors that you made yourself."
        )
    valid = len(mean) == len(std) == 3 and all(-1 <= m <= 1 for m in mean) and all(0 < s <= 2 for s in std)
    if not valid:
        raise ValueError(
            f"mean and std must be three numbers each, in units where 1 is white, got {mean=} and {std=}. "
            "Divide statistics of 0..255 pixels by 255."
        )
