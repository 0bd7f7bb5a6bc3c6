"""Image datasets of any origin, with the same two columns."""

import glob
import io
import logging
import os
import re
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pyarrow.compute
from PIL import Image

from ssl_hub.data.files import LABEL_COLUMNS, NoSplitError, check_split, load_files
from ssl_hub.data.images import UnreadableImageError, decode_image
from ssl_hub.printing import name_some, printable

logger = logging.getLogger(__name__)

_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "pixel_values")
# Larger numbers are an image's own, or hostile: an evaluation holds scores of every class.
_MAX_CLASSES = 100_000
# The `id` of the image column of a dataset that was named as one of the Hub: its rows may be addresses.
_REMOTE = "remote"


def load_image_dataset(
    source: "str | os.PathLike | datasets.Dataset | datasets.IterableDataset | datasets.DatasetDict",
    split: str = "train",
    *,
    config_name: str | None = None,
    streaming: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    several_labels: bool = False,
) -> "datasets.Dataset | datasets.IterableDataset":
    """Load one split of an image dataset.

    Args:
        source: One of
            * the name of a dataset on the Hub,
            * a folder written by `save_to_disk`,
            * a parquet file or a WebDataset archive (`.tar`), a glob of such files or a folder with them; a file's split
              is read off its name (`test-00000-of-00001.parquet`) or its folder's, and is "train" where neither says,
            * a folder of images. Its sub-folders are the splits where all of them are called like one
              (`train/`, `val/`, ...), else the classes; a `metadata.csv`, `.jsonl` or `.parquet` with the column
              `file_name`, as `datasets` reads it, goes before the folders,
            * a `.zip` file of such a folder,
            * "digits": the 1,797 scanned digits of 8x8 pixels that come with scikit-learn, the first 1,437 of them
              for "train", the last 360, which are mostly by other writers, for "test",
            * a `Dataset` or `IterableDataset`, which is taken as the split, or a dict of them by split.
            A `Path`, unlike a string, is never taken for a name.
        split: The split, or a part or sum of splits in the words of `datasets`, such as "train[:10%]+test".
        config_name: The configuration of a dataset on the Hub.
        streaming: Return an `IterableDataset`, which downloads what is read when it is read.
        image_column: The images' column; found by its type, then its name, if not given.
        label_column: The labels' column (class labels, integers, or names); found likewise, and may be absent.
        several_labels: Whether `label_column` may hold lists of classes, of images that show several.

    Returns:
        A dataset with the columns "image", whose files are left encoded (`datasets.Image(decode=False)`, see
        `decode_image`), and "label" where every image has a label. At least one image is known to be readable.

    Raises:
        FileNotFoundError: There is no such path or dataset, or a folder has no images.
        OSError: A folder cannot be listed.
        ValueError: There is no such split or column, no row, no image that can be read, or images without a label in
            `label_column`.
    """
    if isinstance(source, str | os.PathLike):
        name, remote, dataset = _load_by_name(source, split, config_name, streaming)
    else:
        name, remote, dataset = "the dataset", is_remote(source), source
        if isinstance(source, dict):
            dataset = _load_parts(partial(_split_of, source, name), split)
    if isinstance(source, str | os.PathLike) or not _is_prepared(dataset):
        dataset = _select_columns(dataset, name, image_column, label_column, several_labels, remote)
        if isinstance(dataset, datasets.Dataset) and "label" in dataset.column_names:
            dataset = _check_labels(dataset, name, label_column)
        _check_readable(dataset, name)
    if streaming and isinstance(dataset, datasets.Dataset):
        dataset = dataset.to_iterable_dataset()
    return dataset


def _is_prepared(dataset) -> bool:
    """Whether a dataset is as `load_image_dataset` returns it; a stream would have to be begun to look once more."""
    features = dict(dataset.features or {})
    image, label = features.pop("image", None), features.pop("label", datasets.Value("int64"))
    is_encoded = isinstance(image, datasets.Image) and not image.decode
    return is_encoded and not features and (_holds_numbers(label) or _holds_lists(label))


