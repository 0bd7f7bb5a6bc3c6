"""Any vision model of transformers or timm, with the algorithms that ask most of a backbone."""

import dataclasses

import pytest
import timm
import torch
import torch.distributed as dist
from processes import run_processes
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    AutoModel,
    BeitConfig,
    BertConfig,
    BitConfig,
    CLIPConfig,
    CLIPVisionConfig,
    ConvNextConfig,
    ConvNextV2Config,
    CvtConfig,
    DeiTConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    EfficientNetConfig,
    FocalNetConfig,
    HieraConfig,
    IJepaConfig,
    LevitConfig,
    MobileNetV1Config,
    MobileNetV2Config,
    MobileViTConfig,
    PoolFormerConfig,
    PvtConfig,
    PvtV2Config,
    RegNetConfig,
    ResNetConfig,
    SegformerConfig,
    SiglipVisionConfig,
    SwinConfig,
    Swinv2Config,
    TimmWrapperConfig,
    VideoMAEConfig,
    ViTConfig,
    ViTMAEConfig,
    ViTModel,
)

from ssl_hub import BYOLConfig, DenseCLConfig, MAEConfig, MoCoV3Config, SimCLRConfig
from ssl_hub.distributed import gather, synchronize_batchnorm
from ssl_hub.modules.backbones import (
    backbone_hidden_size,
    backbone_layout,
    backbone_map_size,
    build_backbone,
    feature_map,
    no_weight_decay_names,
    run_backbone,
)
from ssl_hub.modules.configuration_cifar_resnet import CifarResNetConfig

torch.set_num_threads(1)

VIT = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
DINOV2 = {key: value for key, value in VIT.items() if key != "intermediate_size"}
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
FOUR_STAGES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
TIMM_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
CVT_STAGES = {
    "patch_sizes": [3, 3, 3],
    "patch_stride": [2, 2, 2],
    "patch_padding": [1, 1, 1],
    "embed_dim": [8, 8, 16],
    "num_heads": [1, 1, 2],
    "depth": [1, 2, 3],  # its drop path asks for no fewer
}
FAMILIES = {
    "vit": ViTConfig(**VIT),
    "deit": DeiTConfig(**VIT),
    "beit": BeitConfig(**VIT, use_relative_position_bias=True),
    "dinov2": Dinov2Config(**DINOV2),
    "dinov2_with_registers": Dinov2WithRegistersConfig(**DINOV2),
    "dinov3_vit": DINOv3ViTConfig(**VIT, num_register_tokens=4),
    "ijepa": IJepaConfig(**VIT),
    "clip_vision": CLIPVisionConfig(**VIT),
    "siglip_vision": SiglipVisionConfig(**VIT),
    "swin": SwinConfig(**SWIN),
    "swinv2": Swinv2Config(**SWIN),
    "hiera": HieraConfig(image_size=[64, 64], embed_dim=8, depths=[1, 1, 1, 1]),
    "pvt": PvtConfig(image_size=64, num_attention_heads=[1, 1, 2, 2], **FOUR_STAGES),
    "pvt_v2": PvtV2Config(image_size=64, num_attention_heads=[1, 1, 2, 2], **FOUR_STAGES),
    "segformer": SegformerConfig(num_attention_heads=[1, 1, 2, 2], **FOUR_STAGES),
    "cvt": CvtConfig(**CVT_STAGES),
    "levit": LevitConfig(
        image_size=64, hidden_sizes=[16, 24, 32], num_attention_heads=[1, 2, 2], depths=[1, 1, 1], key_dim=[8, 8, 8]
    ),
    "focalnet": FocalNetConfig(
        image_size=32, embed_dim=8, depths=[1, 1], focal_levels=[1, 1], focal_windows=[3, 3], patch_size=4
    ),
    "poolformer": PoolFormerConfig(**FOUR_STAGES),
    "convnext": ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=2, image_size=32),
    "convnextv2": ConvNextV2Config(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=2, image_size=32),
    "resnet": ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
    "cifar_resnet": CifarResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
    "regnet": RegNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=8),
    "bit": BitConfig(embedding_size=32, hidden_sizes=[32, 64], depths=[1, 1], num_groups=8),
    "mobilenet_v1": MobileNetV1Config(depth_multiplier=0.25, image_size=64),
    "mobilenet_v2": MobileNetV2Config(depth_multiplier=0.35, image_size=64, finegrained_output=False),
    "mobilevit": MobileViTConfig(
        image_size=64,
        hidden_sizes=[16, 24, 32],
        neck_hidden_sizes=[8, 8, 12, 16, 16, 24, 40],
        num_attention_heads=2,
    ),
    "efficientnet": EfficientNetConfig(
        image_size=64, width_coefficient=0.25, depth_coefficient=0.1, hidden_dim=320, dropout_rate=0.0
    ),
    "timm resnet18": TimmWrapperConfig(architecture="resnet18", model_args={"channels": [8, 8, 16, 16]}),
    "timm mobilenetv3": TimmWrapperConfig(architecture="mobilenetv3_small_050"),
    "timm efficientnet": TimmWrapperConfig(architecture="test_efficientnet"),
    "timm convnext": TimmWrapperConfig(
        architecture="convnext_atto", model_args={"dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
    ),
    "timm swin": TimmWrapperConfig(
        architecture="swin_tiny_patch4_window7_224",
        model_args={"img_size": 64, "embed_dim": 8, "depths": [1] * 4, "num_heads": [1, 1, 2, 2], "window_size": 2},
    ),
    "timm vit": TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args=TIMM_VIT),
    "timm vit, registers": TimmWrapperConfig(
        architecture="vit_tiny_patch16_224", model_args={**TIMM_VIT, "reg_tokens": 4}
    ),
}
ALGORITHMS = {
    "simclr": (SimCLRConfig, {}),
    "byol": (BYOLConfig, {"predictor_hidden_size": 16}),
    "densecl": (DenseCLConfig, {"queue_size": 16}),
}
# Prefix tokens, where the last hidden state holds tokens.
PREFIX_TOKENS = {
    "vit": 1,
    "deit": 2,
    "beit": 1,
    "dinov2": 1,
    "dinov2_with_registers": 5,
    "dinov3_vit": 5,
    "ijepa": 0,
    "clip_vision": 1,
    "siglip_vision": 0,
    "swin": 0,
    "swinv2": 0,
    "hiera": 0,
    "pvt": 1,
    "levit": 0,
    "focalnet": 0,
    "timm vit": 1,
    "timm vit, registers": 5,
}


