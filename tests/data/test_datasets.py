import io
import tarfile
import zipfile

import datasets
import numpy as np
import pytest
from PIL import Image

from ssl_hub.data.datasets import load_image_dataset
from ssl_hub.data.images import decode_image


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def png(value):
    file = io.BytesIO()
    Image.new("RGB", (6, 4), (value, 0, 0)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": f"{value}.png"}


def dataset_of(values, **columns):
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["even", "odd"]))
    rows = {"image": [png(value) for value in values], "label": [value % 2 for value in values]}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    for name, column in columns.items():
        dataset = dataset.add_column(name, column)
    return dataset


def write_images(folder, names):
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (i, 0, 0)).save(path)


def reds(dataset):
    return [decode_image(row["image"]).getpixel((0, 0))[0] for row in dataset]


def test_digits():
    train, test = load_image_dataset("digits"), load_image_dataset("digits", "test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.features["image"] == datasets.Image(decode=False)
    assert train.features["label"].names == list("0123456789")
    assert train[:4]["label"] == [0, 1, 2, 3]
    pixels = np.asarray(decode_image(train[0]["image"]))
    assert pixels.shape == (8, 8, 3)
    assert pixels[0, :4, 0].tolist() == [0, 0, 80, 207]  # 0, 0, 5 and 13 of 16
    with pytest.raises(ValueError, match=r"no split 'val'.*: test, train"):
        load_image_dataset("digits", "val")


def test_digits_can_be_streamed():
    rows = load_image_dataset("digits", streaming=True)
    assert isinstance(rows, datasets.IterableDataset)
    assert next(iter(rows)) == load_image_dataset("digits")[0]


def test_image_folder_with_classes(tmp_path):
    write_images(tmp_path, ["cat/1.png", "cat/deep/2.PNG", "train/3.png", "train/test_4.png"])
    dataset = load_image_dataset(tmp_path)
    assert dataset.features["label"].names == ["cat", "train"]
    assert dataset["label"][:] == [0, 0, 1, 1]
    assert reds(dataset) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"no split 'test'.*: train"):
        load_image_dataset(tmp_path, "test")


def test_image_folder_with_splits(tmp_path):
    write_images(tmp_path, ["train/a/1.png", "train/b/2.png", "val/a/3.png", "val/b/4.png", "logo.png"])
    assert reds(load_image_dataset(tmp_path)) == [0, 1]
    for split in ("val", "validation"):
        dataset = load_image_dataset(tmp_path, split)
        assert reds(dataset) == [2, 3] and dataset["label"][:] == [0, 1]
    with pytest.raises(ValueError, match=r"no split 'test'.*: train, val"):
        load_image_dataset(tmp_path, "test")


def test_image_folder_without_classes_and_with_damaged_files(tmp_path):
    (tmp_path / "0.jpg").write_bytes(b"")
    (tmp_path / "1.jpg").write_text("text")
    (tmp_path / "notes.txt").write_text("text")
    write_images(tmp_path, ["2.png", ".hidden.png", "__MACOSX/3.png"])
    dataset = load_image_dataset(tmp_path)
    assert dataset.column_names == ["image"]
    assert [row["image"]["path"] for row in dataset] == [str(tmp_path / name) for name in ("0.jpg", "1.jpg", "2.png")]


