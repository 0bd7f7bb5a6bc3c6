"""A dataset decoded once, for runs that show its images many times."""

from collections.abc import Sequence

import datasets
import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .datasets import is_remote
from .images import EncodedImage, UnreadableImageError
from .views import View
from .workers import outlive_stop_signals

_IMAGES_AT_ONCE = 64
# Images that tell the size of all.
_NUM_SAMPLED = 256


def cache_images(
    dataset: "datasets.Dataset | datasets.IterableDataset",
    views: Sequence[View],
    device: torch.device,
    *,
    num_workers: int = 0,
) -> list[Tensor | str]:
    """Decode all images of a dataset, no larger than its views can need them.

    Args:
        dataset: What `load_image_dataset` returned.
        device: Where they are kept; "cpu" is main memory, which worker processes share.

    Returns:
        uint8 `(H, W, 3)`, one a row, or the name of an image that could not be read.

    Raises:
        ValueError: The dataset is streamed, or needs more memory than is free.
    """
    if isinstance(dataset, datasets.IterableDataset):
        raise ValueError("--cache_images needs rows by index: leave out --streaming.")
    loader = DataLoader(
        _DecodedImages(dataset, views),
        batch_size=_IMAGES_AT_ONCE,
        collate_fn=_join,
        num_workers=num_workers,
        worker_init_fn=outlive_stop_signals,
        generator=torch.Generator(),
    )
    images: list[Tensor | str] = []
    size = 0
    for sizes, pixels in loader:
        _check_room(len(images) + len(sizes), len(dataset), size + pixels.numel(), size, device)
        size += pixels.numel()
        parts = iter(pixels.to(device).split([s[0] * s[1] * 3 for s in sizes if not isinstance(s, str)]))
        images += [s if isinstance(s, str) else next(parts).view(*s, 3) for s in sizes]
    return images


def estimate_cache_size(dataset: datasets.Dataset, views: Sequence[View]) -> int:
    """The bytes that `cache_images` keeps, by a random sample of the images."""
    decoded = _DecodedImages(dataset, views)
    rows = np.random.default_rng(0).permutation(len(dataset))[:_NUM_SAMPLED]
    sizes = [image.nbytes for image in decoded.__getitems__(rows.tolist()) if not isinstance(image, str)]
    return round(sum(sizes) / len(rows) * len(dataset))


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free where `device` keeps tensors; None where nothing says."""
    if device.type == "cpu":
        return psutil.virtual_memory().available
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def _check_room(decoded: int, total: int, size: int, kept: int, device: torch.device) -> None:
    """Goes by the images decoded so far, which have `size` bytes, `kept` of them in place already."""
    free = free_memory(device)
    needed = size / decoded * total
    if free is not None and needed > free + kept:
        where = "main memory" if device.type == "cpu" else str(device)
        raise ValueError(
            f"--cache_images needs about {needed / 2**30:.2g} GiB for {total} images, and {where} has "
            f"{(free + kept) / 2**30:.2g} GiB: leave it out, or make the images smaller."
        )


class _DecodedImages(Dataset):
    """uint8 `(H, W, 3)`, or the name of an image that cannot be read."""

    def __init__(self, dataset: datasets.Dataset, views: Sequence[View]):
        self.dataset, self.views, self.remote = dataset, views, is_remote(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[int]) -> list[np.ndarray | str]:
        rows = self.dataset.__getitems__(indices)
        return [self._decode(row, index) for row, index in zip(rows, indices, strict=True)]

    def _decode(self, row: dict, index: int) -> np.ndarray | str:
        try:
            image = EncodedImage(row["image"], f"row {index}", remote=self.remote)
            return image.pixels(max(view.largest_resolution(image.height, image.width) for view in self.views))
        except UnreadableImageError as error:
            return error.name


def _join(images: list[np.ndarray | str]) -> tuple[list[tuple[int, int] | str], Tensor]:
    """Sizes, and all pixels in a row: one block of memory is sent by a worker and kept."""
    pixels = [image.reshape(-1) for image in images if not isinstance(image, str)]
    sizes = [image if isinstance(image, str) else image.shape[:2] for image in images]
    return sizes, torch.from_numpy(np.concatenate([np.empty(0, np.uint8), *pixels]))