def image_size(name):
    size = 32 if name in ("cifar_resnet", "resnet", "regnet", "bit") else 64
    config = FAMILIES[name]
    size = (getattr(config, "model_args", None) or {}).get("img_size") or getattr(config, "image_size", size)
    return min(size if isinstance(size, int) else size[0], 64)


def images(name, batch_size=4):
    size = image_size(name)
    return torch.randn(batch_size, 3, size, size, generator=torch.Generator().manual_seed(1))


def build(algorithm, name, **overrides):
    config_class, fields = ALGORITHMS[algorithm]
    torch.manual_seed(0)
    fields = {"projection_hidden_size": 16, "projection_size": 8, "image_size": image_size(name), **fields, **overrides}
    return AutoModel.from_config(config_class(backbone_config=FAMILIES[name], **fields))


def assert_close(values, expected):
    """To float32 rounding: how a convolution adds up depends on where its weights lie in memory."""
    assert values.shape == expected.shape
    assert (values - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
@pytest.mark.parametrize("name", list(FAMILIES))
def test_trains_every_parameter_and_is_saved_whole(name, algorithm, tmp_path):
    model = build(algorithm, name).train()
    loss = model([images(name), images(name).flip(0)], mode="loss").loss
    loss.backward()
    assert torch.isfinite(loss)
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    if algorithm != "simclr":  # the rest is about the backbone
        return
    model.save_pretrained(tmp_path)
    model.backbone.save_pretrained(tmp_path / "backbone")
    outputs = model.eval()(images(name))
    assert outputs.pooler_output.shape == (4, backbone_hidden_size(model.backbone))
    loaded, plain = AutoModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path / "backbone")
    assert_close(loaded(images(name)).pooler_output, outputs.pooler_output)
    assert_close(run_backbone(plain, images(name)).last_hidden_state, outputs.last_hidden_state)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_features_are_read_as_the_model_means_them(name):
    torch.manual_seed(0)
    backbone = build_backbone(FAMILIES[name]).eval()
    layout, x = backbone_layout(backbone), images(name)
    by_class, by_mean = (run_backbone(backbone, x, pooling) for pooling in ("cls", "mean"))
    features = feature_map(backbone, by_mean.last_hidden_state)
    assert features.shape[:2] == (4, backbone_map_size(backbone)) and features.shape[2] == features.shape[3]
    if name in PREFIX_TOKENS:
        assert layout.num_prefix_tokens == PREFIX_TOKENS[name]
    else:
        assert by_mean.last_hidden_state.ndim == 4
    if not layout.pools:
        assert torch.allclose(by_mean.pooler_output, features.mean(dim=(2, 3)), atol=1e-6)
    if not layout.pools and layout.num_prefix_tokens > 0:
        assert torch.equal(by_class.pooler_output, by_class.last_hidden_state[:, 0])
    if layout.num_prefix_tokens == 0 and name != "cvt":  # whose class token is not among the tokens
        assert torch.equal(by_class.pooler_output, by_mean.pooler_output)


