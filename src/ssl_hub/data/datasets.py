"""Image datasets of any origin, with the same two columns."""

import collections
import glob
import io
import logging
import os
import re
from pathlib import Path

import datasets
import numpy as np
import pyarrow.compute
import pyarrow.parquet
from PIL import Image

from ssl_hub.data.images import IMAGE_FORMATS, UnreadableImageError, decode_image
from ssl_hub.printing import name_some, printable

logger = logging.getLogger(__name__)

_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "pixel_values")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "cls")
_IMAGE_SUFFIXES = tuple(sorted(suffix for suffixes in IMAGE_FORMATS.values() for suffix in suffixes))
# Larger numbers are an image's own, or hostile: an evaluation holds scores of every class.
_MAX_CLASSES = 100_000
_METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
# The `id` of the image column of a dataset that was named as one of the Hub: its rows may be addresses.
_REMOTE = "remote"
_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def load_image_dataset(
    name_or_path: str | os.PathLike,
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
        name_or_path: One of
            * the name of a dataset on the Hub,
            * a folder written by `save_to_disk`,
            * a parquet file, a glob of such files or a folder with them; a file's split is read off its name
              (`test-00000-of-00001.parquet`) or its folder's, and is "train" where neither says,
            * a folder of images. Its sub-folders are the splits where all of them are called like one
              (`train/`, `val/`, ...), else the classes,
            * "digits": the 1,797 scanned digits of 8x8 pixels that come with scikit-learn, the first 1,437 of them
              for "train", the last 360, which are mostly by other writers, for "test".
            A `Path`, unlike a string, is never taken for a name.
        split: The split.
        config_name: The configuration of a dataset on the Hub.
        streaming: Return an `IterableDataset`, which downloads what is read when it is read.
        image_column: The images' column; found by its type, then its name, if not given.
        label_column: The labels' column (class labels or integers); found likewise, and may be absent.
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
    name = os.path.expanduser(os.fspath(name_or_path))
    path = Path(name)
    exists, is_digits = path.exists() or glob.has_magic(name), name_or_path == "digits"
    if not exists and not isinstance(name_or_path, str):
        raise FileNotFoundError(f"There is no file or folder {name!r}: check the path.")
    local = exists or is_digits
    if local and config_name is not None:
        raise ValueError(
            f"config_name={config_name!r} is for datasets on the Hub, and {name!r} is local: leave it out."
        )

    if is_digits:
        dataset = _load_digits(split)
    elif not local:
        dataset = _load_from_hub(name, config_name, split, streaming)
    elif (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        dataset = _load_saved(name, split)
    else:
        dataset = _load_files(name, split, streaming)

    dataset = _select_columns(dataset, name, image_column, label_column, several_labels, remote=not local)
    if isinstance(dataset, datasets.Dataset) and "label" in dataset.column_names:
        dataset = _check_labels(dataset, name, label_column)
    _check_readable(dataset, name)
    if streaming and isinstance(dataset, datasets.Dataset):
        dataset = dataset.to_iterable_dataset()
    return dataset


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
    _check_split(split, ("train", "test"), "digits")
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


def _load_from_hub(name: str, config_name: str | None, split: str, streaming: bool):
    message = f"{name!r} is neither a local file or folder nor a dataset that can be reached on the Hub"
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name):
        raise FileNotFoundError(f"{message} (a dataset's name is NAME or USER/NAME). Check the path.")
    try:
        return datasets.load_dataset(name, config_name, split=split, streaming=streaming)
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise FileNotFoundError(
            f"{message} ({printable(error)}). Check the name; a private dataset needs `hf auth login`; 'digits' needs no network."
        ) from error


def _load_saved(folder: str, split: str) -> datasets.Dataset:
    try:
        saved = datasets.load_from_disk(folder)
    except Exception as error:  # `datasets` takes what its files say for granted
        raise ValueError(f"The saved dataset {folder!r} cannot be read: {printable(error)}") from error
    if isinstance(saved, datasets.DatasetDict):
        _check_split(split, saved, folder)
        return saved[split]
    _check_split(split, (str(saved.split or "train"),), folder)
    return saved


def _load_files(name: str, split: str, streaming: bool):
    """Load parquet files given by path, glob or folder, or an image folder."""
    folder = name if os.path.isdir(name) else ""
    if folder:
        files = _list_files(folder)
    else:
        files = [name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True))

    # Parquet files go first: a dataset's repository may have a picture for its README. One called metadata is of images.
    shards = collections.defaultdict(list)
    for file in map(Path, files):
        if file.suffix == ".parquet" and file.stem != "metadata":
            shards[_split_of(file)].append(os.path.join(folder, file))
    if shards:
        _check_split(split, shards, name)
        try:
            _check_same_classes(shards[split])
            # This split alone: one builder would take the class names of one split for those of all.
            return datasets.load_dataset("parquet", data_files={split: shards[split]}, split=split, streaming=streaming)
        except (ValueError, datasets.exceptions.DatasetGenerationError) as error:
            cause = printable(error.__cause__ or error)
            raise ValueError(f"The parquet files of {name!r} cannot be read: {cause}") from error

    images = [file for file in files if _is_image(file)]
    if folder and images:
        metadata = [file for file in files if os.path.basename(file) in _METADATA_FILES]
        return _load_image_folder(folder, images, split, metadata)

    suffixes = sorted({os.path.splitext(file)[1] or file for file in files})
    found = f"{len(files)} files ({name_some(suffixes)})" if files else "no file at all"
    raise FileNotFoundError(
        f"{name!r} is neither an image folder nor parquet files: it has {found}. "
        f"Give a folder with images ({', '.join(_IMAGE_SUFFIXES)}), or parquet files."
    )


