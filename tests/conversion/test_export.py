"""Every target, by the other library: `export_model` compares features itself; here it is held to what it says."""

import json
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file
from test_layouts import BACKBONES, FIELDS
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    SwinForMaskedImageModeling,
    ViTForMaskedImageModeling,
    ViTMAEForPreTraining,
    ViTModel,
)

from ssl_hub.conversion.export import TARGETS, export_model, load_model
from ssl_hub.conversion.sources import layouts_of, load_foreign_checkpoint
from ssl_hub.registry import ALGORITHMS

REPOSITORY = Path(__file__).parents[2]
TORCHVISION = {"embedding_size": 64, "layer_type": "basic", "depths": [2, 1, 1, 1], "hidden_sizes": [64, 128, 256, 512]}
FITTING = {
    "resnet": {**BACKBONES["resnet"], "embedding_size": 64},
    "torchvision": {"model_type": "resnet", **TORCHVISION},
    "gradients": {"model_type": "resnet", **TORCHVISION, "num_channels": 2},
    "vit": {**BACKBONES["vit"], "layer_norm_eps": 1e-6},
    "beit": {**BACKBONES["beit"], "layer_norm_eps": 1e-6},
    "swin": {**BACKBONES["swin"], "depths": [2, 1], "num_heads": [1, 2]},
    "cifar_resnet": {**BACKBONES["resnet"], "model_type": "cifar_resnet"},
    "timm": {"model_type": "timm_wrapper", "architecture": "resnet18", "model_args": {"channels": [8, 8, 8, 8]}},
}
BACKBONE_OF = {
    **dict.fromkeys(("mae", "maskfeat"), "vit"),
    **dict.fromkeys(("beitv1", "beitv2", "cae"), "beit"),
    "simmim": "swin",
}
FIELDS_OF = {**FIELDS, "beitv2": {"early_layer": 1, "neck_num_hidden_layers": 1}}


def build(model_type, backbone=None, auto_class=AutoModel, **fields):
    """A tiny model whose tensors are all drawn at random."""
    backbone = FITTING[backbone or BACKBONE_OF.get(model_type, "resnet")]
    fields = {**FIELDS_OF.get(model_type, {}), **fields}
    if "image_size" not in backbone and "image_size" not in fields:
        fields["image_size"] = 32
    model = auto_class.from_config(AutoConfig.for_model(model_type, backbone_config=backbone, **fields)).eval()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1) if name.endswith("running_var") else tensor.normal_(std=0.2)
    return model


def export(model, to, tmp_path):
    output = tmp_path / f"{to}{TARGETS[to].suffix}"
    assert export_model(model, to, output) < 1e-5
    assert [path.name for path in tmp_path.iterdir()] == [output.name]
    return output


def images(model):
    size = model.config.image_size
    return torch.randn(3, 3, size, size)


def assert_close(ours, theirs):
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("model_type", ALGORITHMS)
def test_every_algorithm(model_type, tmp_path):
    """To timm and transformers, and to MMSelfSup where it is there."""
    model = build(model_type, **({"pooling": "cls"} if BACKBONE_OF.get(model_type) == "beit" else {}))
    pixel_values = images(model)
    expected = model(pixel_values)
    twin = timm.create_model(f"local-dir:{export(model, 'timm', tmp_path / 'a')}", pretrained=True).eval()
    assert_close(expected.pooler_output, twin(pixel_values))
    folder = export(model, "transformers", tmp_path / "b")
    hidden = AutoModel.from_pretrained(folder)(pixel_values).last_hidden_state
    assert_close(expected.last_hidden_state, hidden)
    if model_type not in {layout.model_type for layout in layouts_of("mmselfsup")}:
        with pytest.raises(ValueError, match=f"no counterpart in MMSelfSup of '{model_type}'; there is one of barlow"):
            export(model, "mmselfsup", tmp_path / "c")
        return
    file = export(model, "mmselfsup", tmp_path / "c")
    read = AutoModel.from_config(model.config)
    conversion = load_foreign_checkpoint(read, file, "mmselfsup")
    ours = model.state_dict()
    assert all(name.startswith("memory.") for name in conversion.new)
    assert all(torch.equal(x, ours[name]) for name, x in read.state_dict().items() if name not in conversion.new)


