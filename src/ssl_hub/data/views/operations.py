"""Rotation and colour operations on a view that has its final size."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from PIL import Image, ImageFilter
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from .options import check_keys, choice, interval, number

OPERATION_KEYS = ("rotation", "color_jitter", "grayscale", "gaussian_blur", "solarize")


class Operation(NamedTuple):
    """`transform.make_params` draws, `transform.transform` renders."""

    probability: float
    transform: v2.Transform


def build_operations(view: Mapping, where: str) -> list[Operation]:
    """The operations that a view names, in the order of their execution."""
    jitter, grayscale = _color_jitter(view, where), _grayscale(view, where)
    colors = [grayscale, jitter] if _grayscale_first(view) else [jitter, grayscale]
    operations = [_rotation(view, where), *colors, _gaussian_blur(view, where), _solarize(view, where)]
    return [operation for operation in operations if operation is not None and operation.probability > 0]


def draw_operations(operations: Sequence[Operation], height: int, width: int) -> list[dict | None]:
    """Parameters of each operation, None if it does not happen, for an image of `height` x `width` pixels."""
    shape = [torch.empty(3, height, width, device="meta")]  # `make_params` reads no more than the shape
    return [
        operation.transform.make_params(shape) if torch.rand(()).item() < operation.probability else None
        for operation in operations
    ]


def render_operations(
    pixels: torch.Tensor, operations: Sequence[Operation], parameters: Sequence[dict | None]
) -> torch.Tensor:
    """Apply what was drawn to uint8 pixels `(3, H, W)`."""
    drawn = [
        (operation.transform, drawn)
        for operation, drawn in zip(operations, parameters, strict=True)
        if drawn is not None
    ]
    if not drawn:
        return pixels
    # Pillow is twice as fast as torch for colors, 30 times for the blur; the way there and back costs little on a crop.
    image = functional.to_pil_image(pixels, "RGB")
    for transform, values in drawn:
        image = transform.transform(image, values)
    return functional.pil_to_tensor(image)


class _PILGaussianBlur(v2.Transform):
    """Pillow's blur, as in the MoCo and SimCLR papers' code; 30 times faster than v2.GaussianBlur's convolution."""

    def __init__(self, sigma: tuple[float, float]):
        super().__init__()
        self.sigma = sigma

    def make_params(self, flat_inputs):
        return {"sigma": torch.empty(1).uniform_(*self.sigma).item()}

    def transform(self, inpt, params):
        return inpt.filter(ImageFilter.GaussianBlur(params["sigma"]))


class _MeanGrayscale(v2.Transform):
    """The plain mean of the channels, rounded, where `v2.RandomGrayscale` takes the luma."""

    def transform(self, inpt: Image.Image, params):
        return inpt.convert("L", (1 / 3, 1 / 3, 1 / 3, 0)).convert("RGB")


def _rotation(view: Mapping, where: str) -> Operation | None:
    degrees = number(view, where, "rotation", 0, high=180)
    return Operation(1.0, v2.RandomRotation(degrees)) if degrees > 0 else None


def _color_jitter(view: Mapping, where: str) -> Operation | None:
    if "color_jitter" not in view:
        return None
    jitter, where = view["color_jitter"], f"{where}.color_jitter"
    check_keys(jitter, where, ("p", "brightness", "contrast", "saturation", "hue"), required=["p"])
    strengths = {key: number(jitter, where, key, 0.0, high=100) for key in ("brightness", "contrast", "saturation")}
    hue = number(jitter, where, "hue", 0.0, high=0.5)
    return Operation(number(jitter, where, "p", high=1), v2.ColorJitter(**strengths, hue=hue))


def _grayscale(view: Mapping, where: str) -> Operation:
    if not isinstance(view.get("grayscale"), Mapping):
        return Operation(number(view, where, "grayscale", 0.0, high=1), v2.RandomGrayscale())
    grayscale, where = view["grayscale"], f"{where}.grayscale"
    check_keys(grayscale, where, ("p", "weights", "before_jitter"), required=["p"])
    if not isinstance(grayscale.get("before_jitter", False), bool):
        raise ValueError(f"{where}: before_jitter must be true or false, got {grayscale['before_jitter']!r}.")
    weights = choice(grayscale, where, "weights", "luma", ("luma", "mean"))
    transform = v2.RandomGrayscale() if weights == "luma" else _MeanGrayscale()
    return Operation(number(grayscale, where, "p", high=1), transform)


def _grayscale_first(view: Mapping) -> bool:
    return isinstance(view.get("grayscale"), Mapping) and view["grayscale"].get("before_jitter", False)


def _gaussian_blur(view: Mapping, where: str) -> Operation | None:
    if "gaussian_blur" not in view:
        return None
    blur, where = view["gaussian_blur"], f"{where}.gaussian_blur"
    check_keys(blur, where, ("p", "sigma"), required=["p"])
    return Operation(number(blur, where, "p", high=1), _PILGaussianBlur(interval(blur, where, "sigma", (0.1, 2.0))))


def _solarize(view: Mapping, where: str) -> Operation | None:
    if "solarize" not in view:
        return None
    solarize, where = view["solarize"], f"{where}.solarize"
    check_keys(solarize, where, ("p", "threshold"), required=["p"])
    threshold = number(solarize, where, "threshold", 128, high=255)
    return Operation(number(solarize, where, "p", high=1), v2.RandomSolarize(threshold))
