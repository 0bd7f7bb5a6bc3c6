"""Pretrained backbones in transformers' DETR and UperNet."""

import runpy
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import (
    AutoConfig,
    AutoModel,
    DetrForObjectDetection,
    UperNetForSemanticSegmentation,
)

import ssl_hub.transfer
from ssl_hub import BYOLConfig
from ssl_hub.data.processing import build_image_processor
from ssl_hub.data.rectangles import RectangleImages
from ssl_hub.hub.publishing import save_for_sharing
from ssl_hub.model_loading import load_feature_pyramid

EXAMPLES = Path(__file__).parents[1] / "examples"
VIT = {
    **{"image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 6, "num_attention_heads": 2},
    "intermediate_size": 16,
}
BACKBONES = {
    "resnet": {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 16, 24], "embedding_size": 8, "layer_type": "basic"},
    "swin": {
        **{"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]},
        "window_size": 2,
    },
    "beit": VIT,
    "dinov2": VIT,
}
PROCESSOR = build_image_processor(32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def save_backbone(kind, folder):
    model = AutoModel.from_config(AutoConfig.for_model(kind, **BACKBONES.get(kind, VIT)))
    for name, buffer in model.named_buffers():  # as after training
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    PROCESSOR.save_pretrained(folder)
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    def run_example(name, **options):
        AcceleratorState._reset_state(reset_partial_state=True)
        options = {"steps": 2, "per_device_train_batch_size": 2, "output_dir": tmp_path / "out", **options}
        arguments = [part for key, value in options.items() for part in (f"--{key}", str(value))]
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")

    return run_example


@pytest.mark.parametrize("kind", BACKBONES)
def test_the_weights_are_those_of_the_backbone(kind, tmp_path):
    """Names differ by a prefix, and a few norms are new."""
    folder = save_backbone(kind, tmp_path / kind)
    expected = AutoModel.from_pretrained(folder).state_dict()
    pyramid = load_feature_pyramid(folder).eval()
    found = {name.removeprefix(f"{kind}."): tensor for name, tensor in pyramid.state_dict().items()}
    new = {name for name in found if name.startswith("hidden_states_norms.")}
    assert found.keys() - new <= expected.keys() and bool(new) == (kind == "swin")
    assert {name.split(".")[0] for name in expected.keys() - found.keys()} <= {"pooler", "layernorm"}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items() if name not in new)
    maps = pyramid(torch.randn(1, 3, 32, 32)).feature_maps
    assert [each.shape[1] for each in maps] == list(pyramid.channels) and len(maps) == 4
    if kind in ("beit", "dinov2"):
        assert pyramid.out_features == ["stage2", "stage3", "stage4", "stage6"]


@pytest.mark.parametrize(
    ("example", "kind", "model_class"),
    [
        ("transfer_detection.py", "resnet", DetrForObjectDetection),
        ("transfer_detection.py", "swin", DetrForObjectDetection),
        ("transfer_segmentation.py", "swin", UperNetForSemanticSegmentation),
        ("transfer_segmentation.py", "beit", UperNetForSemanticSegmentation),
    ],
)
def test_what_is_trained_begins_with_them(example, kind, model_class, run, tmp_path, monkeypatch):
    folder = save_backbone(kind, tmp_path / kind)
    begun = {}

    def train(model, rows, collate, args):
        backbone = model.model.backbone.model if model_class is DetrForObjectDetection else model.backbone
        begun.update({name: tensor.clone() for name, tensor in backbone.state_dict().items()})
        return training(model, rows, collate, args)

    training = ssl_hub.transfer.train
    monkeypatch.setattr(ssl_hub.transfer, "train", train)
    run(example, backbone=folder)
    expected = load_feature_pyramid(folder).state_dict()
    # DETR's frozen BatchNorm counts no batches; the new norms are drawn anew.
    compared = [name for name in expected if "num_batches" not in name and "hidden_states_norms" not in name]
    assert len(compared) > 30 and all(torch.equal(begun[name], expected[name]) for name in compared)
    assert type(model_class.from_pretrained(tmp_path / "out")) is model_class


@pytest.mark.parametrize("example", ["transfer_detection.py", "transfer_segmentation.py"])
def test_the_loss_falls(example, run, tmp_path, capsys):
    """On the backbone of a shared run, whose folder backbone/ is taken."""
    config = BYOLConfig(backbone_config={"model_type": "resnet", **BACKBONES["resnet"]}, image_size=32)
    save_for_sharing(AutoModel.from_config(config), PROCESSOR, tmp_path / "run")
    options = {"steps": 60, "learning_rate": 0.001, "per_device_train_batch_size": 4}
    run(example, backbone=tmp_path / "run", image_size=64, **options)
    first, last = capsys.readouterr().out.split("loss ")[-1].split(" in ")[0].split(" -> ")
    assert float(last) < 0.95 * float(first)


def test_a_dataset_of_the_users(run, tmp_path):
    folder = save_backbone("resnet", tmp_path / "resnet")
    rows = [RectangleImages(4, 40)[index] for index in range(4)]
    objects = {"bbox": datasets.List(datasets.List(datasets.Value("float32"))), "category": [datasets.Value("int64")]}
    features = datasets.Features(image=datasets.Image(), objects=objects, annotation=datasets.Image())
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "data")
    for example in ("transfer_detection.py", "transfer_segmentation.py"):
        run(example, backbone=folder, dataset_dir=tmp_path / "data", image_size=32)
        with pytest.raises(SystemExit, match="error: .*--num_labels 1"):
            run(example, backbone=folder, dataset_dir=tmp_path / "data", num_labels=1)


@pytest.mark.parametrize("example", ["transfer_detection.py", "transfer_segmentation.py"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "vit"}, "transformers has no backbone of feature maps .* for 'vit'.*'resnet', 'swin'"),
        ({"backbone": "./nowhere"}, "there is no model folder"),
        ({"steps": 0}, "--steps must be"),
        ({"dataset_dir": "nowhere"}, "there is no folder 'nowhere'"),
        ({"dataset_dir": "other"}, "with the columns image and .*; it has .'x'."),
    ],
)
def test_user_errors(example, options, message, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kind in ("resnet", "vit"):
        save_backbone(kind, tmp_path / kind)
    datasets.Dataset.from_dict({"x": [1]}).save_to_disk("other")
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        run(example, **{"backbone": "resnet", **options})


def test_rectangles():
    images = RectangleImages(20, 40, seed=3)
    for row in images:
        pixels, classes = np.asarray(row["image"]), np.asarray(row["annotation"])
        covered = np.zeros_like(classes, dtype=bool)
        for (left, top, width, height), label in zip(*row["objects"].values(), strict=True):
            inside = classes[top : top + height, left : left + width]
            assert inside.shape == (height, width) and inside.min() > 0
            covered[top : top + height, left : left + width] = True
            assert 0 <= label < 3
        assert np.array_equal(covered, classes > 0)
        assert np.array_equal(pixels.argmax(axis=2)[covered] + 1, classes[covered])
    again = RectangleImages(20, 40, seed=3)[7]
    assert again["objects"] == images[7]["objects"] and again["objects"] != RectangleImages(20, 40)[7]["objects"]