def test_folders_without_an_image(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file at all"):
        load_image_dataset(tmp_path)
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(FileNotFoundError, match=r"it has 1 files \(\.txt\)"):
        load_image_dataset(tmp_path)
    for i in range(60):
        (tmp_path / f"{i:02}.jpg").write_text("text")
    with pytest.raises(ValueError, match=r"None of the 60 images.*00\.jpg: not an image.*02\.jpg"):
        load_image_dataset(tmp_path)
    write_images(tmp_path, ["60.png"])
    assert len(load_image_dataset(tmp_path)) == 61


def test_saved_datasets(tmp_path):
    datasets.DatasetDict(train=dataset_of([1, 2]), test=dataset_of([3])).save_to_disk(tmp_path / "both")
    dataset_of([4, 5]).save_to_disk(tmp_path / "one")
    assert reds(load_image_dataset(tmp_path / "both")) == [1, 2]
    assert reds(load_image_dataset(str(tmp_path / "both"), "test", streaming=True)) == [3]
    assert reds(load_image_dataset(tmp_path / "one")) == [4, 5]
    for folder, there in (("both", "test, train"), ("one", "train")):
        with pytest.raises(ValueError, match=f"no split 'dev'.*: {there}"):
            load_image_dataset(tmp_path / folder, "dev")


def test_parquet_files(tmp_path):
    dataset_of([1, 2]).to_parquet(tmp_path / "train-00000-of-00002.parquet")
    dataset_of([3]).to_parquet(tmp_path / "train-00001-of-00002.parquet")
    dataset_of([4, 5]).to_parquet(tmp_path / "test-00000-of-00001.parquet")
    for where in (tmp_path, tmp_path / "*.parquet"):
        dataset = load_image_dataset(where)
        assert reds(dataset) == [1, 2, 3] and dataset["label"][:] == [1, 0, 1]
        assert dataset.features["label"].names == ["even", "odd"]
        assert reds(load_image_dataset(where, "test")) == [4, 5]
        with pytest.raises(ValueError, match=r"no split 'dev'.*: test, train"):
            load_image_dataset(where, "dev")
    assert reds(load_image_dataset(tmp_path / "train-00001-of-00002.parquet")) == [3]


def test_parquet_files_named_otherwise(tmp_path):
    write_images(tmp_path, ["preview.png"])
    (tmp_path / "default" / "val").mkdir(parents=True)
    dataset_of([1]).to_parquet(tmp_path / "default" / "images.parquet")
    dataset_of([2]).to_parquet(tmp_path / "default" / "val" / "0000.parquet")
    assert reds(load_image_dataset(tmp_path)) == [1]
    assert reds(load_image_dataset(tmp_path, "validation")) == [2]


def test_a_stream_is_not_decoded(tmp_path):
    features = datasets.Features(img=datasets.Image())
    rows = [png(1), png(2), {"bytes": b"", "path": "broken.png"}]
    datasets.Dataset.from_dict({"img": rows}, features=features).to_parquet(tmp_path / "train.parquet")
    streamed = load_image_dataset(tmp_path / "train.parquet", streaming=True)
    assert [row["image"] for row in streamed] == rows


def test_a_damaged_parquet_file(tmp_path):
    (tmp_path / "train.parquet").write_text("text")
    with pytest.raises(ValueError, match="cannot be read"):
        load_image_dataset(tmp_path / "train.parquet")


def test_columns(tmp_path):
    dataset_of([1, 2], answer=["a", "b"], fine=[7, 8]).rename_column("image", "photo").save_to_disk(tmp_path)
    assert load_image_dataset(tmp_path).column_names == ["image", "label"]
    assert load_image_dataset(tmp_path, image_column="photo", label_column="fine")["label"][:] == [7, 8]
    for wrong in ({"image_column": "img"}, {"label_column": "cls"}):
        with pytest.raises(ValueError, match=f"no column '{next(iter(wrong.values()))}'.*photo, label, answer, fine"):
            load_image_dataset(tmp_path, **wrong)
    with pytest.raises(ValueError, match=r"'fine' .* not images"):
        load_image_dataset(tmp_path, image_column="fine")
    with pytest.raises(ValueError, match=r"'photo' .* must be integers"):
        load_image_dataset(tmp_path, label_column="photo")
    named = load_image_dataset(tmp_path, label_column="answer")
    assert named["label"][:] == [0, 1] and named.features["label"].names == ["a", "b"]


def test_which_of_two_image_columns(tmp_path):
    both = dataset_of([1, 2]).add_column("other", [png(3), png(4)]).cast_column("other", datasets.Image())
    both.save_to_disk(tmp_path / "one_called_image")
    both.rename_column("image", "left").save_to_disk(tmp_path / "unclear")
    assert reds(load_image_dataset(tmp_path / "one_called_image")) == [1, 2]
    assert reds(load_image_dataset(tmp_path / "unclear", image_column="other")) == [3, 4]
    with pytest.raises(ValueError, match=r"several image columns \(left, other\).*image_column"):
        load_image_dataset(tmp_path / "unclear")


def test_columns_without_a_type(tmp_path):
    values = [png(value)["bytes"] for value in (1, 2)]
    datasets.Dataset.from_dict({"jpg": values, "cls": [5, 6]}).save_to_disk(tmp_path / "bytes")
    dataset = load_image_dataset(tmp_path / "bytes")
    assert reds(dataset) == [1, 2] and dataset["label"][:] == [5, 6]
    datasets.Dataset.from_dict({"x": [1], "y": [2]}).save_to_disk(tmp_path / "numbers")
    with pytest.raises(ValueError, match=r"no image column.*: x, y"):
        load_image_dataset(tmp_path / "numbers")


def write_tar(file, values):
    with tarfile.open(file, "w") as archive:
        for value in values:
            for name, content in ((f"{value:03}.png", png(value)["bytes"]), (f"{value:03}.cls", b"%d" % (value % 2))):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("streaming", [False, True])
def test_webdataset(tmp_path, streaming):
    for name, values in (("x-train-000000", [1, 2]), ("x-train-000001", [3]), ("x-val-000000", [4, 5])):
        write_tar(tmp_path / f"{name}.tar", values)
    rows = list(load_image_dataset(tmp_path, streaming=streaming))
    assert reds(rows) == [1, 2, 3] and [row["label"] for row in rows] == [1, 0, 1]
    assert reds(load_image_dataset(tmp_path, "validation", streaming=streaming)) == [4, 5]
    assert reds(load_image_dataset(str(tmp_path / "x-train-*1.tar"), streaming=streaming)) == [3]


@pytest.mark.parametrize("content", ["no archive", "two kinds of samples"])
def test_an_archive_that_is_no_webdataset(tmp_path, content):
    if content == "no archive":
        (tmp_path / "train.tar").write_bytes(b"nothing")
    else:
        write_tar(tmp_path / "train.tar", [1])
        with tarfile.open(tmp_path / "train.tar", "a") as archive:
            archive.addfile(tarfile.TarInfo("002.txt"), io.BytesIO())
    with pytest.raises(ValueError, match=r"The webdataset files of .*train\.tar' cannot be read: "):
        load_image_dataset(tmp_path / "train.tar")


@pytest.mark.parametrize("inside", ["", "pictures/"])
def test_a_zipped_folder(tmp_path, inside):
    def zipped(names):
        write_images(tmp_path / "folder", names)
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for name in names:
                archive.write(tmp_path / "folder" / name, inside + name)
        return load_image_dataset(tmp_path / "a.zip")

    dataset = zipped(["cat/1.png", "dog/2.png"])
    assert reds(dataset) == [0, 1] and dataset.features["label"].names == ["cat", "dog"]
    assert reds(zipped(["cat/1.png", "dog/2.png", "dog/3.png"])) == [0, 1, 2]  # not what was extracted before
    with pytest.raises(ValueError, match=r"a\.zip' has no split 'test'"):
        load_image_dataset(tmp_path / "a.zip", "test")


def test_a_damaged_zip_file(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(ValueError, match=r"a\.zip' cannot be unzipped"):
        load_image_dataset(tmp_path / "a.zip")


@pytest.mark.parametrize(
    ("metadata", "labels", "names"),
    [
        ("file_name,label\na/1.png,big\nb/2.png,small\nb/3.png,big\n", [0, 1, 0], ["big", "small"]),
        ("file_name,label\nb/3.png,4\na/1.png,5\nb/2.png,6\n", [5, 6, 4], None),
        ("file_name,caption\na/1.png,a dog\nb/2.png,two dogs\nb/3.png,none\n", [0, 1, 1], ["a", "b"]),
        ("name,label\na/1.png,4\n", [0, 1, 1], ["a", "b"]),
    ],
)
def test_metadata(tmp_path, metadata, labels, names):
    write_images(tmp_path / "[1]", ["a/1.png", "b/2.png", "b/3.png"])
    (tmp_path / "[1]" / "metadata.csv").write_text(metadata)
    dataset = load_image_dataset(tmp_path / "[1]")
    assert reds(dataset) == [0, 1, 2] and dataset["label"][:] == labels
    assert getattr(dataset.features["label"], "names", None) == names


def test_metadata_of_splits_that_lack_an_image(tmp_path, caplog):
    write_images(tmp_path, ["train/1.png", "train/2.png", "test/3.png"])
    (tmp_path / "train/metadata.csv").write_text("file_name,species\n1.png,cat\n")
    (tmp_path / "test/metadata.jsonl").write_text('{"file_name": "3.png", "species": "cat"}')
    assert load_image_dataset(tmp_path, "test", label_column="species")["label"][:] == [0]
    with pytest.raises(ValueError, match=r"1 of the 2 images .* have no label .* in the column 'species'"):
        load_image_dataset(tmp_path, label_column="species")
    assert reds(load_image_dataset(tmp_path)) == [0, 1]


def test_names_with_the_characters_of_a_glob(tmp_path):
    (tmp_path / "[a]").mkdir()
    dataset_of([1, 2]).to_parquet(tmp_path / "[a]" / "train[1].parquet")
    assert reds(load_image_dataset(tmp_path / "[a]")) == [1, 2]


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train[:25%]", [0]),
        ("train[1:3]", [1, 2]),
        ("train[-1:]", [3]),
        ("train+test", [0, 1, 2, 3, 8]),
        ("test + train[50%:]", [8, 2, 3]),
    ],
)
def test_parts_of_splits(tmp_path, split, expected):
    splits = datasets.DatasetDict(train=dataset_of(range(4)), test=dataset_of([8]))
    splits.save_to_disk(tmp_path / "saved")
    for name, dataset in splits.items():
        dataset.to_parquet(tmp_path / f"parquet/{name}.parquet")
    for source in (splits, tmp_path / "saved", tmp_path / "parquet"):
        dataset = load_image_dataset(source, split)
        assert reds(dataset) == expected and dataset["label"][:] == [value % 2 for value in expected]


