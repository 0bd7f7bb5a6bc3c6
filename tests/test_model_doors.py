"""The ways into a model that users of transformers know: arguments, checkpointing, Auto classes, adapters."""

import inspect

import pytest
import torch
from joint_embedding_common import BACKBONES
from test_modeling_common import find_test_class
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForMaskedImageModeling,
    ViTConfig,
)

from ssl_hub import BEiTV1Model, BYOLConfig, BYOLModel, SimMIMModel, SSLModel
from ssl_hub.data.processing import build_image_processor
from ssl_hub.lifecycle import Progress
from ssl_hub.modules.backbones import build_backbone
from ssl_hub.training.recipes import load_recipe

TINY_VIT = {
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
TINY = {"projection_hidden_size": 16, "projection_size": 8, "predictor_hidden_size": 16}


def byol(backbone):
    torch.manual_seed(0)
    return AutoModel.from_config(BYOLConfig(backbone_config=backbone, image_size=16, **TINY))


def test_forward_names_its_arguments():
    """By which transformers' Trainer knows the columns to keep; a parameter `labels` would make it ask for labels."""
    names = inspect.signature(SSLModel.forward).parameters
    assert {"pixel_values", "bool_masked_pos", "target_pixel_values", "indices", "return_loss"} <= names.keys()
    assert not any("label" in name for name in names)


def test_positions_are_always_interpolated():
    model = byol({"model_type": "vit", **TINY_VIT}).eval()
    images = torch.randn(1, 3, 24, 24)
    assert torch.equal(model(images, interpolate_pos_encoding=True)[0], model(images)[0])
    with pytest.raises(ValueError, match="interpolate_pos_encoding=False .* leave it out"):
        model(images, interpolate_pos_encoding=False)


@pytest.mark.parametrize("name", ["resnet", "convnext"])
def test_gradient_checkpointing_that_a_backbone_lacks_is_refused(name):
    with pytest.raises(ValueError, match="has no gradient checkpointing, .*: leave it out, or take a backbone"):
        byol(BACKBONES[name]).gradient_checkpointing_enable()


def test_gradient_checkpointing_of_timm_is_its_own():
    model = byol(BACKBONES["timm"])
    model.gradient_checkpointing_enable()
    assert model.backbone.timm_model.grad_checkpointing
    model.gradient_checkpointing_disable()
    assert not model.backbone.timm_model.grad_checkpointing


def plain(name, folder):
    """A backbone of transformers with weights of its own, saved in a folder; and the features of an image."""
    torch.manual_seed(1)
    config = {"vit": ViTConfig(**TINY_VIT), "timm": BACKBONES["timm"], "convnext": BACKBONES["convnext"]}[name]
    model = build_backbone(config).eval()
    model.save_pretrained(folder)
    build_image_processor(16, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)).save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", ["vit", "timm", "convnext"])
def test_an_algorithm_starts_from_a_plain_backbone(name, tmp_path, caplog):
    images = torch.randn(2, 3, 32, 32)
    expected = plain(name, tmp_path)(images, **({"interpolate_pos_encoding": True} if name == "vit" else {}))
    model, info = BYOLModel.from_pretrained(tmp_path, image_size=32, output_loading_info=True, **TINY)
    assert torch.equal(model.eval()(images).last_hidden_state, expected.last_hidden_state)
    assert model.config.image_size == 32 and model.config.image_mean == [0.5] * 3
    (line,) = [record.message for record in caplog.records if record.name == "ssl_hub.modeling_utils"]
    assert line == f"BYOLModel starts from the backbone {tmp_path}; new: neck, head"
    assert "neck.fc0.weight" in info["missing_keys"] and not any(
        key.startswith("backbone.") for key in info["missing_keys"]
    )
    student, teacher = model.backbone.state_dict(), model.teacher.backbone.state_dict()
    assert all(torch.equal(teacher[key], tensor) for key, tensor in student.items())
    assert not any(parameter.requires_grad for parameter in model.teacher.parameters())


