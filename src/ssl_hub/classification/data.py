"""Labelled images for training and testing a classifier."""

import logging
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import torch
from PIL import Image
from transformers import BaseImageProcessor

from ..data.datasets import is_remote, load_image_dataset, match_classes
from ..data.images import UnreadableImageError, decode_image
from ..field_types import PositiveShare
from ..printing import name_some, printable
from ..training.arguments import DataArguments

logger = logging.getLogger(__name__)

# Of an image that cannot be read: the loss and the metrics pass over it.
IGNORED_LABEL = -100

# The second word of the entropy that augmentation is seeded with, so that no two random streams of a run share a seed.
_AUGMENTATION_STREAM = int.from_bytes(b"augm", "big")


@dataclass
class LabelledDataArguments(DataArguments):
    _argument_group_name = "Data"

    validation_dir: str | None = field(default=None, metadata={"help": "Folder of test images in class folders."})
    eval_split: str | None = field(default=None, metadata={"help": "Labelled split to test on."})
    train_fraction: PositiveShare = field(
        default=1.0, metadata={"help": "Share of each class's training images to train on, drawn by the seed."}
    )
    train_list: str | None = field(
        default=None,
        metadata={"help": "Text file with the names of the training images to use, one a line, such as 1percent.txt."},
    )

    def __post_init__(self):
        super().__post_init__()
        if self.streaming:
            raise ValueError("a classifier is trained on a dataset with rows by index: leave --streaming out")
        if self.validation_dir is None and self.eval_split is None:
            raise ValueError(
                "name the labelled images to test on: --eval_split, a split of the dataset, or --validation_dir, a folder"
            )
        if self.train_list is not None and self.train_fraction < 1:
            raise ValueError("--train_list and --train_fraction both choose training images: leave one of them out")


class LabelledImages(NamedTuple):
    """Images and their class indices `(N,)`."""

    dataset: datasets.Dataset
    labels: np.ndarray

    def select(self, rows: Sequence[int]) -> "LabelledImages":
        return LabelledImages(self.dataset.select(rows), self.labels[rows])


def load_labelled_images(args: LabelledDataArguments, seed: int) -> tuple[LabelledImages, LabelledImages, list[str]]:
    """The training images, the test images, and the names of the classes.

    Raises:
        ValueError: labels are missing or null, there is a single class, or the two splits do not have the same classes.
    """
    columns = {"image_column": args.image_column_name, "label_column": args.label_column_name}
    source = args.dataset_name or Path(args.train_dir)  # a folder is not looked up on the Hub
    config_name = args.dataset_config_name
    train = load_image_dataset(source, args.train_split, config_name=config_name, **columns)
    if args.validation_dir is not None:
        test = load_image_dataset(Path(args.validation_dir), **columns)
    else:
        test = load_image_dataset(source, args.eval_split, config_name=config_name, **columns)
    if args.train_list is not None:
        train = train.select(_listed_rows(train, args.train_list))
    train_images, test_images, names = label_images(train, test)
    if args.train_fraction < 1:
        train_images = train_images.select(stratified_rows(train_images.labels, args.train_fraction, seed))
    return train_images, test_images, names


def label_images(train: datasets.Dataset, test: datasets.Dataset) -> tuple[LabelledImages, LabelledImages, list[str]]:
    """Numbers the classes of two splits alike, by their names, see [`match_classes`].

    The classes are those that the training split declares, or its values where they have no names.

    Raises:
        ValueError: as [`load_labelled_images`].
    """
    train_labels = _labels(train, "training")
    _labels(test, "test")
    test = match_classes(test, train)
    test_labels = _labels(test, "test")
    trained = Counter(_class_names(train, train_labels))
    unknown = Counter(_class_names(test, test_labels[~np.isin(test_labels, train_labels)]))
    if unknown:
        raise ValueError(
            f"{sum(unknown.values())} of {len(test_labels)} test images are of classes without a training image "
            f"({name_some(unknown)}), while the training images are of {name_some(trained)}: give both splits the same class names, "
            "or leave these images out"
        )
    if len(trained) < 2:
        raise ValueError(
            f"all {len(train_labels)} training images are of one class ({name_some(trained)}): a classifier needs at "
            "least two"
        )
    untested = np.setdiff1d(train_labels, test_labels)
    if len(untested):
        logger.warning(
            "No test image is of the classes %s: the accuracy is that of the others.",
            name_some(_class_names(train, untested)),
        )
    declared = getattr(train.features["label"], "names", None)
    if declared is not None:
        return LabelledImages(train, train_labels), LabelledImages(test, test_labels), list(declared)
    values, numbers = np.unique(train_labels, return_inverse=True)
    test_numbers = np.searchsorted(values, test_labels)
    return LabelledImages(train, numbers), LabelledImages(test, test_numbers), [str(value) for value in values]


