"""The authors' joint-embedding checkpoints: networks built as theirs, of timm's ResNet and ViT, against the converted.

The names of MAE's are in test_conversion.py.
"""

from itertools import pairwise

import pytest
import torch
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import AutoModel, ResNetConfig, ViTConfig

from ssl_hub import BarlowTwinsConfig, MoCoConfig, MoCoV3Config, SimSiamConfig, SwAVConfig
from ssl_hub.conversion.authors import LAYOUTS
from ssl_hub.conversion.sources import load_foreign_checkpoint

SIZES = {"projection_hidden_size": 20, "projection_size": 8, "image_size": 16}
BASIC = {
    **SIZES,
    "backbone_config": ResNetConfig(depths=[2, 1, 1, 1], layer_type="basic", hidden_sizes=[8, 16, 24, 32]),
}
BOTTLENECK = {**SIZES, "backbone_config": ResNetConfig(depths=[2, 1, 1, 1], hidden_sizes=[16, 32, 48, 64])}
VIT = {
    **SIZES,
    "backbone_config": ViTConfig(
        image_size=16,
        patch_size=4,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        layer_norm_eps=1e-6,
    ),
}
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
# What a model computes, to compare with the original.
OUTPUTS = {
    "projection": lambda model: model.project(IMAGES),
    "teacher": lambda model: model.teacher_project(IMAGES),
    "prediction": lambda model: model.head(model.project(IMAGES)),
    "standardised": lambda model: model.head.bn(model.project(IMAGES)),
    "scores": lambda model: model.head.prototypes(model.project(IMAGES)),
    "queue": lambda model: model.memory.vectors,
}


def resnet(fc: nn.Module) -> nn.Module:
    network = ResNet(BasicBlock, layers=(2, 1, 1, 1), channels=(8, 16, 24, 32))
    network.fc = fc
    return network


def bottleneck_resnet(fc: nn.Module) -> nn.Module:
    network = ResNet(Bottleneck, layers=(2, 1, 1, 1), channels=(4, 8, 12, 16))
    network.fc = fc
    return network


def vit(head: nn.Module) -> nn.Module:
    network = VisionTransformer(img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, mlp_ratio=2)
    network.head = head
    return network


def mlp(*sizes: int, last_batchnorm: bool = False, last_bias: bool = False) -> nn.Module:
    """The authors' projectors and predictors."""
    layers = []
    for width, next_width in pairwise(sizes[:-1]):
        layers += [nn.Linear(width, next_width, bias=False), nn.BatchNorm1d(next_width), nn.ReLU()]
    layers.append(nn.Linear(*sizes[-2:], bias=last_bias))
    if last_batchnorm:
        layers.append(nn.BatchNorm1d(sizes[-1], affine=False))
    return nn.Sequential(*layers)


def moco(config: MoCoConfig, fc):
    original = nn.ModuleDict({"encoder_q": resnet(fc()), "encoder_k": resnet(fc())})
    original.register_buffer("queue", torch.empty(8, 12))
    original.register_buffer("queue_ptr", torch.empty(1, dtype=torch.long))
    outputs = {
        "projection": lambda: original["encoder_q"](IMAGES),
        "teacher": lambda: original["encoder_k"](IMAGES),
        "queue": lambda: original.queue.T,
    }
    return config, original, outputs


def moco_v1():
    return moco(MoCoConfig(mlp_projector=False, queue_size=12, **BASIC), lambda: nn.Linear(32, 8))


def moco_v2():
    config = MoCoConfig(queue_size=12, **BASIC)
    return moco(config, lambda: nn.Sequential(nn.Linear(32, 20), nn.ReLU(), nn.Linear(20, 8)))


def mocov3(config: MoCoV3Config, encoders: list[nn.Module], predictor: nn.Module):
    original = nn.ModuleDict({"base_encoder": encoders[0], "momentum_encoder": encoders[1], "predictor": predictor})
    outputs = {
        "projection": lambda: encoders[0](IMAGES),
        "teacher": lambda: encoders[1](IMAGES),
        "prediction": lambda: predictor(encoders[0](IMAGES)),
    }
    return config, original, outputs


def mocov3_resnet():
    encoders = [bottleneck_resnet(mlp(64, 20, 8, last_batchnorm=True)) for _ in range(2)]
    return mocov3(MoCoV3Config(predictor_hidden_size=10, **BOTTLENECK), encoders, mlp(8, 10, 8))


def mocov3_vit():
    encoders = [vit(mlp(32, 20, 20, 8, last_batchnorm=True)) for _ in range(2)]
    return mocov3(MoCoV3Config(predictor_hidden_size=10, **VIT), encoders, mlp(8, 10, 8, last_batchnorm=True))


def simsiam():
    # The last bias, in front of a BatchNorm, has no counterpart: it goes into the running mean.
    encoder = resnet(mlp(32, 20, 20, 8, last_batchnorm=True, last_bias=True))
    predictor = mlp(8, 10, 8, last_bias=True)
    outputs = {"projection": lambda: encoder(IMAGES), "prediction": lambda: predictor(encoder(IMAGES))}
    original = nn.ModuleDict({"encoder": encoder, "predictor": predictor})
    return SimSiamConfig(predictor_hidden_size=10, **BASIC), original, outputs


