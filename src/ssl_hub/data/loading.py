"""Batches for training and evaluation: the same ones whatever the number of workers or processes."""

import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import cycle, islice
from typing import NamedTuple

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ssl_hub.data.datasets import is_remote
from ssl_hub.data.images import DecodedImage, EncodedImage, UnreadableImageError, decode_image
from ssl_hub.data.views import Draws, View

# The second word of the entropy that orders and views are seeded with, so that no two random streams of a run share a
# seed. The trainer's streams are small numbers.
_ORDER_STREAM = int.from_bytes(b"orde", "big")
_VIEW_STREAM = int.from_bytes(b"view", "big")
# Stands for the epoch of views that belong to none.
_NO_EPOCH = 2**32 - 1
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


def outlive_stop_signals(worker: int) -> None:
    """Keeps a worker at work when a terminal or a cluster signals every process of a run: the last step needs it.

    It ends with the process that started it, whose SIGTERM is the second one at the latest.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))


def close_loader(loader: DataLoader) -> None:
    """End the workers of a loader. Those that an exception leaves to the exit of Python take five seconds each."""
    if loader._iterator is not None:
        loader._iterator._shutdown_workers()
        loader._iterator = None


@contextmanager
def explain_worker_errors() -> Iterator[None]:
    """Turn what a loader's worker processes come to into one sentence: torch reports it as the text of a traceback.

    Raises:
        ChildProcessError: A worker was killed. Torch notices wherever the main process happens to be, so this goes around
            all that runs while a loader is open.
        ValueError, OSError: As the worker raised them.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise ChildProcessError(
            f"{str(error.__cause__ or error).strip()} Most likely memory ran out: the main memory, or the shared one "
            "(/dev/shm; `docker run --shm-size`). Give the run more or make --dataloader_num_workers or "
            "--per_device_train_batch_size smaller, and resume with --resume_from_checkpoint latest."
        ) from error
    except (ValueError, OSError) as error:
        if not str(error).startswith("Caught ") or "in DataLoader worker process" not in str(error):
            raise
        raise type(error)(str(error).strip().rpartition("\n")[2].partition(": ")[2]) from error


class ViewKey(NamedTuple):
    """What the views of a sample are drawn from: the `repeat`-th time that `epoch` shows `index`, counted from 0."""

    epoch: int
    index: int
    repeat: int = 0
    row: dict | None = None  # of a stream, whose rows cannot be looked up


class _BatchSampler(Sampler[list[ViewKey]]):
    """What the two batch samplers share: who gets which part of a batch, and the place to start."""

    def __init__(self, batch_size: int, seed: int, num_processes: int, process_index: int):
        if batch_size < 1 or seed < 0 or not 0 <= process_index < num_processes:
            raise ValueError(
                "batch_size must be at least 1, seed at least 0 and process_index below num_processes, got "
                f"{batch_size=}, {seed=}, {process_index=}, {num_processes=}."
            )
        self.seed = seed
        self.global_batch_size = batch_size * num_processes
        self.part = slice(process_index * batch_size, (process_index + 1) * batch_size)
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start_batch: int = 0, weights: torch.Tensor | None = None) -> None:
        """Let the next iteration be that of `epoch`, without its first `start_batch` batches.

        Args:
            weights: `(N,)`, one a row, at least 0. As many rows as the dataset has are drawn with replacement, in
                proportion to them. Without weights every row is shown once.

        Raises:
            ValueError: The weights do not fit the dataset, are not finite, negative, or all 0.
        """
        self.epoch = epoch
        self.start_batch = start_batch
        self.probabilities = None if weights is None else self._check_weights(weights)

    def _check_weights(self, weights: torch.Tensor) -> np.ndarray:
        raise NotImplementedError

    def _too_small(self, num_rows: int) -> ValueError:
        return ValueError(
            f"The dataset has {num_rows} rows, fewer than the {self.global_batch_size} of a batch (of all processes). "
            "Make the batch smaller or the dataset larger."
        )


class EpochBatchSampler(_BatchSampler):
    """The keys of this process's part of each batch, in an order drawn from (seed, epoch)."""

    def __init__(self, num_rows: int, batch_size: int, seed: int, num_processes: int = 1, process_index: int = 0):
        super().__init__(batch_size, seed, num_processes, process_index)
        if num_rows < self.global_batch_size:
            raise self._too_small(num_rows)
        self.num_rows = num_rows

    def __len__(self) -> int:
        """Batches of a whole epoch, `start_batch` or not."""
        return self.num_rows // self.global_batch_size

    def __iter__(self) -> Iterator[list[ViewKey]]:
        epoch, first = self.epoch, self.start_batch
        generator = np.random.default_rng([self.seed, _ORDER_STREAM, epoch])
        if self.probabilities is None:
            order, repeats = generator.permutation(self.num_rows), np.zeros(self.num_rows, dtype=int)
        else:
            order = generator.choice(self.num_rows, self.num_rows, p=self.probabilities)
            repeats = _count_earlier(order)
        for batch in range(first, len(self)):
            start = batch * self.global_batch_size
            part = slice(start + self.part.start, start + self.part.stop)
            yield [ViewKey(epoch, *key) for key in zip(order[part].tolist(), repeats[part].tolist(), strict=True)]

    def _check_weights(self, weights: torch.Tensor) -> np.ndarray:
        weights = torch.as_tensor(weights).detach().cpu().double()
        if weights.shape != (self.num_rows,):
            raise ValueError(
                f"Sampling weights must be one number a row of the dataset, ({self.num_rows},); got {tuple(weights.shape)}."
            )
        wrong = (~weights.isfinite() | (weights < 0)).nonzero().flatten()
        if len(wrong) > 0 or weights.sum() == 0:
            found = f"{weights[wrong[0]].item()} for row {wrong[0].item()}" if len(wrong) > 0 else "nothing but 0"
            raise ValueError(f"Sampling weights must be finite, at least 0, and not all 0; got {found}.")
        return (weights / weights.sum()).numpy()


