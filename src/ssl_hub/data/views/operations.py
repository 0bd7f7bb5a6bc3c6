"""Rotation and colour operations on a view that has its final size."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from . import batched
from .draws import Draws
from .options import check_keys, choice, interval, number

OPERATION_KEYS = ("rotation", "color_jitter", "grayscale", "gaussian_blur", "solarize")

# Its threads do not outlive the fork of a worker, and there is a worker for each core.
cv2.setNumThreads(0)


class Operation(NamedTuple):
    """What may be done to a view, in two ways that agree within rounding: an image by OpenCV, a batch by torch.

    On one core OpenCV takes a tenth of Pillow's time for hue and blur, a fifth for the other colors.
    """

    # Of the parameter that says whether it happens.
    name: str
    probability: float
    # The parameters besides, by name, each an array `(B, ...)`.
    draw: Callable[[Draws], dict[str, np.ndarray]]
    # From uint8 pixels (H, W, 3) and the image's parameters to such pixels.
    render: Callable[[np.ndarray, Mapping], np.ndarray]
    # From float pixels (N, 3, H, W) and their parameters to such pixels, see `batched.py`.
    render_batch: Callable[[torch.Tensor, Mapping], torch.Tensor]


def resize(pixels: np.ndarray, size: int, mode: str) -> np.ndarray:
    """Resize uint8 pixels `(H, W, 3)` to a square of `size`, antialiased; torch is the fastest at that."""
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    resized = interpolate(image, (size, size), mode=mode, antialias=True)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def build_operations(view: Mapping, where: str) -> list[Operation]:
    """The operations that a view names, in the order of their execution."""
    jitter, grayscale = _color_jitter(view, where), _grayscale(view, where)
    colors = [grayscale, jitter] if _grayscale_first(view) else [jitter, grayscale]
    operations = [_rotation(view, where), *colors, _gaussian_blur(view, where), _solarize(view, where)]
    return [operation for operation in operations if operation is not None and operation.probability > 0]


def draw_operations(operations: Sequence[Operation], draws: Draws) -> dict[str, np.ndarray]:
    """Whether each operation happens, and its parameters, by name."""
    drawn = {}
    for operation in operations:
        drawn[operation.name] = draws.happens(operation.probability)
        drawn |= operation.draw(draws)
    return drawn


def render_operations(pixels: np.ndarray, operations: Sequence[Operation], parameters: Mapping) -> np.ndarray:
    """Apply what was drawn for an image to its uint8 pixels `(H, W, 3)`."""
    for operation in operations:
        if parameters[operation.name]:
            pixels = operation.render(pixels, parameters)
    return pixels


def render_operations_batch(
    pixels: torch.Tensor, operations: Sequence[Operation], parameters: Mapping[str, np.ndarray]
) -> None:
    """Apply what was drawn for a batch to its pixels `(B, 3, H, W)`, in place."""
    for operation in operations:
        rows = np.flatnonzero(parameters[operation.name])
        batched.render_some(pixels, rows, operation.render_batch, parameters)


def _draw_nothing(draws: Draws) -> dict:
    return {}


def _draw_between(name: str, low: float, high: float) -> Callable[[Draws], dict[str, np.ndarray]]:
    return lambda draws: {name: low + draws.uniform() * (high - low)}


def _rotation(view: Mapping, where: str) -> Operation | None:
    degrees = number(view, where, "rotation", 0, high=180)
    if degrees == 0:
        return None
    return Operation("rotation", 1.0, _draw_between("angle", -degrees, degrees), _rotate, batched.rotate)


def _rotate(pixels: np.ndarray, parameters: Mapping) -> np.ndarray:
    return np.array(Image.fromarray(pixels).rotate(parameters["angle"]))


def _color_jitter(view: Mapping, where: str) -> Operation | None:
    if "color_jitter" not in view:
        return None
    jitter, where = view["color_jitter"], f"{where}.color_jitter"
    check_keys(jitter, where, ("p", "brightness", "contrast", "saturation", "hue"), required=["p"])
    strengths = {key: number(jitter, where, key, 0.0, high=100) for key in ("brightness", "contrast", "saturation")}
    intervals = {key: (max(0.0, 1 - strength), 1 + strength) for key, strength in strengths.items() if strength > 0}
    hue = number(jitter, where, "hue", 0.0, high=0.5)
    if hue > 0:
        intervals["hue"] = (-hue, hue)
    changes = [_CHANGES[key] for key in intervals]
    low, high = np.array(list(intervals.values())).reshape(-1, 2).T

    def draw(draws: Draws) -> dict[str, np.ndarray]:
        """As torchvision's `ColorJitter`: a factor of each change, and their order."""
        return {
            "factors": low + draws.uniform(len(changes)) * (high - low),
            "order": np.argsort(draws.uniform(len(changes)), axis=1),
        }

    def render(pixels: np.ndarray, parameters: Mapping) -> np.ndarray:
        factors = parameters["factors"].tolist()
        for i in parameters["order"].tolist():
            pixels = changes[i](pixels, factors[i])
        return pixels

    def render_batch(pixels: torch.Tensor, parameters: Mapping) -> torch.Tensor:
        """In each turn the hue of some images, and one of the other changes of all others at once."""
        names = np.array(list(intervals))
        for turn in parameters["order"].T:
            names_now, factors = names[turn], np.take_along_axis(parameters["factors"], turn[:, None], axis=1)[:, 0]
            turns_hue = names_now == "hue"
            if not turns_hue.all():
                kinds = names_now == "contrast", names_now == "saturation"
                pixels = batched.blend(pixels, np.where(turns_hue, 1.0, factors), *kinds)
            batched.render_some(pixels, np.flatnonzero(turns_hue), batched.turn_hue, {"hue": factors})
        return pixels

    return Operation("color_jitter", number(jitter, where, "p", high=1), draw, render, render_batch)


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