def _load_by_name(source: str | os.PathLike, split: str, config_name: str | None, streaming: bool):
    """Load what a name or path stands for; returns how to call it, whether it is remote, and the dataset."""
    name = os.path.expanduser(os.fspath(source))
    path = Path(name)
    exists, is_digits = path.exists() or glob.has_magic(name), source == "digits"
    if not exists and not isinstance(source, str):
        raise FileNotFoundError(f"There is no file or folder {name!r}: check the path.")
    local = exists or is_digits
    if local and config_name is not None:
        raise ValueError(
            f"config_name={config_name!r} is for datasets on the Hub, and {name!r} is local: leave it out."
        )
    if not local:
        load = partial(_load_from_hub, name, config_name, streaming)
    elif is_digits:
        load = _load_digits
    elif (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        load = partial(_load_saved, name)
    else:
        load = partial(load_files, name, streaming=streaming)
    return name, not local, _load_parts(load, split)


def _load_parts(load, split: str):
    """Load a split, a part of one (`train[:10%]`), or a sum of them (`train+test`), in the words of `datasets`.

    Args:
        load: Makes the whole dataset of a split's name.
    """
    parts = []
    for part in re.split(r"\s*\+\s*", split.strip()):
        name = part.partition("[")[0]
        dataset = load(name)
        if part != name:
            if not isinstance(dataset, datasets.Dataset):
                raise ValueError(f"a stream has no part {part!r}: load it without streaming, or name the whole split")
            try:
                (rows,) = datasets.ReadInstruction.from_spec(part).to_absolute({name: len(dataset)})
            except (ValueError, AssertionError) as error:
                raise ValueError(
                    f"{part!r} is no part of a split; write it such as train[:10%] or train[100:200]"
                ) from error
            dataset = dataset.select(range(rows.from_, rows.to))
        parts.append(dataset)
    return datasets.concatenate_datasets(parts) if len(parts) > 1 else parts[0]


def is_remote(dataset: "datasets.Dataset | datasets.IterableDataset") -> bool:
    """Whether `load_image_dataset` took a dataset from the Hub: only then are addresses in its image column followed."""
    features = getattr(dataset, "features", None) or {}  # a list of rows will do as a dataset
    return getattr(features.get("image"), "id", None) == _REMOTE


def match_labels(
    eval_dataset: datasets.Dataset, train_dataset: "datasets.Dataset | datasets.IterableDataset"
) -> datasets.Dataset:
    """Number the classes of an evaluation split as the training split does, see `match_classes`.

    Warnings name what one side lacks. Without a class in common the labels are left out: numbers that mean different
    things are not compared.
    """
    if "label" not in eval_dataset.column_names or "label" not in (train_dataset.column_names or ()):
        return eval_dataset
    ours, theirs = (_declared_classes(each) for each in (eval_dataset, train_dataset))
    if ours is not None and theirs is not None:
        for lacking, names in (("evaluation", set(theirs) - set(ours)), ("training", set(ours) - set(theirs))):
            if names:
                logger.warning(
                    "classes that the %s split lacks (%d): %s", lacking, len(names), name_some(sorted(names))
                )
        if not set(ours) & set(theirs):
            logger.warning(
                "evaluation and training split have no class in common: left out the evaluation split's labels"
            )
            return eval_dataset.remove_columns("label")
    return match_classes(eval_dataset, train_dataset)


def match_classes(
    eval_dataset: datasets.Dataset, train_dataset: "datasets.Dataset | datasets.IterableDataset"
) -> datasets.Dataset:
    """Number the classes of an evaluation split as the training split does, by their names.

    Classes that the training split lacks come after its own. Where one side has no names, its numbers are taken for
    names if those of the other are numbers too (folders "0" to "10", which are sorted as text), else for numbers of the
    same classes, with a warning.

    Args:
        eval_dataset, train_dataset: Each with the column "label", which in the first has no null.
    """
    ours, theirs = (_declared_classes(each) for each in (eval_dataset, train_dataset))
    if ours == theirs:
        return eval_dataset
    labels, feature = np.asarray(eval_dataset["label"]), datasets.Value("int64")
    if ours is not None and theirs is not None:
        names = [*theirs, *(name for name in ours if name not in theirs)]
        renumbered = np.array([names.index(name) for name in ours])[labels]
        feature = datasets.ClassLabel(names=names)
    elif ours is not None and all(name.isdecimal() for name in ours):
        renumbered = np.array([int(name) for name in ours])[labels]
    elif theirs is not None and {str(label) for label in np.unique(labels)} <= set(theirs):
        renumbered = np.array([theirs.index(str(label)) for label in labels])
        feature = datasets.ClassLabel(names=theirs)
    else:
        named, unnamed = ("evaluation", "training") if theirs is None else ("training", "evaluation")
        logger.warning(
            "the labels of the %s split have names and those of the %s split have none: equal numbers are taken for the "
            "same class",
            *(named, unnamed),
        )
        return eval_dataset
    return eval_dataset.remove_columns("label").add_column("label", renumbered, feature=feature)


def _declared_classes(dataset: "datasets.Dataset | datasets.IterableDataset") -> list[str] | None:
    return getattr(dataset.features["label"], "names", None)


def _load_digits(split: str) -> datasets.Dataset:
    check_split(split, ("train", "test"), "digits")
    from sklearn.datasets import load_digits  # scikit-learn takes a second to import, and only the digits need it

    scans = load_digits()
    rows = slice(None, 1437) if split == "train" else slice(1437, None)
    images = []
    for pixels in scans.images[rows]:
        file = io.BytesIO()
        Image.fromarray((pixels * (255 / 16)).round().astype(np.uint8)).save(file, "PNG")
        images.append({"bytes": file.getvalue(), "path": None})
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=[str(i) for i in range(10)]))
    return datasets.Dataset.from_dict({"image": images, "label": scans.target[rows]}, features=features)


