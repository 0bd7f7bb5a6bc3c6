"""What a path holds: parquet or WebDataset files, a folder of images, or either of them zipped."""

import collections
import glob
import logging
import os
import re
import tarfile
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet

from ssl_hub.data.images import IMAGE_FORMATS
from ssl_hub.printing import name_some, printable

logger = logging.getLogger(__name__)

_IMAGE_SUFFIXES = tuple(sorted(suffix for suffixes in IMAGE_FORMATS.values() for suffix in suffixes))
# What reads files of rows. Parquet goes first: a dataset's repository may have archives or a picture beside it.
_BUILDERS = {".parquet": "parquet", ".tar": "webdataset"}
# What labels are called where nobody says.
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls")
_METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def load_files(path: str, split: str, streaming: bool = False) -> "datasets.Dataset | datasets.IterableDataset":
    """Load one split of what lies at a path or glob; streamed only where it is read row by row.

    Raises:
        FileNotFoundError: There are neither images nor files of rows.
        OSError: A folder cannot be listed.
        ValueError: There is no such split, or files cannot be read.
    """
    if path.lower().endswith(".zip") and os.path.isfile(path):
        folder = _unzip(path)
        try:
            return load_files(folder, split, streaming)
        except (ValueError, OSError) as error:
            raise type(error)(str(error).replace(folder, path)) from error
    folder = path if os.path.isdir(path) else ""
    if folder:
        files = _list_files(folder)
    else:
        files = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))

    of_rows = [file for file in files if file.endswith(tuple(_BUILDERS))]
    for suffix, builder in _BUILDERS.items():
        shards = collections.defaultdict(list)
        for file in of_rows:
            if file.endswith(suffix) and os.path.basename(file) not in _METADATA_FILES:
                shards[_split_of(Path(file))].append(os.path.join(folder, file))
        if shards:
            check_split(split, shards, path)
            # This split alone: one builder would take the class names of one split for those of all.
            return _load_rows(builder, path, shards[split], split, streaming)

    images = [file for file in files if _is_image(file)]
    if folder and images:
        metadata = [
            file for file in files if file.endswith(_METADATA_FILES) and os.path.basename(file) in _METADATA_FILES
        ]
        return _load_image_folder(folder, images, split, metadata)

    suffixes = sorted({os.path.splitext(file)[1] or file for file in files})
    found = f"{len(files)} files ({name_some(suffixes)})" if files else "no file at all"
    raise FileNotFoundError(
        f"{path!r} is neither an image folder nor parquet or WebDataset files: it has {found}. Give a folder with images "
        f"({', '.join(_IMAGE_SUFFIXES)}), such a folder as one .zip file, .parquet files, or .tar files."
    )


class NoSplitError(ValueError):
    """A dataset does not have the split that was asked for."""


def check_split(split: str, splits, name: str) -> None:
    """Raise `NoSplitError` for a split that is not one of `splits`."""
    if split not in splits:
        there = name_some(sorted(splits), limit=20)
        raise NoSplitError(f"{name!r} has no split {split!r}; the splits there are: {there}.")


def _unzip(file: str) -> str:
    """Extract an archive once, beside what else `datasets` caches, and return the folder that holds its content."""
    status = os.stat(file)
    cache = Path(datasets.config.HF_DATASETS_CACHE, "zipped", f"{status.st_size}-{status.st_mtime_ns}")
    manager = datasets.DownloadManager(download_config=datasets.DownloadConfig(cache_dir=cache))
    try:
        folder = Path(manager.extract(file))
    except Exception as error:  # a damaged archive makes zipfile raise its own errors, and zlib's
        raise ValueError(f"{file!r} cannot be unzipped: {printable(error)}") from error
    if not folder.is_dir():
        raise ValueError(f"{file!r} is no zip archive")
    while True:  # most archives hold one folder that holds everything
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith((".", "__"))]
        if len(entries) != 1 or not entries[0].is_dir() or entries[0].is_symlink() or entries[0].name in _SPLIT_NAMES:
            return str(folder)
        folder = entries[0]


def _load_rows(builder: str, path: str, files: list[str], split: str, streaming: bool):
    # A name may have the characters of a glob.
    data_files = {split: [glob.escape(file) for file in files]}
    try:
        if builder == "parquet":
            _check_same_classes(files)
        return datasets.load_dataset(builder, data_files=data_files, split=split, streaming=streaming)
    except (ValueError, OSError, datasets.exceptions.DatasetGenerationError, tarfile.TarError) as error:
        cause = printable(error.__cause__ or error)
        raise ValueError(f"The {builder} files of {path!r} cannot be read: {cause}") from error