_CHANGES: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "brightness": _change_brightness,
    "contrast": _change_contrast,
    "saturation": _change_saturation,
    "hue": _turn_hue,
}


def _luma(pixels: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)


def _to_rgb(gray: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB)


def _grayscale(view: Mapping, where: str) -> Operation:
    if not isinstance(view.get("grayscale"), Mapping):
        probability, weights = number(view, where, "grayscale", 0.0, high=1), "luma"
    else:
        grayscale, where = view["grayscale"], f"{where}.grayscale"
        check_keys(grayscale, where, ("p", "weights", "before_jitter"), required=["p"])
        if not isinstance(grayscale.get("before_jitter", False), bool):
            raise ValueError(f"{where}: before_jitter must be true or false, got {grayscale['before_jitter']!r}.")
        probability = number(grayscale, where, "p", high=1)
        weights = choice(grayscale, where, "weights", "luma", tuple(_GRAYS))
    return Operation("grayscale", probability, _draw_nothing, *_GRAYS[weights])


def _luma_gray(pixels: np.ndarray, parameters: Mapping) -> np.ndarray:
    return _to_rgb(_luma(pixels))


def _mean_gray(pixels: np.ndarray, parameters: Mapping) -> np.ndarray:
    return cv2.transform(pixels, np.full((3, 3), 1 / 3, dtype=np.float32))


_GRAYS = {"luma": (_luma_gray, batched.luma_gray), "mean": (_mean_gray, batched.mean_gray)}


def _grayscale_first(view: Mapping) -> bool:
    return isinstance(view.get("grayscale"), Mapping) and view["grayscale"].get("before_jitter", False)


def _gaussian_blur(view: Mapping, where: str) -> Operation | None:
    if "gaussian_blur" not in view:
        return None
    blur, where = view["gaussian_blur"], f"{where}.gaussian_blur"
    check_keys(blur, where, ("p", "sigma"), required=["p"])
    draw = _draw_between("sigma", *interval(blur, where, "sigma", (0.1, 2.0)))
    return Operation("gaussian_blur", number(blur, where, "p", high=1), draw, _blur, batched.blur)


def _blur(pixels: np.ndarray, parameters: Mapping) -> np.ndarray:
    return cv2.GaussianBlur(pixels, (0, 0), parameters["sigma"], borderType=cv2.BORDER_REPLICATE)


def _solarize(view: Mapping, where: str) -> Operation | None:
    if "solarize" not in view:
        return None
    solarize, where = view["solarize"], f"{where}.solarize"
    check_keys(solarize, where, ("p", "threshold"), required=["p"])
    values = np.arange(256)
    threshold = number(solarize, where, "threshold", 128, high=255)
    table = np.where(values >= threshold, 255 - values, values).astype(np.uint8)
    return Operation(
        *("solarize", number(solarize, where, "p", high=1), _draw_nothing),
        partial(_look_up, table=table),
        partial(batched.solarize, threshold=threshold),
    )


def _look_up(pixels: np.ndarray, parameters: Mapping, table: np.ndarray) -> np.ndarray:
    return cv2.LUT(pixels, table)