def _is_image(file: str) -> bool:
    return os.path.splitext(file)[1].lower() in _IMAGE_SUFFIXES


def _list_files(folder: str) -> list[str]:
    """The regular files in a folder and its folders, sorted.

    Links are followed, but for those to a folder that lies above them or was listed before in the same class or split.
    """
    above = {_identity(path) for path in (Path(folder).resolve(), *Path(folder).resolve().parents)}
    files, pending = [], [("", above)]
    left_out = collections.defaultdict(list)
    while pending:
        inner, seen = pending.pop()
        for entry in _entries(folder, inner):
            path = os.path.join(inner, entry.name)
            is_folder = os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
            if entry.name.startswith(".") or (is_folder and entry.name.startswith("__")):  # .cache, __MACOSX
                continue
            if not _is_utf8(entry.name):
                left_out["have names that are not UTF-8: rename them"].append(path)
            elif is_folder:
                seen_here = seen if inner else set(above)
                if _identity(entry.path) in seen_here:
                    left_out["are links to folders that are listed already"].append(path)
                else:
                    seen_here.add(_identity(entry.path))
                    pending.append((path, seen_here))
            elif os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file():
                files.append(path)
            elif _is_image(path):
                left_out["are no regular files: links that lead nowhere, pipes or devices"].append(path)
    for reason, paths in left_out.items():
        logger.warning(
            "left out %d entries of %s that %s (%s)", len(paths), printable(folder), reason, name_some(paths)
        )
    return sorted(files)


def _entries(folder: str, inner: str) -> list[os.DirEntry]:
    try:
        with os.scandir(os.path.join(folder, inner)) as entries:
            return list(entries)
    except OSError as error:
        raise OSError(
            f"the folder {os.path.join(folder, inner)!r} cannot be listed ({error.strerror}), and its images would be "
            f"missing: make it readable, or move it out of {folder!r}"
        ) from error


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_same_classes(files: list[str]) -> None:
    """Raises `ValueError` if parquet files that make one table number their classes apart."""
    classes = [_class_names(file) for file in files]
    for file, names in zip(files, classes, strict=True):
        if names != classes[0]:
            raise ValueError(
                f"{files[0]!r} and {file!r} have other class names, or the same in another order: number the classes of "
                "all files alike"
            )


