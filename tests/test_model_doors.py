"""The ways into a model that users of transformers know: arguments, checkpointing, Auto classes, adapters."""

import inspect

import pytest
import torch
from joint_embedding_common import BACKBONES
from transformers import AutoModel

from ssl_hub import BYOLConfig, SimMIMConfig, SSLModel

TINY_VIT = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
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