@torch.no_grad()
@pytest.mark.parametrize(
    ("model_type", "backbone", "fields"),
    [
        ("mae", "vit", {"image_size": 24}),  # positions are interpolated
        ("mae", "vit", {"pooling": "cls"}),
        ("mocov3", "vit", {"image_size": 24}),
        ("cae", "beit", {"image_size": 24, "pooling": "cls"}),
        ("simclr", "beit", {}),  # it pools by itself
        ("simclr", "swin", {}),
        ("simclr", "timm", {}),
    ],
)
def test_other_backbones_of_timm(model_type, backbone, fields, tmp_path):
    model = build(model_type, backbone, **fields)
    folder = export(model, "timm", tmp_path)
    twin = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    pixel_values = images(model)
    assert_close(model(pixel_values).pooler_output, twin(pixel_values))


def test_timm_is_told_how_images_are_prepared(tmp_path):
    model = build("simclr", image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    config = json.loads((export(model, "timm", tmp_path) / "config.json").read_text())
    pretrained = config["pretrained_cfg"]
    assert config["architecture"] == "resnet50" and "tag" not in pretrained and "license" not in pretrained
    assert pretrained["input_size"] == [3, 32, 32] and pretrained["crop_pct"] == 0.875
    assert (pretrained["mean"], pretrained["std"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])


@torch.no_grad()
def test_torchvision(tmp_path):
    model = build("simclr", "torchvision")
    file = export(model, "torchvision", tmp_path / "a")
    twin = torchvision.models.resnet.ResNet(torchvision.models.resnet.BasicBlock, [2, 1, 1, 1])
    twin.fc = torch.nn.Identity()
    twin.load_state_dict(load_file(file))
    pixel_values = images(model)
    assert_close(model(pixel_values).pooler_output, twin.eval()(pixel_values))
    with safe_open(file, "pt") as opened:
        assert '"image_mean"' in opened.metadata()["preprocessor_config.json"]

    model = build("mae", image_size=24, pooling="cls")
    names = load_file(export(model, "torchvision", tmp_path / "b"))
    assert names["encoder.layers.encoder_layer_1.self_attention.in_proj_weight"].shape == (48, 16)


@torch.no_grad()
@pytest.mark.parametrize(
    ("model_type", "backbone", "fields", "targets"),
    [
        ("simclr", "torchvision", {}, ["timm", "torchvision"]),
        ("simclr", "torchvision", {"classifier_norm": "batchnorm"}, ["timm", "torchvision"]),
        ("mae", "vit", {"pooling": "cls"}, ["timm", "torchvision"]),
        ("mae", "vit", {"classifier_norm": "layernorm"}, ["timm", "torch_export"]),  # fine-tuned as in the paper
        ("simmim", "swin", {}, ["timm"]),
    ],
)
def test_classifiers(model_type, backbone, fields, targets, tmp_path):
    labels = {0: "cat", 1: "dog", 2: "emu"}
    model = build(model_type, backbone, AutoModelForImageClassification, id2label=labels, **fields)
    pixel_values = images(model)
    expected = model(pixel_values).logits
    for to in targets:
        output = export(model, to, tmp_path / to)
        if to == "timm":
            assert json.loads((output / "config.json").read_text())["label_names"] == ["cat", "dog", "emu"]
            assert_close(expected, timm.create_model(f"local-dir:{output}", pretrained=True).eval()(pixel_values))
        elif to == "torch_export":
            assert_close(expected, torch.export.load(output).module()(pixel_values)["logits"])


@torch.no_grad()
def test_mae_to_vitmae_and_back(tmp_path):
    model = build("mae", norm_pix_loss=True)
    folder = export(model, "transformers", tmp_path) / "pretraining"
    theirs, pixel_values, noise = (
        ViTMAEForPreTraining.from_pretrained(folder),
        images(model).double(),
        torch.rand(3, 16),
    )
    expected = theirs.double()(pixel_values, noise=noise)
    read = AutoModel.from_config(model.config)
    load_foreign_checkpoint(read, folder, "transformers")
    assert all(torch.equal(x, model.state_dict()[name]) for name, x in read.state_dict().items())
    loss = read.double()(pixel_values, mode="loss", bool_masked_pos=expected.mask.bool()).loss
    torch.testing.assert_close(loss, expected.loss, rtol=1e-6, atol=0)


@torch.no_grad()
@pytest.mark.parametrize(
    ("backbone", "fields", "counterpart"),
    [
        ("swin", {}, SwinForMaskedImageModeling),
        ("swin", {"pad_small_maps": True}, SwinForMaskedImageModeling),
        ("vit", {}, ViTForMaskedImageModeling),
    ],
)
def test_simmim_to_transformers(backbone, fields, counterpart, tmp_path):
    model = build("simmim", backbone, **fields)
    folder = export(model, "transformers", tmp_path)
    theirs, info = counterpart.from_pretrained(folder / "pretraining", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    pixel_values = images(model)
    mask = model.patch_mask(pixel_values, None)
    options = {"always_partition": True} if fields else {}
    expected = theirs(pixel_values, bool_masked_pos=mask, **options).loss
    assert_close(model(pixel_values, mode="loss", bool_masked_pos=mask).loss, expected)


@torch.no_grad()
@pytest.mark.parametrize(
    ("model_type", "backbone", "fields"),
    [("mae", "vit", {"image_size": 24}), ("simclr", "cifar_resnet", {})],
)
def test_torch_export(model_type, backbone, fields, tmp_path, monkeypatch):
    monkeypatch.setattr("ssl_hub.modules.backbones._ANSWERS", {})  # as in a process that has just begun
    model = build(model_type, backbone, **fields)
    program = torch.export.load(export(model, "torch_export", tmp_path)).module()
    for batch in (images(model), images(model)[:1]):
        outputs = program(batch)
        assert outputs.keys() == {"last_hidden_state", "pooler_output"}
        assert_close(model(batch).pooler_output, outputs["pooler_output"])


def test_onnx(tmp_path):
    """With the packages that it takes, and without."""
    model, missing = build("mae"), [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        with pytest.raises(ValueError, match=f"an export to ONNX needs .*: pip install {' '.join(missing)}$"):
            export(model, "onnx", tmp_path)
        assert not list(tmp_path.iterdir())
    else:
        folder = export(model, "onnx", tmp_path)
        assert {path.name for path in folder.iterdir()} == {"model.onnx", "preprocessor_config.json"}


@pytest.mark.parametrize(
    ("to", "model_type", "backbone", "fields", "message"),
    [
        (
            "timm",
            "beitv1",
            "beit",
            {},
            "'beit' gives the class token, and this model is pooled by the mean .*--pooling cls",
        ),
        (
            "timm",
            "simclr",
            "cifar_resnet",
            {},
            "no counterpart in timm of the backbone 'cifar_resnet'; there is one of",
        ),
        (
            "timm",
            "deepcluster",
            "gradients",
            {"sobel": True},
            "takes 2 channels that a filter makes .*--to transformers",
        ),
        (
            "transformers",
            "simclr",
            "cifar_resnet",
            {},
            "transformers has no counterpart of the backbone 'cifar_resnet'",
        ),
        (
            "torchvision",
            "simmim",
            "swin",
            {},
            "no counterpart in torchvision of 'swin'; there is one of 'resnet' and 'vit'",
        ),
        (
            "torchvision",
            "simclr",
            "resnet",
            {},
            r"no 'resnet' with hidden_sizes=\[8, 12, 16, 20\], only with \[256, 512",
        ),
        ("timm", "simmim", "swin", {"pad_small_maps": True}, "no 'simmim' with pad_small_maps=True, only with False"),
        ("mmselfsup", "simclr", "timm", {}, "backbone.timm_model.conv1.weight, .* has no counterpart in mmselfsup"),
        (
            "paddle",
            "simclr",
            "resnet",
            {},
            "no export to 'paddle'; there is one to timm, torchvision, transformers, onnx",
        ),
    ],
)
def test_what_has_no_counterpart(to, model_type, backbone, fields, message, tmp_path):
    suffix = TARGETS[to].suffix if to in TARGETS else ""
    with pytest.raises(ValueError, match=message):
        export_model(build(model_type, backbone, **fields), to, tmp_path / f"x{suffix}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("to", "fields", "message"),
    [
        (
            "timm",
            {"classifier_stages": [0, 1], "classifier_stage_pooling": "adaptive"},
            "classifier on stages of 'resnet'",
        ),
        ("torchvision", {"classifier_norm": "layernorm"}, "on a LayerNorm of the pooled features of 'resnet'"),
        ("mmselfsup", {}, "an image classifier of ssl_hub is not exported to mmselfsup"),
    ],
)
def test_classifiers_without_counterpart(to, fields, message, tmp_path):
    model = build("simclr", "torchvision", AutoModelForImageClassification, **fields)
    with pytest.raises(ValueError, match=message):
        export_model(model, to, tmp_path / f"x{TARGETS[to].suffix}")


def test_what_differs_is_not_written(tmp_path, monkeypatch):
    model = build("mae")
    monkeypatch.setattr(timm.models.vision_transformer.VisionTransformer, "pool", lambda self, x, **_: x[:, 1])
    with pytest.raises(
        ValueError, match="timm computes something else of the exported model: its pooler_output differs"
    ):
        export_model(model, "timm", tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_example(tmp_path, monkeypatch, capsys):
    model = build("mae")
    model.save_pretrained(tmp_path / "model")
    ViTModel(model.config.backbone_config).save_pretrained(tmp_path / "plain")
    classifier = build("mae", auto_class=AutoModelForImageClassification, classifier_norm="layernorm", num_labels=3)
    classifier.save_pretrained(tmp_path / "classifier")

    def run(**arguments):
        monkeypatch.setattr(
            sys, "argv", ["export_model.py", *(f"--{name}={value}" for name, value in arguments.items())]
        )
        runpy.run_path(str(REPOSITORY / "examples" / "export_model.py"), run_name="__main__")

    file = tmp_path / "new" / "vit.safetensors"
    run(model_name_or_path=tmp_path / "model", to="torchvision", output=file, pooling="cls")
    assert f"the model for torchvision is {file}; its largest difference to ours is " in capsys.readouterr().out
    assert "class_token" in load_file(file)
    run(model_name_or_path=tmp_path / "classifier", to="timm", output=tmp_path / "timm")
    assert "head.weight" in load_file(tmp_path / "timm" / "model.safetensors")
    for arguments, message in (
        ({"to": "torchvision", "output": file}, "error: .*vit.safetensors exists already, and nothing is written over"),
        ({"to": "mmselfsup", "output": tmp_path / "x"}, r"error: .* is a file whose name ends in \.pth; got "),
        (
            {"to": "timm", "output": tmp_path / "y", "model_name_or_path": tmp_path / "plain"},
            "error: .* is a 'vit' of ",
        ),
    ):
        with pytest.raises(SystemExit, match=message):
            run(**{"model_name_or_path": tmp_path / "model", **arguments})
    assert AutoImageProcessor.from_pretrained(export(load_model(tmp_path / "model"), "transformers", tmp_path / "z"))
