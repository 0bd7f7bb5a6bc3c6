"""The random resized crop, and what comes with it: a mask of its patches, the same crop once more as a target."""

import math
from collections.abc import Callable, Mapping

import cv2
import numpy as np
import torch

from . import batched
from .draws import Draws
from .mask import build_mask
from .operations import (
    OPERATION_KEYS,
    build_operations,
    draw_operations,
    render_operations,
    render_operations_batch,
    resize,
)
from .options import MAX_SIZE, check_keys, interpolation, interval, number, statistics
from .target import build_target

_KEYS = (
    *("kind", "count", "size", "scale", "ratio", "interpolation", "hflip", *OPERATION_KEYS),
    *("mask", "target", "mean", "std"),
)
_TRIES = 10


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
        self.scale = interval(view, where, "scale", (0.08, 1.0), high=1)
        self.ratio = interval(view, where, "ratio", (3 / 4, 4 / 3))
        self.hflip = number(view, where, "hflip", 0.0, high=1)
        self.operations = build_operations(view, where)
        self.mask = build_mask(view["mask"], f"{where}.mask", self.size) if "mask" in view else None
        self.target = build_target(view["target"], f"{where}.target") if "target" in view else None
        self._edge = max(self.size, 0 if self.target is None else self.target.size)
        self.statistics = {"pixel_values": statistics(view, where)}
        if self.target is not None:
            self.statistics["target_pixel_values"] = self.target.statistics

    def draw(self, heights: np.ndarray, widths: np.ndarray, draws: Draws) -> dict[str, np.ndarray]:
        """Draw crop, flip, operations and mask for images of these sizes in pixels."""
        drawn = {
            "box": draw_boxes(heights, widths, self.scale, self.ratio, draws),
            "hflip": draws.happens(self.hflip),
            **draw_operations(self.operations, draws),
        }
        if self.mask is not None:
            drawn["mask"] = self.mask.draw(draws)
        return drawn

    def resolution(self, parameters: Mapping[str, np.ndarray]) -> np.ndarray:
        """The share of the images' height and width at which the crop is as large as what is made of it."""
        box = parameters["box"]
        return self._edge / (box[..., 2:] - box[..., :2]).min(axis=-1)

    def largest_resolution(self, height: int, width: int) -> float:
        """What `resolution` is at most."""
        edge = math.sqrt(self.scale[0] * height * width * min(self.ratio[0], 1 / self.ratio[1]))
        return self._edge / max(1, math.floor(edge))

    def render(self, image: np.ndarray, parameters: Mapping) -> dict[str, torch.Tensor]:
        """Render what was drawn for an image from its RGB pixels `(H, W, 3)`."""
        top, left, bottom, right = parameters["box"].tolist()
        pixels = image[top:bottom, left:right]
        return self._outputs(parameters, lambda size, mode: self._finish(pixels, size, mode, parameters))

    def _finish(self, pixels: np.ndarray, size: int, mode: str, parameters: Mapping) -> torch.Tensor:
        pixels = resize(pixels, size, mode)
        if parameters["hflip"]:
            pixels = cv2.flip(pixels, 1)
        pixels = render_operations(pixels, self.operations, parameters)
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def render_batch(self, images: torch.Tensor, parameters: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """Render what was drawn for images `(B, H, W, 3)`, on their device."""
        return self._outputs(parameters, lambda size, mode: self._finish_batch(images, size, mode, parameters))

    def _finish_batch(self, images: torch.Tensor, size: int, mode: str, parameters: Mapping) -> torch.Tensor:
        rows = np.tile(np.arange(size), (len(images), 1))
        columns = np.where(parameters["hflip"][:, None], rows[:, ::-1], rows)
        pixels = batched.resize(images, parameters["box"], size, mode, rows, columns)
        render_operations_batch(pixels, self.operations, parameters)
        return pixels.to(torch.uint8)

    def _outputs(self, parameters: Mapping, finish: Callable[[int, str], torch.Tensor]) -> dict[str, torch.Tensor]:
        outputs = {"pixel_values": finish(self.size, self.interpolation)}
        if self.mask is not None:
            outputs["bool_masked_pos"] = torch.from_numpy(parameters["mask"])
        if self.target is not None:
            outputs["target_pixel_values"] = finish(self.target.size, self.target.interpolation)
        return outputs


def draw_boxes(
    heights: np.ndarray, widths: np.ndarray, scale: tuple[float, float], ratio: tuple[float, float], draws: Draws
) -> np.ndarray:
    """Boxes as torchvision's `RandomResizedCrop` draws them: the first of ten tries that fits, or else the centre.

    Returns:
        `(B, 4)`: top, left, bottom and right in pixels.
    """
    shares, aspects, tops, lefts = np.moveaxis(draws.uniform(_TRIES, 4), -1, 0)
    areas = (heights * widths)[:, None] * (scale[0] + shares * (scale[1] - scale[0]))
    low, high = np.log(ratio)
    aspects = np.exp(low + aspects * (high - low))
    edges = np.sqrt([areas / aspects, areas * aspects]).round()
    fits = np.all((edges > 0) & (edges <= np.stack([heights, widths])[:, :, None]), axis=0)

    first = np.arange(len(fits)), fits.argmax(axis=1)
    height, width = (edge[first] for edge in edges)
    drawn = (tops[first] * (heights - height + 1), lefts[first] * (widths - width + 1), height, width)
    nearest = np.clip(widths / heights, *ratio)
    height, width = (
        edge.round().clip(1) for edge in np.minimum([heights, widths], [widths / nearest, heights * nearest])
    )
    centre = ((heights - height) // 2, (widths - width) // 2, height, width)
    top, left, height, width = np.where(np.any(fits, axis=1), drawn, centre).astype(int)
    return np.stack([top, left, top + height, left + width], axis=1)