def _count_earlier(order: np.ndarray) -> np.ndarray:
    """How often each entry came up before."""
    by_value = np.argsort(order, kind="stable")
    ordered = order[by_value]
    earlier = np.empty_like(order)
    earlier[by_value] = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return earlier


class StreamBatchSampler(_BatchSampler):
    """The keys of this process's part of each batch of a shuffled stream.

    The row travels in the key: the stream is read once, here, and the workers decode. `index` is the row's place in the
    shuffled stream. Every process reads the whole stream.
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        batch_size: int,
        seed: int,
        num_processes: int = 1,
        process_index: int = 0,
        *,
        shuffle_buffer_size: int = 10_000,
    ):
        super().__init__(batch_size, seed, num_processes, process_index)
        self.stream = dataset.shuffle(seed=seed, buffer_size=shuffle_buffer_size)

    def __iter__(self) -> Iterator[list[ViewKey]]:
        epoch, first = self.epoch, self.start_batch
        self.stream.set_epoch(epoch)
        rows = islice(enumerate(self.stream), first * self.global_batch_size, None)
        batch = list(islice(rows, self.global_batch_size))
        if first == 0 and len(batch) < self.global_batch_size:
            raise self._too_small(len(batch))
        while len(batch) == self.global_batch_size:
            yield [ViewKey(epoch, index, row=row) for index, row in batch[self.part]]
            batch = list(islice(rows, self.global_batch_size))

    def _check_weights(self, weights: torch.Tensor) -> np.ndarray:
        raise ValueError("Sampling weights need a dataset with rows by index: load it with streaming=False.")


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
            images = [image for _, _, image in opened]
            drawn = self._draw(
                [keys[i] for i, _, _ in opened],
                np.array([image.height for image in images]),
                np.array([image.width for image in images]),
            )
            # Decoded once, whatever the number of views, and no larger than they need.
            resolutions = np.max(
                [view.resolution(parameters) for view, parameters in zip(self.views, drawn, strict=True)], axis=0
            )
            for k, (i, shown, image) in enumerate(opened):
                own = [{name: values[k] for name, values in parameters.items()} for parameters in drawn]
                try:
                    samples[i] |= self._show(image, resolutions[k], own) | {"index": shown}
                except UnreadableImageError as error:
                    samples[i]["unreadable"].append(error.name)
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

    def _draw(self, keys: list[ViewKey], heights: np.ndarray, widths: np.ndarray) -> list[dict[str, np.ndarray]]:
        words = np.array([key[:3] for key in keys], np.uint64).T
        draws = Draws(self.seed, _VIEW_STREAM, *words)
        return [view.draw(heights, widths, draws.split(i)) for i, view in enumerate(self.views)]

    def _show(self, image: "EncodedImage | DecodedImage", resolution: float, drawn: list[dict]) -> dict:
        """What a sample has of an image, from its parameters of each view."""
        if isinstance(image, DecodedImage) and image.is_elsewhere:
            return {"views": drawn}
        pixels = self._decode(image, resolution, drawn)
        if not self.rendered:
            return {"views": drawn, "pixels": _cut_to_views(pixels, drawn)}
        return {"views": [view.render(pixels, own) for view, own in zip(self.views, drawn, strict=True)]}

    def _decode(self, image: "EncodedImage | DecodedImage", resolution: float, drawn: list[dict]) -> np.ndarray:
        """Pixels of at least this share of the image's size; the boxes of the parameters become those in them."""
        pixels = image.pixels(resolution)
        height, width = pixels.shape[:2]
        if (height, width) != (image.height, image.width):
            scale = np.array([height / image.height, width / image.width] * 2)
            for own in drawn:
                own["box"] = np.rint(own["box"] * scale).astype(int)
        return pixels

    def time_parts(self, num_images: int) -> tuple[float, float]:
        """Seconds that an image takes here: to read and decode it, and to draw and render its views.

        Raises:
            UnreadableImageError: None of these images, which are from all over the dataset, can be read.
        """
        if isinstance(self.dataset, datasets.IterableDataset):
            keys = [ViewKey(_NO_EPOCH, i, row=row) for i, row in enumerate(self.dataset.take(num_images))]
        else:
            keys = [ViewKey(_NO_EPOCH, len(self.dataset) * i // num_images) for i in range(num_images)]
        times = []
        for key in keys:
            clock = [time.perf_counter()]
            (row,), (shown,) = self._rows([key], 0)
            try:
                image = self._open(row, shown)
                clock.append(time.perf_counter())
                drawn = self._draw([key], np.array([image.height]), np.array([image.width]))
                resolution = max(view.resolution(each)[0] for view, each in zip(self.views, drawn, strict=True))
                own = [{name: values[0] for name, values in each.items()} for each in drawn]
                clock.append(time.perf_counter())
                is_elsewhere = isinstance(image, DecodedImage) and image.is_elsewhere
                pixels = None if is_elsewhere else self._decode(image, resolution, own)
                clock.append(time.perf_counter())
            except UnreadableImageError:
                continue
            if self.rendered and pixels is not None:
                for view, each in zip(self.views, own, strict=True):
                    view.render(pixels, each)
            clock.append(time.perf_counter())
            opened, drew, decoded, rendered = np.diff(clock).tolist()
            times.append((opened + decoded, drew + rendered))
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
    keys = [ViewKey(_NO_EPOCH, row) for row in rows]
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
