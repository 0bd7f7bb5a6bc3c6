"""The random resized crop, and what comes with it: a mask of its patches, the same crop once more as a target."""

from collections.abc import Mapping

import cv2
import numpy as np
import torch
from torchvision.transforms import v2

from .mask import build_mask
from .operations import OPERATION_KEYS, build_operations, draw_operations, render_operations, resize
from .options import MAX_SIZE, check_keys, interpolation, interval, number, statistics
from .target import build_target

_KEYS = (
    *("kind", "count", "size", "scale", "ratio", "interpolation", "hflip", *OPERATION_KEYS),
    *("mask", "target", "mean", "std"),
)


class CropView:
    """A random resized crop, flipped, with changed colors.

    Makes `pixel_values`, uint8 `(3, size, size)`. What is named is applied in this order:

    * `size` (pixels, by default the model's `image_size`), `scale` (share of the image's area, default [0.08, 1]),
      `ratio` (width / height, default [3/4, 4/3]), `interpolation` ("bicubic", the default, or "bilinear"; both
      antialiased): the random resized crop.
    * `hflip`: probability of a horizontal flip.
    * `rotation`: degrees; the angle is drawn from [-rotation, rotation]. Nearest neighbour, black outside.
    * `color_jitter`: `{p, brightness, contrast, saturation, hue}`, strengths as in torchvision (default 0).
    * `grayscale`: probability, or `{p, weights, before_jitter}`: weights "luma" (default) or "mean", and whether it
      comes before the color jitter (default false).
    * `gaussian_blur`: `{p, sigma: [low, high]}`, in pixels of the resized crop (default [0.1, 2]).
    * `solarize`: `{p, threshold}`: values from the threshold on (default 128) are inverted.

    And besides:

    * `mask`: see `build_mask`. Makes `bool_masked_pos`, bool `(num_patches,)`, row by row, True where a patch is
      removed.
    * `target`: see `build_target`. Makes `target_pixel_values`, the same crop at another size, with the same flip,
      rotation and colors.
    * `mean`, `std`: what `pixel_values` are normalised with (default: the model's).
    """

    def __init__(self, view: Mapping, where: str):
        check_keys(view, where, _KEYS, required=["size"])
        self.size = number(view, where, "size", low=1, high=MAX_SIZE, integer=True)
        self.interpolation = interpolation(view, where)
        self.crop = v2.RandomResizedCrop(
            self.size,
            scale=interval(view, where, "scale", (0.08, 1.0), high=1),
            ratio=interval(view, where, "ratio", (3 / 4, 4 / 3)),
        )
        self.hflip = number(view, where, "hflip", 0.0, high=1)
        self.operations = build_operations(view, where)
        self.mask = build_mask(view["mask"], f"{where}.mask", self.size) if "mask" in view else None
        self.target = build_target(view["target"], f"{where}.target") if "target" in view else None
        self.statistics = {"pixel_values": statistics(view, where)}
        if self.target is not None:
            self.statistics["target_pixel_values"] = self.target.statistics

    def draw(self, height: int, width: int) -> dict:
        """Draw crop, flip, operations and mask for an image of `height` x `width` pixels."""
        return {
            "image_size": (height, width),
            "crop": self.crop.make_params([torch.empty(3, height, width, device="meta")]),
            "hflip": torch.rand(()).item() < self.hflip,
            "operations": draw_operations(self.operations, self.size, self.size),
            "mask": None if self.mask is None else self.mask.draw(),
        }

    def resolution(self, parameters: dict) -> float:
        """The share of the image's height and width at which the crop is as large as what is made of it."""
        crop, target = parameters["crop"], 0 if self.target is None else self.target.size
        return max(self.size, target) / min(crop["height"], crop["width"])

    def render(self, image: np.ndarray, parameters: dict) -> dict[str, torch.Tensor]:
        """Render what `draw` drew for RGB pixels `(H, W, 3)` of that size, or of `resolution` times that size."""
        crop, (height, width) = parameters["crop"], parameters["image_size"]
        down, right = image.shape[0] / height, image.shape[1] / width
        top, left = round(crop["top"] * down), round(crop["left"] * right)
        bottom, end = round((crop["top"] + crop["height"]) * down), round((crop["left"] + crop["width"]) * right)
        pixels = image[top:bottom, left:end]
        outputs = {"pixel_values": self._finish(pixels, self.size, self.interpolation, parameters)}
        if self.mask is not None:
            outputs["bool_masked_pos"] = parameters["mask"]
        if self.target is not None:
            target = self._finish(pixels, self.target.size, self.target.interpolation, parameters)
            outputs["target_pixel_values"] = target
        return outputs

    def _finish(self, pixels: np.ndarray, size: int, mode: v2.InterpolationMode, parameters: dict) -> torch.Tensor:
        pixels = resize(pixels, size, mode)
        if parameters["hflip"]:
            pixels = cv2.flip(pixels, 1)
        pixels = render_operations(pixels, self.operations, parameters["operations"])
        return torch.from_numpy(pixels).permute(2, 0, 1)