def test_cvt_has_its_class_token_apart():
    backbone = build_backbone(FAMILIES["cvt"]).eval()
    x = images("cvt")
    assert torch.equal(run_backbone(backbone, x, "cls").pooler_output, backbone(x).cls_token_value[:, 0])


def test_the_feature_map_is_where_the_image_is():
    """Something in the lower left corner shows in the lower left of the map, not in the upper right."""
    backbone = build_backbone(FAMILIES["timm swin"]).eval()
    x = torch.zeros(1, 3, 64, 64)
    x[:, :, -8:, :8] = 10.0
    empty, marked = (feature_map(backbone, run_backbone(backbone, y).last_hidden_state)[0] for y in (0 * x, x))
    assert (marked - empty).norm(dim=0).flatten().argmax() == 2  # of 2 x 2


def test_unused_parameters_become_buffers_of_the_same_checkpoint(tmp_path):
    plain = AutoModel.from_config(FAMILIES["dinov2"])
    backbone = build_backbone(FAMILIES["dinov2"])
    assert backbone.state_dict().keys() == plain.state_dict().keys()
    assert set(dict(plain.named_parameters())) - set(dict(backbone.named_parameters())) == {"embeddings.mask_token"}
    plain.embeddings.mask_token.data.fill_(3.0)
    plain.save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path, config=SimCLRConfig(backbone_config=FAMILIES["dinov2"]))
    assert (model.backbone.embeddings.mask_token == 3.0).all()
    assert "backbone.embeddings.mask_token" not in dict(model.named_parameters())


@pytest.mark.parametrize("name", ["dinov2", "timm vit", "resnet"])
def test_a_backbone_is_looked_at_on_the_meta_device_too(name):
    with torch.device("meta"):
        assert backbone_layout(build_backbone(FAMILIES[name])) == backbone_layout(build_backbone(FAMILIES[name]))


def test_looking_at_a_backbone_leaves_it_as_it_was():
    torch.manual_seed(0)
    before = AutoModel.from_config(FAMILIES["timm mobilenetv3"])
    before.timm_model.bn1.eval()
    state = {key: value.clone() for key, value in before.state_dict().items()}
    modes = [module.training for module in before.modules()]
    random_state = torch.get_rng_state()
    assert backbone_layout(before).hidden_size == 1024
    assert all(torch.equal(value, state[key]) for key, value in before.state_dict().items())
    assert [module.training for module in before.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(p.grad is None and p.requires_grad for p in before.parameters())


TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BertConfig(**TINY), "'bert' cannot be a backbone: it takes input_ids, not images alone"),
        (
            CLIPConfig(text_config={**TINY, "vocab_size": 8}, vision_config=VIT),
            "'clip' cannot be a backbone.*give.*vision_config|'clip' .*its vision_config",
        ),
        (ViTMAEConfig(**VIT), "'vit_mae' cannot be a backbone.*draws at random in eval mode"),
        (VideoMAEConfig(**TINY, image_size=32), "'videomae' cannot be a backbone: a forward pass on an image .* fails"),
        (
            TimmWrapperConfig(architecture="resnet18", model_args={"features_only": True}),
            "timm's 'resnet18' cannot be a backbone: it returns no last hidden state, or several",
        ),
    ],
)
def test_what_cannot_be_a_backbone_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        AutoModel.from_config(SimCLRConfig(backbone_config=config))


