"""Rotation and colour operations on a view that has its final size."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from .options import check_keys, choice, interval, number

OPERATION_KEYS = ("rotation", "color_jitter", "grayscale", "gaussian_blur", "solarize")

# Its threads do not outlive the fork of a worker, and there is a worker for each core.
cv2.setNumThreads(0)


class Operation(NamedTuple):
    """What may be done to a view.

    OpenCV renders: on one core it takes a tenth of Pillow's time for hue and blur, a fifth for the other colors.
    """

    probability: float
    # From meta tensors of the image's shape to the keywords of `render`, by torch's CPU generator.
    draw: Callable[[list[torch.Tensor]], dict]
    # From uint8 pixels (H, W, 3) to such pixels.
    render: Callable[..., np.ndarray]


def resize(pixels: np.ndarray, size: int, mode: v2.InterpolationMode) -> np.ndarray:
    """Resize uint8 pixels `(H, W, 3)` to a square of `size`, antialiased; torch is the fastest at that."""
    resized = functional.resize(torch.from_numpy(pixels.copy()).permute(2, 0, 1), [size, size], mode, antialias=True)
    return np.ascontiguousarray(resized.permute(1, 2, 0).numpy())


def build_operations(view: Mapping, where: str) -> list[Operation]:
    """The operations that a view names, in the order of their execution."""
    jitter, grayscale = _color_jitter(view, where), _grayscale(view, where)
    colors = [grayscale, jitter] if _grayscale_first(view) else [jitter, grayscale]
    operations = [_rotation(view, where), *colors, _gaussian_blur(view, where), _solarize(view, where)]
    return [operation for operation in operations if operation is not None and operation.probability > 0]


def draw_operations(operations: Sequence[Operation], height: int, width: int) -> list[dict | None]:
    """Parameters of each operation, None if it does not happen, for an image of `height` x `width` pixels."""
    shape = [torch.empty(3, height, width, device="meta")]
    return [
        operation.draw(shape) if torch.rand(()).item() < operation.probability else None for operation in operations
    ]


def render_operations(
    pixels: np.ndarray, operations: Sequence[Operation], parameters: Sequence[dict | None]
) -> np.ndarray:
    """Apply what was drawn to uint8 pixels `(H, W, 3)`."""
    for operation, drawn in zip(operations, parameters, strict=True):
        if drawn is not None:
            pixels = operation.render(pixels, **drawn)
    return pixels


def _draw_nothing(shape: list[torch.Tensor]) -> dict:
    return {}


def _rotation(view: Mapping, where: str) -> Operation | None:
    degrees = number(view, where, "rotation", 0, high=180)
    return Operation(1.0, v2.RandomRotation(degrees).make_params, _rotate) if degrees > 0 else None


def _rotate(pixels: np.ndarray, angle: float) -> np.ndarray:
    return np.array(Image.fromarray(pixels).rotate(angle))


def _color_jitter(view: Mapping, where: str) -> Operation | None:
    if "color_jitter" not in view:
        return None
    jitter, where = view["color_jitter"], f"{where}.color_jitter"
    check_keys(jitter, where, ("p", "brightness", "contrast", "saturation", "hue"), required=["p"])
    strengths = {key: number(jitter, where, key, 0.0, high=100) for key in ("brightness", "contrast", "saturation")}
    hue = number(jitter, where, "hue", 0.0, high=0.5)
    draw = v2.ColorJitter(**strengths, hue=hue).make_params
    return Operation(number(jitter, where, "p", high=1), draw, _jitter_colors)


def _jitter_colors(
    pixels: np.ndarray,
    fn_idx: torch.Tensor,
    brightness_factor: float | None,
    contrast_factor: float | None,
    saturation_factor: float | None,
    hue_factor: float | None,
) -> np.ndarray:
    """The factors of torchvision's `ColorJitter`, None for no change, in the order of `fn_idx`."""
    changes = (
        (_change_brightness, brightness_factor),
        (_change_contrast, contrast_factor),
        (_change_saturation, saturation_factor),
        (_turn_hue, hue_factor),
    )
    for i in fn_idx.tolist():
        change, factor = changes[i]
        if factor is not None:
            pixels = change(pixels, factor)
    return pixels


def _change_brightness(pixels: np.ndarray, factor: float) -> np.ndarray:
    return cv2.addWeighted(pixels, factor, pixels, 0, 0)


def _change_contrast(pixels: np.ndarray, factor: float) -> np.ndarray:
    mean = round(cv2.mean(_luma(pixels))[0])
    return cv2.addWeighted(pixels, factor, pixels, 0, (1 - factor) * mean)


def _change_saturation(pixels: np.ndarray, factor: float) -> np.ndarray:
    return cv2.addWeighted(pixels, factor, _to_rgb(_luma(pixels)), 1 - factor, 0)


def _turn_hue(pixels: np.ndarray, factor: float) -> np.ndarray:
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(int(factor * 255) % 256)  # it wraps, as hue does
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def _luma(pixels: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)


def _to_rgb(gray: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB)


def _grayscale(view: Mapping, where: str) -> Operation:
    if not isinstance(view.get("grayscale"), Mapping):
        return Operation(number(view, where, "grayscale", 0.0, high=1), _draw_nothing, _luma_gray)
    grayscale, where = view["grayscale"], f"{where}.grayscale"
    check_keys(grayscale, where, ("p", "weights", "before_jitter"), required=["p"])
    if not isinstance(grayscale.get("before_jitter", False), bool):
        raise ValueError(f"{where}: before_jitter must be true or false, got {grayscale['before_jitter']!r}.")
    weights = choice(grayscale, where, "weights", "luma", ("luma", "mean"))
    return Operation(
        number(grayscale, where, "p", high=1), _draw_nothing, _luma_gray if weights == "luma" else _mean_gray
    )


def _luma_gray(pixels: np.ndarray) -> np.ndarray:
    return _to_rgb(_luma(pixels))


def _mean_gray(pixels: np.ndarray) -> np.ndarray:
    return cv2.transform(pixels, np.full((3, 3), 1 / 3, dtype=np.float32))


def _grayscale_first(view: Mapping) -> bool:
    return isinstance(view.get("grayscale"), Mapping) and view["grayscale"].get("before_jitter", False)


def _gaussian_blur(view: Mapping, where: str) -> Operation | None:
    if "gaussian_blur" not in view:
        return None
    blur, where = view["gaussian_blur"], f"{where}.gaussian_blur"
    check_keys(blur, where, ("p", "sigma"), required=["p"])
    sigma = interval(blur, where, "sigma", (0.1, 2.0))
    return Operation(
        number(blur, where, "p", high=1), lambda shape: {"sigma": torch.empty(1).uniform_(*sigma).item()}, _blur
    )


def _blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(pixels, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)


def _solarize(view: Mapping, where: str) -> Operation | None:
    if "solarize" not in view:
        return None
    solarize, where = view["solarize"], f"{where}.solarize"
    check_keys(solarize, where, ("p", "threshold"), required=["p"])
    values = np.arange(256)
    threshold = number(solarize, where, "threshold", 128, high=255)
    table = np.where(values >= threshold, 255 - values, values).astype(np.uint8)
    return Operation(number(solarize, where, "p", high=1), _draw_nothing, partial(_look_up, table=table))


def _look_up(pixels: np.ndarray, table: np.ndarray) -> np.ndarray:
    return cv2.LUT(pixels, table)
