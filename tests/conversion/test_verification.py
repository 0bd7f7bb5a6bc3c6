"""Models of other libraries, saved by themselves: converted, recognised, and their features compared."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from timm.models.beit import Beit
from timm.models.resnet import Bottleneck, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from transformers import (
    AutoModel,
    SwinConfig,
    SwinForMaskedImageModeling,
    ViTConfig,
    ViTForMaskedImageModeling,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

from ssl_hub import CAEConfig, MAEConfig, MoCoConfig, SimCLRConfig, SimMIMConfig
from ssl_hub.conversion.sources import config_of_checkpoint, layouts_of, load_foreign_checkpoint, to_theirs

REPOSITORY = Path(__file__).parents[2]
TRANSFORMER = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
VIT = {
    **{"image_size": 16, "patch_size": 4, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 64, "layer_norm_eps": 1e-6},
}
SWIN = {
    **{"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 2, 4]},
    "window_size": 2,
}
RESNET = {"depths": [1, 2, 1, 1], "hidden_sizes": [16, 32, 48, 64], "layer_type": "bottleneck"}
PROJECTOR = {"projection_hidden_size": 8, "projection_size": 4}


def swin():
    sizes = {"img_size": 32, **{name: SWIN[name] for name in ("patch_size", "embed_dim", "depths", "num_heads")}}
    return SwinTransformer(**sizes, window_size=2)


def simclr(backbone_config):
    return SimCLRConfig(backbone_config=backbone_config, **PROJECTOR)


# What another library makes, our model, and what is recognised.
ALONE = {
    "torchvision": (
        lambda: torchvision.models.resnet18(num_classes=3),
        simclr({"model_type": "resnet", "layer_type": "basic", "depths": [2] * 4, "hidden_sizes": [64, 128, 256, 512]}),
        "torchvision (a backbone alone)",
    ),
    "timm's ResNet": (
        lambda: ResNet(Bottleneck, (1, 2, 1, 1), channels=(4, 8, 12, 16), num_classes=0),
        simclr({"model_type": "resnet", **RESNET}),
        "torchvision (a backbone alone)",
    ),
    "timm's ViT": (
        lambda: VisionTransformer(**TRANSFORMER, num_classes=3),
        MAEConfig(backbone_config=VIT, decoder_hidden_size=8, decoder_num_attention_heads=2),
        "timm (a backbone alone)",
    ),
    "timm's Swin": (swin, simclr({"model_type": "swin", **SWIN}), "timm (a backbone alone)"),
}


def random_(model):
    """Every tensor random, running statistics and position tables too."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5) if "running_var" in name else tensor.normal_(std=0.2)
    return model.eval()


@pytest.mark.parametrize("name", ALONE)
def test_backbones_alone(name, tmp_path):
    build, config, layout = ALONE[name]
    original, model = random_(build()), AutoModel.from_config(config).eval()
    torch.save(original.state_dict(), tmp_path / "model.pth")
    before = model.neck.state_dict()
    conversion = load_foreign_checkpoint(model, tmp_path / "model.pth", verify=True)
    assert str(conversion.layout) == layout and conversion.difference < 1e-5
    assert {name.split(".")[0] for name in conversion.new} == {"neck"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.neck.state_dict().items())
    assert set(conversion.dropped.values()) <= {"the classifier", "computed from the size of the windows"}
    if name == "torchvision":  # by the library itself as well
        images = torch.randn(2, 3, 64, 64)
        network = torch.nn.Sequential(*list(original.children())[:-2])
        with torch.no_grad():
            torch.testing.assert_close(model(images).last_hidden_state, network(images))


def under(prefix, module):
    return {f"{prefix}{name}": tensor for name, tensor in module.state_dict().items()}