def test_configurations_that_cannot_work_are_refused():
    mae = MAEConfig(backbone_config={**VIT})
    with pytest.raises(ValueError, match="'simclr' cannot be another self-supervised model .'mae'.*backbone_config"):
        SimCLRConfig(backbone_config=mae)
    with pytest.raises(ValueError, match="no model_type 'resnt' for backbone_config; near it: resnet"):
        SimCLRConfig(backbone_config={"model_type": "resnt"})
    with pytest.raises(ValueError, match=r"must be square; that of 'vit' is \(32, 64\)"):
        SimCLRConfig(backbone_config=ViTConfig(image_size=(32, 64)))


def test_image_size_and_channels_come_from_the_backbone():
    for name in ("hiera", "pvt_v2", "levit", "timm swin"):
        assert SimCLRConfig(backbone_config=FAMILIES[name]).image_size == 64
    assert SimCLRConfig(backbone_config=TimmWrapperConfig(architecture="test_vit")).image_size == 160
    grey = TimmWrapperConfig(architecture="resnet18", model_args={"in_chans": 1, "channels": [8, 8, 16, 16]})
    config = SimCLRConfig(backbone_config=grey, image_mean=[0.5], image_std=[0.5], projection_hidden_size=8)
    assert config.num_channels == 1
    assert AutoModel.from_config(config)(torch.zeros(2, 1, 32, 32)).pooler_output.shape == (2, 16)


def test_a_backbone_without_a_map_is_refused_where_one_is_needed():
    backbone = build_backbone(FAMILIES["vit"])
    backbone._layout = dataclasses.replace(backbone._layout, map_size=None)
    with pytest.raises(ValueError, match="needs a backbone with a feature map or tokens; 'vit' has none"):
        backbone_map_size(backbone)
    with pytest.raises(ValueError, match="needs square images; 'vit' made 8 patches"):
        feature_map(backbone, torch.zeros(1, 9, 16))


def test_zero_init_residual():
    for name in ("resnet", "cifar_resnet", "regnet", "timm resnet18"):
        counts = []
        for zero_init_residual in (False, True):
            backbone = build_backbone(FAMILIES[name], zero_init_residual)
            norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
            counts.append(sum(bool((norm.weight == 0).all()) for norm in norms))
        num_blocks = 8 if name == "timm resnet18" else 2
        assert counts == [0, num_blocks], name


def test_what_is_free_of_weight_decay():
    assert no_weight_decay_names(build_backbone(FAMILIES["vit"])) == {
        "embeddings.cls_token",
        "embeddings.position_embeddings",
    }
    assert no_weight_decay_names(build_backbone(FAMILIES["dinov2_with_registers"])) == {
        "embeddings.cls_token",
        "embeddings.register_tokens",
        "embeddings.position_embeddings",
    }
    assert no_weight_decay_names(build_backbone(FAMILIES["clip_vision"])) == {
        "embeddings.class_embedding",
        "embeddings.position_embedding.weight",
    }
    assert no_weight_decay_names(build_backbone(FAMILIES["timm vit, registers"])) == {
        "timm_model.cls_token",
        "timm_model.reg_token",
        "timm_model.pos_embed",
    }
    for name in ("swin", "timm swin"):
        names = no_weight_decay_names(build_backbone(FAMILIES[name]))
        assert names and all(name.endswith("relative_position_bias_table") for name in names)
    assert no_weight_decay_names(build_backbone(FAMILIES["resnet"])) == set()


# Checkpoints of the ViTs of MAE and MoCo v3

MAE = {
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 16,
}


def keys_in_file(model, folder):
    model.save_pretrained(folder)
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


@pytest.mark.parametrize(("config_class", "fields"), [(MAEConfig, MAE), (MoCoV3Config, {})])
def test_the_vit_of_an_algorithm_reads_and_writes_plain_checkpoints(config_class, fields, tmp_path):
    plain = ViTModel(ViTConfig(**VIT), add_pooling_layer=False)
    plain_keys = keys_in_file(plain, tmp_path / "plain")
    # The names that every version of transformers reads.
    assert "encoder.layer.0.attention.attention.query.weight" in plain_keys
    if config_class is MoCoV3Config:
        fields = {"projection_hidden_size": 16, "projection_size": 8, "predictor_hidden_size": 16}
    config = config_class(backbone_config={"model_type": "vit", **VIT}, **fields)
    model = AutoModel.from_config(config).eval()
    assert keys_in_file(model.backbone, tmp_path / "backbone") == plain_keys
    loaded = ViTModel.from_pretrained(tmp_path / "backbone", add_pooling_layer=False).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(x).last_hidden_state, model(x).last_hidden_state)

    whole, info = type(model).from_pretrained(tmp_path / "plain", config=config, output_loading_info=True)
    assert not any(key.startswith("backbone.") for key in info["missing_keys"]) and not info["unexpected_keys"]
    for name, tensor in plain.state_dict().items():
        assert torch.equal(whole.backbone.state_dict()[name], tensor), name

    whole_keys = keys_in_file(model, tmp_path / "whole")
    assert {f"backbone.{key}" for key in plain_keys} <= whole_keys
    again, info = AutoModel.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    # The same from a file under the names of the modules.
    save_file(model.state_dict(), tmp_path / "whole" / "model.safetensors", metadata={"format": "pt"})
    again, info = AutoModel.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