def barlowtwins():
    backbone, projector, bn = resnet(nn.Identity()), mlp(32, 20, 20, 8), nn.BatchNorm1d(8, affine=False)
    outputs = {
        "projection": lambda: projector(backbone(IMAGES)),
        "standardised": lambda: bn(projector(backbone(IMAGES))),
    }
    original = nn.ModuleDict({"backbone": backbone, "projector": projector, "bn": bn})
    return BarlowTwinsConfig(**BASIC), original, outputs


def swav():
    original = resnet(nn.Identity())
    original.projection_head = nn.Sequential(nn.Linear(32, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 8))
    original.prototypes = nn.Linear(8, 6, bias=False)
    outputs = {
        "projection": lambda: original.projection_head(original(IMAGES)),
        "scores": lambda: original.prototypes(original.projection_head(original(IMAGES))),
    }
    return SwAVConfig(num_prototypes=6, queue_size=4, **BASIC), original, outputs


CASES = (moco_v1, moco_v2, mocov3_resnet, mocov3_vit, simsiam, barlowtwins, swav)


def build(case):
    """Our model, the original with every tensor random, its outputs, and its state as DistributedDataParallel names it."""
    torch.manual_seed(0)
    config, original, outputs = case()
    for name, tensor in original.state_dict().items():
        if tensor.dtype == torch.long:
            tensor.fill_(7)
        elif tensor.ndim > 1:
            tensor.normal_(std=tensor[0].numel() ** -0.5)
        elif name.endswith("bias") or name.endswith("running_mean"):
            tensor.normal_(std=0.3)
        else:
            tensor.uniform_(0.5, 1.5)
    original.eval().requires_grad_(False)
    state_dict = {f"module.{name}": tensor for name, tensor in original.state_dict().items()}
    return AutoModel.from_config(config).eval(), outputs, state_dict


@torch.no_grad()
def assert_same_outputs(model, outputs) -> None:
    for name, output in outputs.items():
        torch.testing.assert_close(
            OUTPUTS[name](model), output(), rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("case", CASES)
def test_converted_model_computes_the_same(tmp_path, case):
    model, outputs, state_dict = build(case)
    key = "model" if case is barlowtwins else "state_dict"
    path = tmp_path / "checkpoint.pth.tar"
    torch.save({"epoch": 200, "arch": "resnet50", key: state_dict, "optimizer": {"state": {}}}, path)
    load_foreign_checkpoint(model, path, "authors")
    assert_same_outputs(model, outputs)
    # what no output shows: the counters of BatchNorm, and the queue's pointer
    counters = {name: tensor for name, tensor in model.state_dict().items() if tensor.dtype == torch.long}
    assert {int(tensor) for name, tensor in counters.items() if name != "counter.steps"} <= {7}


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_must_fit(tmp_path, case):
    model, _, state_dict = build(case)
    name = list(state_dict)[-1]
    torch.save({key: tensor for key, tensor in state_dict.items() if key != name}, tmp_path / "less.pth")
    with pytest.raises(ValueError, match=r"its tensors are missing \(1\)"):
        load_foreign_checkpoint(model, tmp_path / "less.pth", "authors")
    torch.save({**state_dict, "module.other": torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(ValueError, match=r"has no tensors named module\.other \(1 of "):
        load_foreign_checkpoint(model, tmp_path / "more.pth", "authors")


def test_backbone_alone(tmp_path):
    """Barlow Twins publishes the ResNet alone; and the student of MoCo, of which the teacher becomes a copy."""
    model, _, state_dict = build(barlowtwins)
    prefix = "module.backbone."
    backbone = {key[len(prefix) :]: tensor for key, tensor in state_dict.items() if key.startswith(prefix)}
    torch.save(backbone, tmp_path / "resnet50.pth")
    load_foreign_checkpoint(model, tmp_path / "resnet50.pth", "torchvision")
    assert torch.equal(model.backbone.embedder.embedder.convolution.weight, backbone["conv1.weight"])

    model, outputs, state_dict = build(moco_v2)
    student = {key: tensor for key, tensor in state_dict.items() if key.startswith("module.encoder_q.")}
    torch.save(student, tmp_path / "student.pth")
    load_foreign_checkpoint(model, tmp_path / "student.pth", "authors", new=("teacher.", "memory."))
    assert_same_outputs(model, {"projection": outputs["projection"], "teacher": outputs["projection"]})


def test_a_projector_of_any_number_of_layers():
    layout = next(layout for layout in LAYOUTS if layout.model_type == "barlowtwins")
    state_dict = {f"module.projector.{index}.weight": torch.zeros(1) for index in (0, 1, 3, 4, 6, 7, 9)}
    names = {f"neck.{kind}{layer}.weight" for layer in range(4) for kind in ("fc", "bn")} - {"neck.bn3.weight"}
    assert set(layout.to_ours(state_dict)) == names