def _load_from_hub(name: str, config_name: str | None, streaming: bool, split: str):
    message = f"{name!r} is neither a local file or folder nor a dataset that can be reached on the Hub"
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name):
        raise FileNotFoundError(f"{message} (a dataset's name is NAME or USER/NAME). Check the path.")
    try:
        return datasets.load_dataset(name, config_name, split=split, streaming=streaming)
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise FileNotFoundError(
            f"{message} ({printable(error)}). Check the name; a private dataset needs `hf auth login`; 'digits' needs no network."
        ) from error
    except ValueError as error:
        if not str(error).startswith("Unknown split"):
            raise
        raise NoSplitError(f"{name!r} has no split {split!r}: {printable(error)}") from error


def _load_saved(folder: str, split: str) -> datasets.Dataset:
    try:
        saved = datasets.load_from_disk(folder)
    except Exception as error:  # `datasets` takes what its files say for granted
        raise ValueError(f"The saved dataset {folder!r} cannot be read: {printable(error)}") from error
    if isinstance(saved, datasets.DatasetDict):
        return _split_of(saved, folder, split)
    check_split(split, (str(saved.split or "train"),), folder)
    return saved


def _split_of(splits: dict, name: str, split: str):
    check_split(split, splits, name)
    return splits[split]


def _select_columns(
    dataset, name: str, image_column: str | None, label_column: str | None, several_labels: bool, remote: bool
):
    features = dataset.features or {}
    for column in (image_column, label_column):
        if column is not None and column not in features:
            there = name_some(features, limit=20)
            raise ValueError(f"{name!r} has no column {column!r}; the columns there are: {there}.")
    if image_column is None:
        image_column = _find_image_column(features, name)
    elif not _may_hold_images(features[image_column]):
        raise ValueError(f"The column {image_column!r} of {name!r} holds {features[image_column]}, not images.")
    if label_column is None:
        label_column = _find_label_column(features, name)
    elif not (
        _holds_numbers(features[label_column])
        or _holds_names(features[label_column])
        or (several_labels and _holds_lists(features[label_column]))
    ):
        raise ValueError(
            f"The column {label_column!r} of {name!r} holds {features[label_column]}; labels must be integers, a "
            "ClassLabel, or names."
        )
    if label_column is not None and _holds_names(features[label_column]):
        dataset, label_column = _number_classes(dataset, name, label_column)

    dataset = dataset.with_format(None)  # of one that was handed over
    # First the cast: an iterable dataset would decode its images to rename a column, and encode them again.
    dataset = dataset.cast_column(image_column, datasets.Image(decode=False, id=_REMOTE if remote else None))
    columns = {image_column: "image"} | ({label_column: "label"} if label_column else {})
    dataset = dataset.select_columns(list(columns))
    return dataset.rename_columns({old: new for old, new in columns.items() if old != new})


