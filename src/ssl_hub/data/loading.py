"""Batches for training and evaluation: the same ones whatever the number of workers or processes."""

import time
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import cycle, islice

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ssl_hub.data.datasets import is_remote
from ssl_hub.data.images import DecodedImage, EncodedImage, UnreadableImageError, decode_image
from ssl_hub.data.sampling import NO_EPOCH, EpochBatchSampler, StreamBatchSampler, ViewKey
from ssl_hub.data.views import Draws, View
from ssl_hub.data.workers import outlive_stop_signals

# The second word of the entropy that views are seeded with, see `sampling`.
_VIEW_STREAM = int.from_bytes(b"view", "big")
# Files that a process holds open; drawing for more at once would not be faster.
_IMAGES_AT_ONCE = 64


def build_train_loader(
    dataset: "datasets.Dataset | datasets.IterableDataset",
    views: Sequence[View],
    *,
    batch_size: int,
    seed: int,
    num_processes: int = 1,
    process_index: int = 0,
    num_workers: int = 0,
    pin_memory: bool = False,
    shuffle_buffer_size: int = 10_000,
    images: "Sequence[torch.Tensor | str] | None" = None,
    rendered: bool = True,
) -> DataLoader:
    """Load this process's share of shuffled, augmented batches, as `collate` makes them.

    `loader.batch_sampler.set_epoch(epoch, start_batch, weights)` says what the next `iter(loader)` begins with. The
    loader leaves torch's global generators alone, and must not be sharded once more (by `Accelerator.prepare`, say).

    Args:
        dataset: What `load_image_dataset` returned.
        views: What `build_views` returned.
        batch_size: Samples a batch of one process. An incomplete last batch of an epoch is dropped.
        seed: Of the order and of the views.
        num_processes, process_index: The processes that train together, and which one of them this is. Side by side
            their batches are those of one process with `batch_size * num_processes`.
        shuffle_buffer_size: Rows of a streamed dataset that are held in memory to shuffle it.
        images: What `cache_images` made of the dataset.
        rendered: Whether the views are rendered. If not, batches are those of `collate_drawn`, for a `BatchRenderer`; they
            have no pixels where the images are on the meta device.

    Raises:
        ValueError: The dataset has fewer rows than a batch of all processes, or a number makes no sense.
    """
    sampling = (batch_size, seed, num_processes, process_index)
    if isinstance(dataset, datasets.IterableDataset):
        batch_sampler = StreamBatchSampler(dataset, *sampling, shuffle_buffer_size=shuffle_buffer_size)
    else:
        batch_sampler = EpochBatchSampler(len(dataset), *sampling)
    return DataLoader(
        ViewDataset(dataset, views, seed, images=images, rendered=rendered),
        batch_sampler=batch_sampler,
        collate_fn=collate if rendered else collate_drawn,
        num_workers=num_workers,
        worker_init_fn=outlive_stop_signals,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        generator=torch.Generator(),  # its own, or each epoch would take a number from the global one
    )