def moco_of_its_authors():
    config = MoCoConfig(backbone_config={"model_type": "resnet", **RESNET}, queue_size=6, **PROJECTOR)
    projector = {f"fc.{index}.{kind}": torch.randn(*shape) for index, kind, shape in MOCO_PROJECTOR}
    encoder = {
        **random_(ResNet(Bottleneck, (1, 2, 1, 1), channels=(4, 8, 12, 16), num_classes=0)).state_dict(),
        **projector,
    }
    state_dict = {f"module.encoder_{letter}.{name}": tensor for letter in "qk" for name, tensor in encoder.items()}
    queue = {"module.queue": torch.randn(4, 6), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    return {"state_dict": {**state_dict, **queue}}, config


MOCO_PROJECTOR = [(0, "weight", (8, 64)), (0, "bias", (8,)), (2, "weight", (4, 8)), (2, "bias", (4,))]


def cae_of_its_authors():
    """The encoder, which is timm's BEiT, and a neck of ours under their names."""
    fields = {"regressor_num_hidden_layers": 1, "decoder_num_hidden_layers": 1, "neck_num_attention_heads": 2}
    config = CAEConfig(
        backbone_config={"model_type": "beit", **VIT}, neck_intermediate_size=16, target_options={"size": 5}, **fields
    )
    layout = next(layout for layout in layouts_of("authors", "cae") if layout.model_type == "cae")
    theirs = layout.to_theirs(AutoModel.from_config(config).state_dict())
    encoder = random_(Beit(**TRANSFORMER, init_values=0.1, use_abs_pos_emb=True, global_pool="token", num_classes=0))
    return {"model": {**theirs, **under("encoder.", encoder)}}, config


def simmim_of_its_authors():
    config = SimMIMConfig(backbone_config={"model_type": "swin", **SWIN}, mask_cell_size=8)
    return {"model": to_theirs(random_(AutoModel.from_config(config)), "authors")}, config


@pytest.mark.parametrize("build", [moco_of_its_authors, cae_of_its_authors, simmim_of_its_authors])
def test_whole_algorithms(build, tmp_path):
    checkpoint, config = build()
    torch.save(checkpoint, tmp_path / "model.pth")
    model = AutoModel.from_config(config)
    conversion = load_foreign_checkpoint(model, tmp_path / "model.pth", verify=True)
    assert str(conversion.layout) == f"authors ({config.model_type})" and conversion.new == []
    assert conversion.difference < 1e-5


def mae_of_transformers():
    decoder = {
        **{"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2},
        "decoder_intermediate_size": 16,
    }
    return ViTMAEForPreTraining(ViTMAEConfig(**VIT, **decoder)), MAEConfig(
        backbone_config=VIT, norm_pix_loss=False, **decoder
    )


def vit_of_transformers():
    config = SimMIMConfig(backbone_config={"model_type": "vit", **VIT}, mask_cell_size=4)
    return ViTForMaskedImageModeling(ViTConfig(**VIT, encoder_stride=4)), config


def swin_of_transformers():
    config = SimMIMConfig(backbone_config={"model_type": "swin", **SWIN}, mask_cell_size=8)
    return SwinForMaskedImageModeling(SwinConfig(**SWIN, encoder_stride=16)), config


@pytest.mark.parametrize("build", [mae_of_transformers, vit_of_transformers, swin_of_transformers])
def test_folders_of_transformers(build, tmp_path):
    original, config = build()
    random_(original).save_pretrained(tmp_path)
    model = AutoModel.from_config(config)
    conversion = load_foreign_checkpoint(model, tmp_path, verify=True)
    assert conversion.layout.source == "transformers" and conversion.difference < 1e-5
    assert (conversion.new, conversion.dropped) == ([], {})


def test_transformers_mae_has_the_loss_of_ours(tmp_path):
    original, config = mae_of_transformers()
    random_(original).save_pretrained(tmp_path)
    model = AutoModel.from_config(config).eval()
    load_foreign_checkpoint(model, tmp_path)
    images, noise = torch.randn(2, 3, 16, 16), torch.rand(2, 16)
    with torch.no_grad():
        theirs = original(images, noise=noise)
        ours = model(images, mode="loss", bool_masked_pos=theirs.mask.bool())
    torch.testing.assert_close(ours.loss, theirs.loss)


def test_features_that_differ(tmp_path):
    """A model of the same shapes that computes something else: other heads, which no tensor shows."""
    torch.save(random_(VisionTransformer(**TRANSFORMER, num_classes=0)).state_dict(), tmp_path / "model.pth")
    model = AutoModel.from_config(simclr({"model_type": "vit", **VIT, "hidden_act": "relu"}))
    with pytest.raises(ValueError, match=r"features of the converted model differ by .* and at most 1e-05 is rounding"):
        load_foreign_checkpoint(model, tmp_path / "model.pth", verify=True)


def run_example(monkeypatch, **arguments):
    command = [f"--{name}={value}" for name, value in arguments.items()]
    monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", *command])
    runpy.run_path(str(REPOSITORY / "examples" / "convert_checkpoint.py"), run_name="__main__")


def test_a_conversion_without_a_recipe(tmp_path, monkeypatch, capsys):
    checkpoint, config = moco_of_its_authors()
    torch.save(checkpoint, tmp_path / "moco.pth.tar")
    run_example(monkeypatch, checkpoint=tmp_path / "moco.pth.tar", output_dir=tmp_path / "moco", verify=True)
    output = capsys.readouterr().out
    assert "recognised: authors (moco)" in output and "largest difference from the features of the original: " in output
    model = AutoModel.from_pretrained(tmp_path / "moco")
    assert (model.config.queue_size, model.config.projection_hidden_size) == (6, 8)
    assert model.config.backbone_config.hidden_sizes == config.backbone_config.hidden_sizes
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(SystemExit, match="does not say which algorithm: name a recipe"):
        run_example(monkeypatch, checkpoint=tmp_path / "resnet18.pth", output_dir=tmp_path / "resnet18")


def test_names_that_several_algorithms_share(tmp_path):
    checkpoint, _ = moco_of_its_authors()
    student = {
        name.removeprefix("module.encoder_q."): tensor
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith("module.encoder_q.")
    }
    names = {
        f"backbone.{name}" if not name.startswith("fc") else name.replace("fc", "projector"): x
        for name, x in student.items()
    }
    names |= {
        name.replace("backbone", "momentum_backbone").replace("projector", "momentum_projector"): x
        for name, x in names.items()
    }
    torch.save({"state_dict": names, "hyper_parameters": json.loads("{}")}, tmp_path / "solo.ckpt")
    assert config_of_checkpoint(tmp_path / "solo.ckpt").model_type == "moco"
    torch.save({name: x for name, x in names.items() if name.startswith("backbone.")}, tmp_path / "backbone.ckpt")
    with pytest.raises(ValueError, match=r"\(a backbone alone\) does not say which algorithm: name a recipe"):
        config_of_checkpoint(tmp_path / "backbone.ckpt")
    names |= {name.replace("projector", "predictor"): x for name, x in names.items() if name.startswith("projector.")}
    momentum = {name.replace(".2.", ".3.") if "tor" in name else name: x for name, x in names.items()}
    torch.save({"state_dict": momentum}, tmp_path / "unclear.ckpt")
    with pytest.raises(ValueError, match=r"those of solo-learn \(byol\), solo-learn \(mocov3\) alike: name the source"):
        config_of_checkpoint(tmp_path / "unclear.ckpt")