def _class_names(parquet_file: str) -> dict[str, list[str]]:
    features = datasets.Features.from_arrow_schema(pyarrow.parquet.read_schema(parquet_file))
    return {name: feature.names for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)}


def _split_of(file: Path) -> str:
    if sharded := re.match(r"(.+)-\d{5}-of-\d{5}", file.name):
        return sharded[1]
    for word in (re.split(r"[-_.]", file.name)[0], file.parent.name):
        if word in _SPLIT_NAMES:
            return _SPLIT_NAMES[word]
    return "train"


def _load_image_folder(folder: str, images: list[str], split: str, metadata: list[str]) -> datasets.Dataset:
    """Load an image folder as paths: a file is opened when its row is used.

    The builder that `datasets` has for it would take any class or file with a name like a split's for that split, and
    drop the others.
    """
    top_folders = {_top_folder(image) for image in images} - {""}
    if top_folders and top_folders <= _SPLIT_NAMES.keys():
        wanted = next((top for top in sorted(top_folders) if split in (top, _SPLIT_NAMES[top])), split)
        _check_split(wanted, top_folders, folder)
        folder = os.path.join(folder, wanted)
        images = [image.removeprefix(wanted + os.sep) for image in images if _top_folder(image) == wanted]
    else:
        _check_split(split, ("train",), folder)

    columns = {"image": [os.path.join(folder, image) for image in images]}
    features = datasets.Features(image=datasets.Value("string"))
    class_names = sorted({_top_folder(image) for image in images})
    if metadata:
        logger.warning("labels come from class folders: did not read %s", name_some(metadata))
    if len(class_names) > 1 and "" in class_names:
        outside = [image for image in images if not _top_folder(image)]
        logger.warning(
            "%s has %d images outside of its %d class folders (%s), so none of its images has a label",
            *(printable(folder), len(outside), len(class_names) - 1, name_some(outside)),
        )
    elif len(class_names) > 1:
        labels = {name: label for label, name in enumerate(class_names)}
        columns["label"] = [labels[_top_folder(image)] for image in images]
        features["label"] = datasets.ClassLabel(names=class_names)
    return datasets.Dataset.from_dict(columns, features=features)


def _top_folder(file: str) -> str:
    return file.split(os.sep, 1)[0] if os.sep in file else ""


def _check_split(split: str, splits, name: str) -> None:
    if split not in splits:
        there = name_some(sorted(splits), limit=20)
        raise ValueError(f"{name!r} has no split {split!r}; the splits there are: {there}.")


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
        label_column = _find_label_column(features)
    elif not _holds_classes(features[label_column]) and not (several_labels and _holds_lists(features[label_column])):
        raise ValueError(
            f"The column {label_column!r} of {name!r} holds {features[label_column]}; labels must be integers or a "
            "ClassLabel (`Dataset.class_encode_column` makes one)."
        )

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


def _find_label_column(features: datasets.Features) -> str | None:
    for column in (
        *_LABEL_COLUMNS,
        *(c for c, feature in features.items() if isinstance(feature, datasets.ClassLabel)),
    ):
        if column in features and _holds_classes(features[column]):
            return column
    return None


def _holds_classes(feature) -> bool:
    return isinstance(feature, datasets.ClassLabel) or (
        isinstance(feature, datasets.Value) and re.fullmatch(r"u?int\d+", feature.dtype) is not None
    )


def _holds_lists(feature) -> bool:
    return isinstance(feature, datasets.List | datasets.LargeList) and _holds_classes(feature.feature)


def _check_labels(dataset: datasets.Dataset, name: str, label_column: str | None) -> datasets.Dataset:
    """Leave labels out that not every image has: null, or negative as in the test splits of the Hub."""
    labels, feature = dataset.data.column("label"), dataset.features["label"]
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
