"""A recipe's list of views as torchvision transforms."""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real

import torch
from PIL import Image, ImageFilter
from torchvision.transforms import v2

_INTERPOLATIONS = ("bicubic", "bilinear")
_VIEW_KEYS = (
    *("count", "size", "scale", "ratio", "interpolation", "hflip"),
    *("color_jitter", "grayscale", "gaussian_blur", "solarize"),
)
_JITTER_KEYS = ("p", "brightness", "contrast", "saturation", "hue")


def build_views(views: Sequence[Mapping]) -> list[Callable[[Image.Image], torch.Tensor]]:
    """Turn a recipe's view list into transforms, one for each view that a sample gets.

    Each entry has a `size` and any of the other keys. What is named is applied in this order:

    * `count`: how many views are drawn this way (default 1).
    * `size` (pixels), `scale` (share of the image's area, default [0.08, 1]), `ratio` (width / height, default
      [3/4, 4/3]), `interpolation` ("bicubic", the default, or "bilinear"; both antialiased): the random resized crop.
    * `hflip`: probability of a horizontal flip.
    * `color_jitter`: `{p, brightness, contrast, saturation, hue}`, strengths as in torchvision (default 0).
    * `grayscale`: probability.
    * `gaussian_blur`: `{p, sigma: [low, high]}`, in pixels of the resized crop (default [0.1, 2]).
    * `solarize`: `{p, threshold}`: values from the threshold on (default 128) are inverted.

    Returns:
        Transforms from an RGB PIL image to a uint8 tensor `(3, size, size)`. They draw from torch's CPU generator.

    Raises:
        ValueError: A key is unknown or missing, or a value is out of its range.
    """
    if not isinstance(views, Sequence) or isinstance(views, str) or not views:
        raise ValueError(f"views must be a list of one or more views such as {{'size': 224}}, got {views!r}.")
    transforms = []
    for i, view in enumerate(views):
        where = f"views[{i}]"
        _check_keys(view, where, _VIEW_KEYS, required="size")
        transforms += [_build_view(view, where)] * _number(view, where, "count", 1, low=1, integer=True)
    return transforms


class _PILGaussianBlur(v2.Transform):
    """Pillow's blur, as in the MoCo and SimCLR papers' code; 30 times faster than v2.GaussianBlur's convolution."""

    def __init__(self, sigma: tuple[float, float]):
        super().__init__()
        self.sigma = sigma

    def make_params(self, flat_inputs):
        return {"sigma": torch.empty(1).uniform_(*self.sigma).item()}

    def transform(self, inpt, params):
        return inpt.filter(ImageFilter.GaussianBlur(params["sigma"]))


def _build_view(view: Mapping, where: str) -> v2.Transform:
    size = _number(view, where, "size", low=1, integer=True)
    interpolation = view.get("interpolation", "bicubic")
    if interpolation not in _INTERPOLATIONS:
        raise ValueError(f"{where}: interpolation must be one of {_INTERPOLATIONS}, got {interpolation!r}.")
    crop = v2.RandomResizedCrop(
        size,
        scale=_interval(view, where, "scale", (0.08, 1.0), high=1),
        ratio=_interval(view, where, "ratio", (3 / 4, 4 / 3)),
        interpolation=v2.InterpolationMode(interpolation),
    )
    flip = v2.RandomHorizontalFlip(_number(view, where, "hflip", 0.0, high=1))
    grayscale = v2.RandomGrayscale(_number(view, where, "grayscale", 0.0, high=1))
    colors = [_color_jitter(view, where), grayscale, _gaussian_blur(view, where), _solarize(view, where)]
    colors = [transform for transform in colors if transform is not None and transform.p > 0]

    # On one core torch crops and resizes uint8 two to three times faster than Pillow, and Pillow is the faster one for
    # colors (twice) and the blur. The way from the one to the other and back costs little on the resized crop.
    steps = [v2.PILToTensor(), crop, flip]
    if colors:
        steps += [v2.ToPILImage("RGB"), *colors, v2.PILToTensor()]
    return v2.Compose(steps)


def _color_jitter(view: Mapping, where: str) -> v2.Transform | None:
    if "color_jitter" not in view:
        return None
    jitter, where = view["color_jitter"], f"{where}.color_jitter"
    _check_keys(jitter, where, _JITTER_KEYS, required="p")
    strengths = {key: _number(jitter, where, key, 0.0) for key in ("brightness", "contrast", "saturation")}
    hue = _number(jitter, where, "hue", 0.0, high=0.5)
    return v2.RandomApply([v2.ColorJitter(**strengths, hue=hue)], p=_number(jitter, where, "p", high=1))


def _gaussian_blur(view: Mapping, where: str) -> v2.Transform | None:
    if "gaussian_blur" not in view:
        return None
    blur, where = view["gaussian_blur"], f"{where}.gaussian_blur"
    _check_keys(blur, where, ("p", "sigma"), required="p")
    sigma = _interval(blur, where, "sigma", (0.1, 2.0))
    return v2.RandomApply([_PILGaussianBlur(sigma)], p=_number(blur, where, "p", high=1))


def _solarize(view: Mapping, where: str) -> v2.Transform | None:
    if "solarize" not in view:
        return None
    solarize, where = view["solarize"], f"{where}.solarize"
    _check_keys(solarize, where, ("p", "threshold"), required="p")
    return v2.RandomSolarize(
        threshold=_number(solarize, where, "threshold", 128, high=255), p=_number(solarize, where, "p", high=1)
    )


def _check_keys(given: Mapping, where: str, allowed: Sequence[str], required: str) -> None:
    if not isinstance(given, Mapping):
        raise ValueError(f"{where} must be a mapping with keys out of {', '.join(allowed)}; got {given!r}.")
    for key in given:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{where} has the unknown key {key!r}; allowed are {', '.join(allowed)}.{hint}")
    if required not in given:
        raise ValueError(f"{where} needs the key {required!r}, got {dict(given)!r}.")


def _number(given: Mapping, where: str, key: str, default=None, *, low=0, high=math.inf, integer=False):
    value = given.get(key, default)
    kind = int if integer else Real
    if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high:
        what = "a whole number" if integer else "a number"
        limits = f"of at least {low}" if high == math.inf else f"from {low} to {high}"
        raise ValueError(f"{where}: {key} must be {what} {limits}, got {value!r}.")
    return value


def _interval(given: Mapping, where: str, key: str, default: tuple, high=math.inf) -> tuple[float, float]:
    value = given.get(key, default)
    numbers = isinstance(value, list | tuple) and all(isinstance(v, Real) for v in value)
    if not numbers or len(value) != 2 or not 0 < value[0] <= value[1] <= high or math.isinf(value[1]):
        limit = "" if high == math.inf else f" <= {high}"
        raise ValueError(f"{where}: {key} must be [low, high] with 0 < low <= high{limit}, got {value!r}.")
    return tuple(value)
