"""Batches whose views are rendered where the model is, all images at once."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from .loading import name_inputs
from .views import View

# Of the padded images that are rendered at once, as floats: a few times as much memory is in use.
_MAX_BYTES = 2**28


class BatchRenderer:
    """Makes of a batch of `collate_drawn` one of `collate`, on a device.

    Args:
        views: Those that were drawn.
        images: Of all rows of the dataset, where the batches bring none, see `cache_images`.
    """

    def __init__(self, views: Sequence[View], device: torch.device, images: Sequence[Tensor | str] = ()):
        self.views, self.device, self.images = views, device, images

    def __call__(self, batch: dict) -> dict:
        images = self._images(batch)
        outputs: list[list[dict[str, Tensor]]] = [[] for _ in self.views]
        for rows in _affordable([image.shape for image in images]):
            padded = _pad(images[rows])
            for view, drawn, rendered in zip(self.views, batch["drawn"], outputs, strict=True):
                rendered.append(view.render_batch(padded, {name: values[rows] for name, values in drawn.items()}))
        joined = [{name: torch.cat([part[name] for part in parts]) for name in parts[0]} for parts in outputs]
        rest = {name: value for name, value in batch.items() if name not in ("drawn", "sizes", "pixels")}
        return {**name_inputs(joined), **rest}

    def _images(self, batch: dict) -> list[Tensor]:
        if "pixels" not in batch:
            return [self.images[index] for index in batch["indices"].tolist()]
        pixels = batch["pixels"].to(self.device, non_blocking=True)
        parts = pixels.split([height * width * 3 for height, width in batch["sizes"]])
        return [part.view(height, width, 3) for part, (height, width) in zip(parts, batch["sizes"], strict=True)]


def _affordable(shapes: Sequence[tuple[int, ...]]) -> Iterator[slice]:
    """Parts of a batch that may be padded to one size each."""
    start, edges = 0, np.zeros(2, int)
    for i, shape in enumerate(shapes):
        larger = np.maximum(edges, shape[:2])
        if i > start and 12 * (i + 1 - start) * larger.prod() > _MAX_BYTES:
            yield slice(start, i)
            start, larger = i, np.array(shape[:2])
        edges = larger
    yield slice(start, len(shapes))


def _pad(images: Sequence[Tensor]) -> Tensor:
    """Uint8 `(N, H, W, 3)`, with 0 below and to the right."""
    if len({image.shape for image in images}) == 1:
        return torch.stack(tuple(images))
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    padded = images[0].new_zeros(len(images), height, width, 3)
    for place, image in zip(padded, images, strict=True):
        place[: image.shape[0], : image.shape[1]] = image
    return padded