def _find_image_column(features: datasets.Features, name: str) -> str:
    typed = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    if len(typed) == 1:
        return typed[0]
    for column in _IMAGE_COLUMNS:
        if column in features and _may_hold_images(features[column]):
            return column
    what = f"several image columns ({name_some(typed)})" if typed else "no image column"
    there = name_some(features, limit=20) or "unknown"
    raise ValueError(f"{name!r} has {what}; the columns there are: {there}. Name it with image_column.")


def _may_hold_images(feature) -> bool:
    if isinstance(feature, datasets.Value):
        return feature.dtype in ("binary", "large_binary", "string", "large_string")
    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and feature.keys() == {"bytes", "path"})


def _find_label_column(features: datasets.Features, name: str) -> str | None:
    for column in (
        *LABEL_COLUMNS,
        *(c for c, feature in features.items() if isinstance(feature, datasets.ClassLabel)),
    ):
        if column in features:
            if _holds_numbers(features[column]) or _holds_names(features[column]):
                return column
            logger.warning("the column %r of %r holds %s, which are no classes", column, name, features[column])
    return None


def _holds_numbers(feature) -> bool:
    return isinstance(feature, datasets.ClassLabel) or (
        isinstance(feature, datasets.Value) and re.fullmatch(r"u?int\d+", feature.dtype) is not None
    )


def _holds_lists(feature) -> bool:
    return isinstance(feature, datasets.List | datasets.LargeList) and _holds_numbers(feature.feature)


def _holds_names(feature) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def _number_classes(dataset, name: str, column: str):
    """Make class labels of names, in alphabetical order; returns the column, None where a stream hides what there is."""
    if not isinstance(dataset, datasets.Dataset):
        logger.warning("left out the labels of %r: the classes of a stream are not known by their names alone", name)
        return dataset, None
    found = dataset.with_format(None)[column]
    names = sorted(set(found) - {None})
    numbers = {class_name: number for number, class_name in enumerate(names)} | {None: None}
    feature = datasets.ClassLabel(names=names)
    dataset = dataset.remove_columns(column)
    return dataset.add_column(column, [numbers[each] for each in found], feature=feature), column


def _check_labels(dataset: datasets.Dataset, name: str, label_column: str | None) -> datasets.Dataset:
    """Leave labels out that not every image has: null, or negative as in the test splits of the Hub."""
    labels, feature = dataset.select_columns("label").with_format("arrow")[:]["label"], dataset.features["label"]
    num_classes = getattr(getattr(feature, "feature", feature), "num_classes", _MAX_CLASSES)
    limit = min(num_classes, _MAX_CLASSES)
    if _holds_lists(feature):
        missing = sum(
            row is None or any(label is None or not 0 <= label < limit for label in row) for row in labels.to_pylist()
        )
    else:
        valid = pyarrow.compute.and_(pyarrow.compute.greater_equal(labels, 0), pyarrow.compute.less(labels, limit))
        missing = len(labels) - (pyarrow.compute.sum(valid).as_py() or 0)
    if not missing:
        return dataset
    found = f"{missing} of the {len(labels)} images of {name!r} have no label from 0 to {num_classes - 1}"
    if label_column is not None:
        raise ValueError(f"{found} in the column {label_column!r}: remove these images, or leave label_column out.")
    logger.warning("%s, so that the others' are left out too", found)
    return dataset.remove_columns("label")


def _check_readable(dataset, name: str) -> None:
    """Read images until one can be read: in a sound dataset that is the first."""
    errors, count, remote = [], 0, is_remote(dataset)
    for row in dataset:
        try:
            decode_image(row["image"], f"row {count}", remote=remote)
            return
        except UnreadableImageError as error:
            count += 1
            errors = [*errors, error][:3]
    if count == 0:
        raise ValueError(f"The dataset {name!r} has no rows in this split.")
    raise ValueError(f"None of the {count} images of {name!r} can be read: {'; '.join(map(str, errors))}.")