class ViewDataset(Dataset):
    """Views of the images of a dataset, drawn from (seed, epoch, index) and how often the epoch showed the index before.

    `self[key]`, with a `ViewKey` or its first values `(epoch, index)`, is a dict of
        * views: the named tensors that each view renders,
        * index: the row that they show,
        * unreadable: the names of the images that could not be read on the way.

    An unreadable image is replaced by the next readable one. A streamed one has no next: its `views` are None, and
    `collate` puts another one of the batch in its place.

    Args:
        images: What `cache_images` made of the dataset, whose rows are not read then.
        rendered: If not, the views of a sample are what was drawn for them, and it has `pixels` besides, uint8
            `(H, W, 3)`: what the views see of the image. Images on the meta device have none.
    """

    def __init__(self, dataset, views: Sequence[View], seed: int, *, images=None, rendered: bool = True):
        self.dataset = dataset
        self.views = views
        self.seed = seed
        self.images = images
        self.rendered = rendered
        self.remote = is_remote(dataset)

    def __getitem__(self, key: tuple) -> dict:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[tuple]) -> list[dict]:
        samples = []
        for start in range(0, len(keys), _IMAGES_AT_ONCE):
            samples += self._load([ViewKey(*key) for key in keys[start : start + _IMAGES_AT_ONCE]])
        return samples

    def _load(self, keys: list[ViewKey]) -> list[dict]:
        samples = [{"views": None, "index": key.index, "unreadable": []} for key in keys]
        missing = list(range(len(keys)))
        for offset in range(len(self.dataset) if keys[0].row is None else 1):
            missing = self._fill(samples, keys, missing, offset)
            if not missing:
                break
        return samples

    def _fill(self, samples: list[dict], keys: list[ViewKey], missing: list[int], offset: int) -> list[int]:
        """Shows the images so many rows after those of the keys; returns which samples still miss one."""
        opened = []
        for i, row, shown in zip(missing, *self._rows([keys[i] for i in missing], offset), strict=True):
            try:
                opened.append((i, shown, self._open(row, shown)))
            except UnreadableImageError as error:
                samples[i]["unreadable"].append(error.name)
        if opened:
            drawn = self._draw([keys[i] for i, _, _ in opened], [image for _, _, image in opened])
            for (i, shown, image), (resolution, own) in zip(opened, drawn, strict=True):
                try:
                    pixels = self._decode(image, resolution, own)
                except UnreadableImageError as error:
                    samples[i]["unreadable"].append(error.name)
                else:
                    samples[i] |= self._show(pixels, own) | {"index": shown}
        return [i for i in missing if samples[i]["views"] is None]

    def _rows(self, keys: list[ViewKey], offset: int) -> tuple[list, list[int]]:
        if keys[0].row is not None:
            return [key.row for key in keys], [key.index for key in keys]
        indices = [(key.index + offset) % len(self.dataset) for key in keys]
        if self.images is not None:
            return [self.images[index] for index in indices], indices
        if hasattr(self.dataset, "__getitems__"):
            return self.dataset.__getitems__(indices), indices
        return [self.dataset[index] for index in indices], indices

    def _open(self, row, shown: int) -> "EncodedImage | DecodedImage":
        if self.images is not None:
            return DecodedImage(row)
        return EncodedImage(row["image"], f"row {shown}", remote=self.remote)

    def _draw(
        self, keys: list[ViewKey], images: "list[EncodedImage | DecodedImage]"
    ) -> list[tuple[float, list[dict[str, np.ndarray]]]]:
        """Of each image, the resolution that its views need at most, and the parameters of each view."""
        draws = Draws(self.seed, _VIEW_STREAM, *np.array([key[:3] for key in keys], np.uint64).T)
        heights, widths = np.array([(image.height, image.width) for image in images]).T
        drawn = [view.draw(heights, widths, draws.split(i)) for i, view in enumerate(self.views)]
        resolutions = [view.resolution(parameters) for view, parameters in zip(self.views, drawn, strict=True)]
        return [
            (resolution, [{name: values[k] for name, values in parameters.items()} for parameters in drawn])
            for k, resolution in enumerate(np.max(resolutions, axis=0))
        ]

    def _decode(self, image: "EncodedImage | DecodedImage", resolution: float, drawn: list[dict]) -> np.ndarray | None:
        """Pixels of at least this share of the image's size; the boxes of the parameters become those in them.

        Decoded once, whatever the number of views, and no larger than they need. None if they are not in this process.
        """
        if isinstance(image, DecodedImage) and image.is_elsewhere:
            return None
        pixels = image.pixels(resolution)
        height, width = pixels.shape[:2]
        if (height, width) != (image.height, image.width):
            scale = np.array([height / image.height, width / image.width] * 2)
            for own in drawn:
                own["box"] = np.rint(own["box"] * scale).astype(int)
        return pixels

    def _show(self, pixels: np.ndarray | None, drawn: list[dict]) -> dict:
        """What a sample has of an image, from its parameters of each view."""
        if pixels is None:
            return {"views": drawn}
        if not self.rendered:
            return {"views": drawn, "pixels": _cut_to_views(pixels, drawn)}
        return {"views": [view.render(pixels, own) for view, own in zip(self.views, drawn, strict=True)]}

    def time_parts(self, num_images: int) -> tuple[float, float]:
        """Seconds that an image takes here: to read and decode it, and to draw and render its views.

        Raises:
            UnreadableImageError: None of these images, which are from all over the dataset, can be read.
        """
        if isinstance(self.dataset, datasets.IterableDataset):
            keys = [ViewKey(NO_EPOCH, i, row=row) for i, row in enumerate(self.dataset.take(num_images))]
        else:
            keys = [ViewKey(NO_EPOCH, len(self.dataset) * i // num_images) for i in range(num_images)]
        times = []
        for key in keys:
            clock = [time.perf_counter()]
            (row,), (shown,) = self._rows([key], 0)
            try:
                image = self._open(row, shown)
                clock.append(time.perf_counter())
                ((resolution, own),) = self._draw([key], [image])
                clock.append(time.perf_counter())
                pixels = self._decode(image, resolution, own)
            except UnreadableImageError:
                continue
            clock.append(time.perf_counter())
            self._show(pixels, own)
            clock.append(time.perf_counter())
            opening, drawing, decoding, rendering = np.diff(clock).tolist()
            times.append((opening + decoding, drawing + rendering))
        if not times:
            raise UnreadableImageError(f"None of {num_images} images can be read.")
        decoding, augmentation = np.mean(times[1:] or times, axis=0).tolist()  # without what the first one warms up
        return decoding, augmentation


def _cut_to_views(pixels: np.ndarray, drawn: list[dict]) -> np.ndarray:
    """What some view sees, and the boxes of the parameters moved to be those in that."""
    boxes = np.stack([own["box"] for own in drawn])
    (top, left), (bottom, right) = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    for own in drawn:
        own["box"] = own["box"] - [top, left, top, left]
    return pixels[top:bottom, left:right]


def collate(samples: list[dict]) -> dict:
    """Batch the samples of a `ViewDataset`.

    A sample without views is replaced by a readable one of the batch: processes need batches of one size.

    Returns:
        pixel_values: uint8 `(B, 3, H, W)` (`(B, P, 3, H, W)` of views that are P patches).
        Whatever else views make: `bool_masked_pos`, `target_pixel_values`, ... Each name has a tensor where one view
            makes it, and a list of tensors in the order of the views where several do.
        indices: `(B,)`, the rows that they show.
        unreadable: the names of the images that could not be read.

    Raises:
        UnreadableImageError: No sample has views.
    """
    samples, common = _complete(samples)
    outputs = zip(*(sample["views"] for sample in samples), strict=True)
    joined = [
        {name: torch.stack([output[name] for output in view]).contiguous() for name in view[0]} for view in outputs
    ]
    return {**name_inputs(joined), **common}


def collate_drawn(samples: list[dict]) -> dict:
    """Batch the samples of a `ViewDataset` that are not rendered, see `collate`.

    Returns:
        drawn: Of each view, what was drawn for the batch.
        sizes, pixels: Height and width of each image, and the pixels of all in a row, uint8. Missing where samples have none.
        indices, unreadable: As `collate`.
    """
    samples, common = _complete(samples)
    views = zip(*(sample["views"] for sample in samples), strict=True)
    drawn = [{name: np.stack([own[name] for own in view]) for name in view[0]} for view in views]
    if "pixels" in samples[0]:
        pixels = [sample["pixels"] for sample in samples]
        common["sizes"] = [image.shape[:2] for image in pixels]
        common["pixels"] = torch.from_numpy(np.concatenate([image.reshape(-1) for image in pixels]))
    return {"drawn": drawn, **common}


def _complete(samples: list[dict]) -> tuple[list[dict], dict]:
    """As many samples as there are, all of them readable, and what every batch says about them."""
    unreadable = [name for sample in samples for name in sample["unreadable"]]
    readable = [sample for sample in samples if sample["views"] is not None]
    if not readable:
        raise UnreadableImageError(f"None of the images of a batch can be read: {', '.join(unreadable[:5])}, ...")
    completed = list(islice(cycle(readable), len(samples)))
    return completed, {"indices": torch.tensor([sample["index"] for sample in completed]), "unreadable": unreadable}


def name_inputs(outputs: Iterable[dict[str, torch.Tensor]]) -> dict[str, "torch.Tensor | list[torch.Tensor]"]:
    """What the views of a batch made, by name: a tensor where one view makes it, a list where several do."""
    inputs: dict[str, list[torch.Tensor]] = {}
    for output in outputs:
        for name, tensor in output.items():
            inputs.setdefault(name, []).append(tensor)
    return {name: tensors[0] if len(tensors) == 1 else tensors for name, tensors in inputs.items()}


def build_view_loader(
    dataset: datasets.Dataset, views: Sequence[View], rows: range, *, batch_size: int, seed: int, num_workers: int = 0
) -> DataLoader:
    """Load views of some rows of a dataset in their order, the same each time: batches as `collate` makes them.

    The row of an image that cannot be read shows another one, as its `indices` say.
    """
    keys = [ViewKey(NO_EPOCH, row) for row in rows]
    return DataLoader(
        ViewDataset(dataset, views, seed),
        batch_sampler=[keys[start : start + batch_size] for start in range(0, len(keys), batch_size)],
        collate_fn=collate,
        num_workers=num_workers,
        worker_init_fn=outlive_stop_signals,
        generator=torch.Generator(),
    )


def build_eval_loader(
    dataset: datasets.Dataset, image_processor, *, batch_size: int, num_workers: int = 0
) -> DataLoader:
    """Load batches in the dataset's order, without the unreadable images.

    A batch holds
        * pixel_values: float32 `(B, 3, S, S)`, as `image_processor` makes them,
        * labels: `(B,)`, if the dataset has the column "label",
        * indices: `(B,)`, the rows,
        * unreadable: the names of the images that were left out.

    B is `batch_size` less what was left out, down to 0, and smaller in the last batch.

    Raises:
        TypeError: The dataset is streamed.
    """
    if isinstance(dataset, datasets.IterableDataset):
        raise TypeError("Evaluation needs a dataset with a length and rows by index: load it with streaming=False.")
    return DataLoader(
        _ImageDataset(dataset),
        batch_size=batch_size,
        collate_fn=partial(_collate_processed, image_processor=image_processor),
        num_workers=num_workers,
        worker_init_fn=outlive_stop_signals,
        generator=torch.Generator(),
    )


class _ImageDataset(Dataset):
    """The decoded images of a dataset, None for an unreadable one."""

    def __init__(self, dataset: datasets.Dataset):
        self.dataset = dataset
        self.remote = is_remote(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        row = self.dataset[index]
        sample = {"image": None, "index": index, "label": row.get("label"), "unreadable": []}
        try:
            sample["image"] = decode_image(row["image"], f"row {index}", remote=self.remote)
        except UnreadableImageError as error:
            sample["unreadable"].append(error.name)
        return sample


def _collate_processed(samples: list[dict], image_processor) -> dict:
    readable = [sample for sample in samples if sample["image"] is not None]
    if readable:
        # In one call: the processor's own cost is that of a call, and of an image only where sizes differ.
        images = [sample["image"] for sample in readable]
        pixel_values = image_processor(images, return_tensors="pt")["pixel_values"]
    else:
        pixel_values = torch.empty(0, 3, 0, 0)  # not every processor has a size that could be asked for
    batch = {
        "pixel_values": pixel_values,
        "indices": torch.tensor([sample["index"] for sample in readable], dtype=torch.long),
        "unreadable": [name for sample in samples for name in sample["unreadable"]],
    }
    if samples[0]["label"] is not None:
        batch["labels"] = torch.tensor([sample["label"] for sample in readable], dtype=torch.long)
    return batch