def test_what_is_no_part(tmp_path):
    dataset_of(range(4)).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"'train\[:x\]' is no part of a split; write it such as train\[:10%\]"):
        load_image_dataset(tmp_path, "train[:x]")
    with pytest.raises(ValueError, match=r"a stream has no part 'train\[:2\]'"):
        load_image_dataset(tmp_path, "train[:2]", streaming=True)


def test_a_dataset_in_memory():
    dataset = dataset_of([1, 2, 3]).rename_columns({"image": "photo", "label": "kind"}).add_column("n", [0, 1, 2])
    prepared = load_image_dataset(dataset.with_format("torch").shuffle(seed=0).select([2, 0]))
    assert prepared.column_names == ["image", "label"] and prepared.format["type"] is None
    assert [red % 2 for red in reds(prepared)] == prepared["label"][:] and len(prepared) == 2
    assert load_image_dataset(prepared) is prepared
    streamed = load_image_dataset(dataset.to_iterable_dataset())
    assert isinstance(streamed, datasets.IterableDataset) and reds(streamed) == [1, 2, 3]
    with pytest.raises(ValueError, match="the dataset' has no split 'test'; the splits there are: train"):
        load_image_dataset(datasets.DatasetDict(train=dataset), "test")


def test_a_dataset_in_memory_that_looks_like_a_prepared_one():
    names = datasets.Dataset.from_dict({"image": [png(1), png(2)], "label": ["odd", "even"]})
    names = names.cast_column("image", datasets.Image(decode=False))
    assert load_image_dataset(names)["label"][:] == [1, 0]
    streamed = load_image_dataset(load_image_dataset(names), streaming=True)
    assert isinstance(streamed, datasets.IterableDataset) and reds(streamed) == [1, 2]


