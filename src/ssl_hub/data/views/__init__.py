"""A recipe's list of views: what is drawn for an image, and the tensors that are rendered from it."""

import logging
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch

from .crop import CropView
from .draws import Draws
from .options import choice, number
from .patches import PatchesView

logger = logging.getLogger(__name__)

# More is a slip of the pen that would fill the memory.
_MAX_COUNT = 100
_KINDS = {"crop": CropView, "patches": PatchesView}

# What a view can make besides `pixel_values`: name of the input -> key of a recipe's view that makes it.
INPUT_KEYS = {"bool_masked_pos": "mask", "target_pixel_values": "target"}


class View(Protocol):
    """A way to show an image.

    Drawing is apart from rendering: draws are numbers that are the same on every machine, drawn for a whole batch on the
    CPU. Rendering is deterministic, of one image by OpenCV or of a batch on its device; both agree within rounding.

    What is drawn is a dict of arrays `(B, ...)` by name. Its `box`, `(B, 4)`, has top, left, bottom and right of what is
    seen of each image, in pixels; whoever renders from a reduced image reduces it too.
    """

    # Of each image that `render` makes: the (mean, std) it is normalised with, None for the model's.
    statistics: dict[str, tuple[tuple[float, ...], tuple[float, ...]] | None]

    def draw(self, heights: np.ndarray, widths: np.ndarray, draws: Draws) -> dict[str, np.ndarray]:
        """Draw the parameters for B images of these sizes in pixels."""

    def resolution(self, parameters: Mapping[str, np.ndarray]) -> np.ndarray:
        """The share of each image's height and width that is enough to render what was drawn; above 1 all is needed."""

    def largest_resolution(self, height: int, width: int) -> float:
        """What that is at most, whatever is drawn for an image of this size."""

    def render(self, image: np.ndarray, parameters: Mapping) -> dict[str, torch.Tensor]:
        """Turn RGB pixels `(H, W, 3)` and the parameters of this image into named tensors, images as uint8."""

    def render_batch(self, images: torch.Tensor, parameters: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """Turn uint8 pixels `(B, H, W, 3)`, padded to one size, into tensors `(B, ...)` of these names and types."""


def build_views(views: Sequence[Mapping], image_size: int | None = None) -> list[View]:
    """Turn a recipe's view list into one view for each that a sample gets.

    An entry has a `kind`, "crop" (the default, see `CropView`) or "patches" (see `PatchesView`), a `count`, how many
    views are drawn this way (default 1), and the keys of its kind.

    Args:
        views: The entries.
        image_size: Of the model, in pixels: the `size` of crops that give none.

    Raises:
        ValueError: A key is unknown or missing, or a value is out of its range.
    """
    if not isinstance(views, Sequence) or isinstance(views, str) or not views:
        raise ValueError(f"views must be a list of one or more views such as {{'size': 224}}, got {views!r}.")
    built = []
    for i, view in enumerate(views):
        where = f"views[{i}]"
        if not isinstance(view, Mapping):
            raise ValueError(f"{where} must be a mapping such as {{'size': 224}}, got {view!r}.")
        kind = _KINDS[choice(view, where, "kind", "crop", tuple(_KINDS))]
        if kind is CropView and image_size is not None:
            view = {"size": image_size, **view}
        built += [kind(view, where)] * number(view, where, "count", 1, low=1, high=_MAX_COUNT, integer=True)
    sizes = {view.size for view in built if isinstance(view, CropView)}
    if image_size is not None and sizes and image_size not in sizes:
        logger.warning(
            "the model is for images of %d pixels (image_size), and the views have %s: leave their size out where it is to "
            "be the model's",
            *(image_size, ", ".join(map(str, sorted(sizes)))),
        )
    return built