def _is_image(file: str) -> bool:
    return file.lower().endswith(_IMAGE_SUFFIXES)


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
            name = entry.name
            path = f"{inner}{os.sep}{name}" if inner else name
            if name.isascii() and name[0] != "." and entry.is_file(follow_symlinks=False):  # nearly every one
                files.append(path)
                continue
            is_folder = os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
            if name.startswith(".") or (is_folder and name.startswith("__")):  # .cache, __MACOSX
                continue
            if not _is_utf8(name):
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
    for word in (*re.split(r"[-_.]", file.name), file.parent.name):
        if word in _SPLIT_NAMES:
            return _SPLIT_NAMES[word]
    return "train"


def _load_image_folder(folder: str, images: list[str], split: str, metadata: list[str]) -> datasets.Dataset:
    """Load an image folder as paths: a file is opened when its row is used.

    The builder that `datasets` has for it would take any class or file with a name like a split's for that split, and
    drop the others.
    """
    classes = [_top_folder(image) for image in images]
    top_folders = set(classes) - {""}
    if top_folders and top_folders <= _SPLIT_NAMES.keys():
        wanted = next((top for top in sorted(top_folders) if split in (top, _SPLIT_NAMES[top])), split)
        check_split(wanted, top_folders, folder)
        folder = os.path.join(folder, wanted)
        images, metadata = (
            [file.removeprefix(wanted + os.sep) for file in files if _top_folder(file) == wanted]
            for files in (images, metadata)
        )
        classes = [_top_folder(image) for image in images]
    else:
        check_split(split, ("train",), folder)

    paths = [f"{folder}{os.sep}{image}" for image in images]
    table = pyarrow.table({"image": paths})
    features = datasets.Features(image=datasets.Value("string"))
    rows = _load_metadata(folder, metadata, split) if metadata else None
    if rows is not None:
        table, features = _join(table, rows)
    class_names = sorted(set(classes))
    if features.keys().isdisjoint(LABEL_COLUMNS) and len(class_names) > 1:
        if "" in class_names:
            outside = [image for image, name in zip(images, classes, strict=True) if not name]
            logger.warning(
                "%s has %d images outside of its %d class folders (%s), so none of its images has a label",
                *(printable(folder), len(outside), len(class_names) - 1, name_some(outside)),
            )
        else:
            labels = {name: label for label, name in enumerate(class_names)}
            table = table.append_column("label", pyarrow.array([labels[name] for name in classes]))
            features["label"] = datasets.ClassLabel(names=class_names)
    return datasets.Dataset(table.cast(features.arrow_schema), datasets.DatasetInfo(features=features))


def _load_metadata(folder: str, files: list[str], split: str) -> datasets.Dataset | None:
    """The rows of metadata files, with the images' paths; None, and a warning, where they are no such files."""
    data_files = {split: [glob.escape(os.path.join(folder, file)) for file in files]}
    try:
        rows = datasets.load_dataset("imagefolder", data_files=data_files, split=split)
        if "image" in rows.features:
            return rows.cast_column("image", datasets.Image(decode=False))
        reason = "no column file_name"
    except (ValueError, OSError, datasets.exceptions.DatasetGenerationError) as error:
        reason = printable(error.__cause__ or error)
    logger.warning("labels come from class folders: did not read %s (%s)", name_some(files), reason)
    return None


def _join(table: pyarrow.Table, rows: datasets.Dataset) -> tuple[pyarrow.Table, datasets.Features]:
    """The metadata of every image, null where there is none."""
    positions = {os.path.normpath(image["path"]): i for i, image in enumerate(rows["image"])}
    order = pyarrow.array([positions.get(path.as_py()) for path in table["image"]], pyarrow.int64())
    rows = rows.remove_columns("image")
    for name, column in zip(rows.column_names, rows.data.table.take(order).columns, strict=True):
        table = table.append_column(name, column)
    return table, datasets.Features(image=datasets.Value("string"), **rows.features)


def _top_folder(file: str) -> str:
    top, separator, _ = file.partition(os.sep)
    return top if separator else ""