def test_labels_of_selected_rows():
    """A negative label of a row that was left out is nobody's."""
    dataset = datasets.Dataset.from_dict({"image": [png(1), png(2), png(3)], "label": [-1, 4, 5]})
    assert load_image_dataset(dataset.select([2, 1]))["label"][:] == [5, 4]


def test_no_rows(tmp_path):
    dataset_of([1]).select([]).to_parquet(tmp_path / "train.parquet")
    for streaming in (False, True):
        with pytest.raises(ValueError, match=r"no rows|no data"):
            load_image_dataset(tmp_path, streaming=streaming)


def test_hub(monkeypatch):
    calls = []

    def load_dataset(name, config_name, **kwargs):
        calls.append((name, config_name, kwargs))
        return dataset_of([1])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert reds(load_image_dataset("me/pictures", "test", config_name="small")) == [1]
    assert calls == [("me/pictures", "small", {"split": "test", "streaming": False})]


@pytest.mark.parametrize("reason", [datasets.exceptions.DatasetNotFoundError("not found"), ConnectionError("offline")])
def test_neither_here_nor_on_the_hub(monkeypatch, reason):
    def load_dataset(*args, **kwargs):
        raise reason

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(FileNotFoundError, match=f"'me/picturs' is neither a local .* Hub .*{reason}"):
        load_image_dataset("me/picturs")


def test_a_file_of_another_kind(tmp_path):
    write_images(tmp_path, ["1.png"])
    with pytest.raises(FileNotFoundError, match="Give a folder with images"):
        load_image_dataset(tmp_path / "1.png")


def test_a_path_is_not_looked_up_on_the_hub(monkeypatch, tmp_path):
    monkeypatch.delattr(datasets, "load_dataset")
    with pytest.raises(FileNotFoundError, match=r"There is no file or folder .*nowhere': check the path"):
        load_image_dataset(tmp_path / "nowhere")
    for name in ("./nowhere", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="neither a local file or folder nor"):
            load_image_dataset(name)
    with pytest.raises(FileNotFoundError, match="no file at all"):
        load_image_dataset(tmp_path / "*.parquet")


def test_a_configuration_is_for_the_hub(tmp_path):
    with pytest.raises(ValueError, match="config_name='small'"):
        load_image_dataset(tmp_path, config_name="small")
