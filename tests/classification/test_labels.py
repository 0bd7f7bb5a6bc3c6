"""The labels of two splits: numbered alike, and what is wrong with them is said."""

import datasets
import numpy as np
import pytest
from PIL import Image

from ssl_hub.classification.data import (
    IGNORED_LABEL,
    AugmentedImages,
    EvaluationImages,
    LabelledDataArguments,
    LabelledImages,
    label_images,
    load_labelled_images,
    stratified_rows,
)
from ssl_hub.data.processing import build_image_processor


def split(labels, names=None):
    feature = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
    columns = {"image": [{"bytes": None, "path": "x"}] * len(labels), "label": labels}
    features = datasets.Features(image=datasets.Image(decode=False), label=feature)
    return datasets.Dataset.from_dict(columns, features=features)


UNLABELLED = split([0]).remove_columns("label")


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (UNLABELLED, split([0, 1]), "the training images have no labels"),
        (split([0, 1]), UNLABELLED, "the test images have no labels"),
        (split([0, None, 1]), split([0, 1]), "1 of 3 training images have no label"),
        (split([0, 1], ["a", "b"]), split([-1, -1], ["a", "b"]), r"2 of 2 test images have no label \(null or -1\)"),
        (split([3, 3]), split([3]), r"all 2 training images are of one class \(3\)"),
        (
            split([0, 0], ["a", "b"]),
            split([0, 1], ["a", "b"]),
            r"1 of 2 test images .* without a training image \(b\)",
        ),
        (split([0, 1], ["a", "b"]), split([0, 1], ["a", "c"]), r"without a training image \(c\), .* are of a, b"),
        (split([0, 1], ["a", "b"]), split([0, 0], ["c"]), r"2 of 2 test images .* \(c\), .* are of a, b"),
        (split([0, 1], ["cat", "dog"]), split([0, 2]), r"1 of 2 test images .* without a training image \(2\)"),
    ],
)
def test_labels_that_do_not_do(train, test, message):
    with pytest.raises(ValueError, match=message):
        label_images(train, test)


def test_classes_are_numbered_by_name():
    """A folder of test images without the first class numbers the others from 0."""
    train, test, names = label_images(split([0, 1, 2], ["a", "b", "c"]), split([0, 1], ["b", "c"]))
    assert names == ["a", "b", "c"]
    assert train.labels.tolist() == [0, 1, 2] and test.labels.tolist() == [1, 2]
    train, test, names = label_images(split([10, 2, 5]), split([5, 10]))
    assert names == ["2", "5", "10"] and train.labels.tolist() == [2, 0, 1] and test.labels.tolist() == [1, 2]


def test_numbers_stand_for_names_that_are_numbers(caplog):
    _, test, names = label_images(split([0, 1, 2, 3], ["0", "1", "10", "2"]), split([10, 2]))
    assert names == ["0", "1", "10", "2"] and test.labels.tolist() == [2, 3]
    _, test, names = label_images(split([0, 2, 10]), split([1, 2], ["0", "10", "2"]))
    assert names == ["0", "2", "10"] and test.labels.tolist() == [2, 1]
    assert "names" not in caplog.text
    _, test, _ = label_images(split([0, 1], ["cat", "dog"]), split([1, 0]))
    assert test.labels.tolist() == [1, 0] and "equal numbers are taken for the same class" in caplog.text


def test_a_class_without_test_images_is_told(caplog):
    label_images(split([0, 1, 2], ["a", "b", "c"]), split([0, 1], ["a", "b"]))
    assert "No test image is of the classes c" in caplog.text


def test_a_share_of_each_class():
    labels = np.repeat([0, 1, 2], [100, 50, 3])
    rows = stratified_rows(labels, 0.1, seed=0)
    assert np.bincount(labels[rows]).tolist() == [10, 5, 1]
    assert rows.tolist() == sorted(rows) == stratified_rows(labels, 0.1, seed=0).tolist()
    assert rows.tolist() != stratified_rows(labels, 0.1, seed=1).tolist()


@pytest.fixture
def folder(tmp_path):
    for number in range(12):
        file = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (number * 20, 0, 0)).save(file)
    return tmp_path / "images"


def test_a_list_of_training_images(folder, tmp_path):
    (tmp_path / "list.txt").write_text("0.png\nb/3.png\n5.png\n")
    args = LabelledDataArguments(
        train_dir=str(folder), validation_dir=str(folder), train_list=str(tmp_path / "list.txt")
    )
    train, test, _ = load_labelled_images(args, seed=0)
    assert train.labels.tolist() == [0, 1, 1] and len(test.labels) == 12
    (tmp_path / "list.txt").write_text("0.png\nnone.png\n")
    with pytest.raises(ValueError, match="1 of the 2 images .* are not among the 12 of the dataset"):
        load_labelled_images(args, seed=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "name the labelled images to test on"),
        ({"eval_split": "test", "train_fraction": 0}, "--train_fraction must be"),
        ({"eval_split": "test", "train_fraction": 0.5, "train_list": "x"}, "leave one of them out"),
        ({"eval_split": "test", "streaming": True}, "leave --streaming out"),
    ],
)
def test_arguments_that_do_not_do(fields, message):
    with pytest.raises(ValueError, match=message):
        LabelledDataArguments(dataset_name="digits", **fields)


def test_an_image_that_cannot_be_read(folder, caplog):
    rows = datasets.Dataset.from_list(
        [{"image": {"bytes": b"none", "path": None}}, {"image": {"bytes": None, "path": str(folder / "a" / "2.png")}}]
    )
    images = LabelledImages(rows, np.array([0, 1]))
    test = EvaluationImages(images, build_image_processor(16, [0.5] * 3, [0.5] * 3))
    assert [test[i]["labels"] for i in range(2)] == [IGNORED_LABEL, 1] and test[0]["pixel_values"].shape == (3, 16, 16)
    assert AugmentedImages(images, lambda image: image.size, seed=0)[0] == {"pixel_values": (20, 20), "labels": 1}
    assert "row 0 cannot be read" in caplog.text