def test_a_masked_image_model_starts_from_a_plain_backbone(tmp_path, caplog):
    backbone = plain("vit", tmp_path)
    fields = {"mask_kind": "random", "image_size": 16}
    model = SimMIMModel.from_pretrained(tmp_path, **fields).eval()
    assert caplog.messages[-1].endswith("new: backbone.embeddings.mask_token, neck")
    images = torch.randn(1, 3, 16, 16)
    assert torch.equal(model(images)[0], backbone(images).last_hidden_state)
    model.backbone.save_pretrained(tmp_path / "backbone")  # as what is shared has it
    again = SimMIMModel.from_pretrained(tmp_path, subfolder="backbone", **fields).eval()
    assert torch.equal(again(images)[0], model(images)[0])


def test_a_backbone_that_does_not_fit(tmp_path):
    plain("vit", tmp_path / "vit")
    with pytest.raises(ValueError, match="model_type of its backbone must be 'beit'"):
        BEiTV1Model.from_pretrained(tmp_path / "vit")
    config = BYOLConfig(backbone_config={"model_type": "vit", **TINY_VIT, "patch_size": 8}, **TINY)
    with pytest.raises(ValueError, match=r"of other shapes than .*: take the backbone_config of"):
        BYOLModel.from_pretrained(tmp_path / "vit", config=config)


def test_recipe_builds_its_method_around_a_backbone(tmp_path):
    backbone = plain("vit", tmp_path)
    model = load_recipe("mae-vit-tiny-digits").build_model(name_or_path=str(tmp_path))
    recipe = load_recipe("mae-vit-tiny-digits").build_config()
    assert model.config.decoder_hidden_size == recipe.decoder_hidden_size
    assert model.config.image_size == recipe.image_size
    assert model.config.image_mean == recipe.image_mean  # the recipe's own
    assert torch.equal(model.backbone.layers[0].mlp.fc1.weight, backbone.layers[0].mlp.fc1.weight)


@pytest.mark.parametrize("model_type", ["mae", "simmim", "cae", "beitv1"])
def test_masked_image_modeling_as_in_transformers(model_type, tmp_path):
    tests = find_test_class(model_type)()
    tests.model().save_pretrained(tmp_path)
    model = AutoModelForMaskedImageModeling.from_pretrained(tmp_path).eval()
    images, inputs = tests.images(), tests.loss_inputs(8)
    outputs = model(images, **inputs)
    assert torch.equal(outputs.loss, model(images, mode="loss", **inputs).loss)
    picture = model(images, mode="predict", **inputs).reconstruction
    assert (outputs.reconstruction is None) if picture is None else torch.equal(outputs.reconstruction, picture)
    model.train()(images, **inputs).loss.backward()
    assert model(images).pooler_output is not None  # features, without a mask


class LoRALayer(nn.Module):
    """What a layer becomes under PEFT, as far as others see it."""

    active_adapters, merged = ("default",), False

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base_layer.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base_layer.out_features, bias=False)})

    def get_delta_weight(self, adapter):
        return self.lora_B[adapter].weight @ self.lora_A[adapter].weight


def add_adapters(model, but_not=()):
    names = [name for name, _ in model.named_modules() if name.endswith("q_proj") and not name.startswith(but_not)]
    for name in names:
        model.set_submodule(name, LoRALayer(model.get_submodule(name)))


def test_a_teacher_follows_the_weights_that_adapters_make():
    model, plain_model = byol({"model_type": "vit", **TINY_VIT}), byol({"model_type": "vit", **TINY_VIT})
    add_adapters(model, but_not=("teacher",))
    layer, plain_layer = (each.backbone.layers[0].attention.q_proj for each in (model, plain_model))
    plain_layer.weight.data += layer.get_delta_weight("default")
    for each in (model, plain_model):
        each.end_step(Progress(1, 2))
    expected = plain_model.teacher.state_dict()
    assert model.teacher.state_dict().keys() == expected.keys()
    changed = "backbone.layers.0.attention.q_proj.weight"
    assert torch.equal(model.teacher.state_dict()[changed], expected[changed])


def test_adapters_in_the_teacher_are_refused():
    model = byol({"model_type": "vit", **TINY_VIT})
    add_adapters(model)
    with pytest.raises(ValueError, match="teacher has adapters of its own, .* exclude_modules="):
        model.end_step(Progress(1, 2))