def _labels(dataset: datasets.Dataset, split: str) -> np.ndarray:
    if "label" not in dataset.column_names:
        raise ValueError(
            f"the {split} images have no labels: put them in a folder a class, or name their column with "
            "--label_column_name"
        )
    labels, feature = list(dataset["label"]), dataset.features["label"]
    # -1 stands for a label that is kept back in ClassLabel columns, where class indices begin at 0.
    missing = sum(label is None or (label < 0 and isinstance(feature, datasets.ClassLabel)) for label in labels)
    if missing:
        raise ValueError(
            f"{missing} of {len(labels)} {split} images have no label (null or -1): choose a split with labels, or leave "
            "these images out"
        )
    return np.array(labels)


def _class_names(dataset: datasets.Dataset, labels: np.ndarray) -> list[str]:
    names = getattr(dataset.features["label"], "names", None)
    return [str(label) if names is None else names[label] for label in labels]


def _listed_rows(dataset: datasets.Dataset, file: str) -> list[int]:
    wanted = Counter(os.path.basename(line.strip()) for line in Path(file).read_text().splitlines() if line.strip())
    found = [os.path.basename(image["path"] or "") for image in dataset["image"]]
    rows = [row for row, name in enumerate(found) if name in wanted]
    missing = wanted.keys() - set(found)
    if missing or not rows:
        raise ValueError(
            f"{len(missing)} of the {len(wanted)} images that {file} lists are not among the {len(found)} of the dataset "
            f"({name_some(sorted(missing))}): a line is the name of a file, such as {found[0]!r}"
        )
    return rows


def stratified_rows(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """A share of the rows of each class, at least one, in rising order; the same for the same seed."""
    generator = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        chosen.append(generator.permutation(rows)[: max(1, round(fraction * len(rows)))])
    return np.sort(np.concatenate(chosen))


class AugmentedImages(torch.utils.data.Dataset):
    """Training images, augmented by draws from (seed, epoch, index), whatever the worker or process.

    An image that cannot be read gives way to the next one. `self[i]` has `pixel_values` `(3, H, W)` and `labels`.

    Args:
        transform: makes the tensor of an RGB image, and draws from the generators of Python, NumPy and torch.
    """

    def __init__(self, images: LabelledImages, transform: Callable[[Image.Image], torch.Tensor], seed: int):
        self.images, self.transform, self.seed = images, transform, seed
        self.remote = is_remote(images.dataset)
        self.epoch = torch.zeros((), dtype=torch.long).share_memory_()  # workers live longer than an epoch

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.images.labels)

    def __getitem__(self, index: int) -> dict:
        for row in (*range(index, len(self)), *range(index)):
            try:
                image = decode_image(self.images.dataset[row]["image"], f"row {row}", remote=self.remote)
            except UnreadableImageError as error:
                logger.warning("%s cannot be read; the next image takes its place.", printable(error.name))
                continue
            with _seeded([self.seed, _AUGMENTATION_STREAM, int(self.epoch), index]):
                return {"pixel_values": self.transform(image), "labels": int(self.images.labels[row])}
        raise UnreadableImageError("None of the training images can be read.")


class EvaluationImages(torch.utils.data.Dataset):
    """Test images as the image processor makes them; one that cannot be read has the label -100."""

    def __init__(self, images: LabelledImages, image_processor: BaseImageProcessor):
        self.images, self.image_processor = images, image_processor
        self.remote = is_remote(images.dataset)

    def __len__(self) -> int:
        return len(self.images.labels)

    def __getitem__(self, index: int) -> dict:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict]:
        """What a loader asks for; in one call, as the image processor's own cost is that of a call."""
        images, labels = [], self.images.labels[indices].tolist()
        for i, index in enumerate(indices):
            try:
                images.append(decode_image(self.images.dataset[index]["image"], f"row {index}", remote=self.remote))
            except UnreadableImageError as error:
                logger.warning("%s cannot be read and is left out of the test.", printable(error.name))
                images.append(Image.new("RGB", (32, 32)))
                labels[i] = IGNORED_LABEL
        pixel_values = self.image_processor(images, return_tensors="pt")["pixel_values"]
        return [{"pixel_values": each, "labels": label} for each, label in zip(pixel_values, labels, strict=True)]


@contextmanager
def _seeded(entropy: list[int]) -> Iterator[None]:
    """Seeds the generators that timm's transforms draw from, and leaves them as they were."""
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