# Two processes

DISTRIBUTED = ("dinov2", "deit", "timm efficientnet")


def step(name, part, world_size):
    model = build("simclr", name).double().train()
    if world_size > 1:
        synchronize_batchnorm(model, torch.device("cpu"))
        synchronize_batchnorm(model, torch.device("cpu"))  # as when a model is trained once more
    module = DistributedDataParallel(model, broadcast_buffers=False) if world_size > 1 else model
    x = images(name, batch_size=8).double()
    for _ in range(2):  # DistributedDataParallel complains of unused parameters in the second step
        module.zero_grad()
        loss = module([x[part], x.flip(0)[part]], mode="loss").loss
        loss.backward()
    results = {f"grad/{n}": p.grad for n, p in model.named_parameters()}
    results |= {f"state/{n}": b for n, b in model.named_buffers() if "running" in n}
    results["features"] = model.eval()(x).pooler_output
    return {"loss": gather(loss[None]).mean(), **results}


def run_process(folder):
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for name in DISTRIBUTED:
        results = step(name, slice(4 * rank, 4 * rank + 4), 2)
        if rank == 0:
            save_file(
                {key: value.detach().contiguous() for key, value in results.items()}, folder / f"{name}.safetensors"
            )


def test_two_processes_equal_one(tmp_path):
    run_processes(run_process, 2, tmp_path)
    for name in DISTRIBUTED:
        expected, got = step(name, slice(None), 1), load_file(tmp_path / f"{name}.safetensors")
        assert expected.keys() == got.keys()
        for key, value in expected.items():
            assert (got[key] - value).norm() <= 1e-5 * value.norm() + 1e-9, f"{name} {key}"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_synchronised_batchnorm_keeps_its_activation(device):
    """The layers are exchanged without a GPU too."""
    model = nn.Sequential(BatchNormAct2d(3, act_layer=nn.SiLU), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    activation, names = model[0].act, set(model.state_dict())
    for _ in range(2):  # the second time as when a model is trained once more
        synchronize_batchnorm(model, torch.device(device))
        assert model[0].act is activation and isinstance(activation, nn.SiLU)
        assert set(model.state_dict()) == names
        assert isinstance(model[2], nn.SyncBatchNorm) == (device == "cuda")
    if device == "cpu":
        x = torch.randn(2, 3, 4, 4)
        assert torch.allclose(
            model[:1](x), nn.SiLU()(nn.functional.batch_norm(x, None, None, training=True)), atol=1e-6
        )


def test_batchnorm_that_cannot_be_synchronised_is_refused():
    class Scaled(nn.BatchNorm2d):
        def forward(self, input):
            return 2 * super().forward(input)

    with pytest.raises(ValueError, match="0 is a Scaled, a BatchNorm with a forward of its own"):
        synchronize_batchnorm(nn.Sequential(Scaled(3)), torch.device("cpu"))


@pytest.mark.parametrize("architecture", ["resnet18", "vit_tiny_patch16_224"])
def test_a_timm_backbone_starts_as_timm_has_it(architecture):
    config = SimCLRConfig(backbone_config=TimmWrapperConfig(architecture=architecture), zero_init_residual=False)
    torch.manual_seed(0)
    state = AutoModel.from_config(config).backbone.timm_model.state_dict()
    torch.manual_seed(1)
    expected = timm.create_model(architecture, num_classes=0).state_dict()
    for name, tensor in expected.items():
        if tensor.ndim > 1:
            assert state[name].std().item() == pytest.approx(tensor.std().item(), rel=0.1), name
