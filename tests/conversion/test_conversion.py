import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, ViTConfig, ViTModel

from ssl_hub import MAEConfig, MAEModel, SimMIMConfig, SimMIMModel
from ssl_hub.conversion import mmselfsup
from ssl_hub.conversion.sources import LAYOUTS, load_foreign_checkpoint
from ssl_hub.conversion.state_dicts import load_strictly, read_checkpoint
from ssl_hub.registry import ALGORITHMS

REPOSITORY = Path(__file__).parents[2]
VIT = {
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
DECODER = {
    "decoder_hidden_size": 8,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 16,
}

# Ours by theirs; part of a name, so the order counts.
MMSELFSUP_NAMES = {
    "backbone.embeddings.cls_token": "backbone.cls_token",
    "backbone.embeddings.position_embeddings": "backbone.pos_embed",
    "backbone.embeddings.patch_embeddings.": "backbone.patch_embed.",
    "backbone.layernorm.": "backbone.ln1.",
    "neck.embed.": "neck.decoder_embed.",
    "neck.position_embeddings": "neck.decoder_pos_embed",
    "neck.predict_pixels.": "neck.decoder_pred.",
    "neck.layers.": "neck.decoder_blocks.",
    "neck.layernorm.": "neck.ln1.",
    ".layernorm_before.": ".ln1.",
    ".layernorm_after.": ".ln2.",
    ".attention.o_proj.": ".attn.proj.",
    ".attention.": ".attn.",
    ".mlp.fc1.": ".ffn.layers.0.0.",
    ".mlp.fc2.": ".ffn.layers.1.",
}
FACEBOOK_NAMES = {
    "backbone.embeddings.cls_token": "cls_token",
    "backbone.embeddings.position_embeddings": "pos_embed",
    "backbone.embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "backbone.layers.": "blocks.",
    "backbone.layernorm.": "norm.",
    "neck.embed.": "decoder_embed.",
    "neck.mask_token": "mask_token",
    "neck.position_embeddings": "decoder_pos_embed",
    "neck.predict_pixels.": "decoder_pred.",
    "neck.layers.": "decoder_blocks.",
    "neck.layernorm.": "decoder_norm.",
    ".layernorm_before.": ".norm1.",
    ".layernorm_after.": ".norm2.",
    ".attention.o_proj.": ".attn.proj.",
    ".attention.": ".attn.",
}


def tiny_mae(seed: int) -> MAEModel:
    torch.manual_seed(seed)
    model = MAEModel(MAEConfig(backbone_config=VIT, **DECODER)).eval()
    for tensor in model.state_dict().values():  # biases and position tables as well
        tensor.normal_(std=0.1)
    return model


def under_foreign_names(model: MAEModel, names: dict[str, str]) -> dict[str, torch.Tensor]:
    state = model.state_dict()
    foreign = {}
    for key, tensor in state.items():
        if ".k_proj." in key or ".v_proj." in key:
            continue
        if ".q_proj." in key:
            tensor = torch.cat([state[key.replace(".q_proj.", f".{name}_proj.")] for name in "qkv"])
            key = key.replace(".q_proj.", ".qkv.")
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        foreign[key] = tensor.clone()
    return foreign


def assert_same_outputs(model: MAEModel, expected: MAEModel) -> None:
    images = torch.randn(2, 3, 16, 16)
    mask = torch.arange(16).expand(2, -1) % 4 != 0
    assert torch.equal(model(images).last_hidden_state, expected(images).last_hidden_state)
    ours, theirs = (m(images, mode="predict", bool_masked_pos=mask).reconstruction for m in (model, expected))
    assert torch.equal(ours, theirs)


def test_mmselfsup_names():
    """The names that the original wrote, by hand for one model; the reference cases hold real ones."""
    theirs = under_foreign_names(tiny_mae(0), MMSELFSUP_NAMES)
    assert {
        "backbone.pos_embed",
        "backbone.patch_embed.projection.weight",
        "backbone.layers.1.attn.qkv.bias",
        "backbone.layers.1.ffn.layers.0.0.weight",
        "backbone.ln1.weight",
        "neck.mask_token",
        "neck.decoder_blocks.0.ln2.bias",
        "neck.decoder_pos_embed",
        "neck.ln1.bias",
    } <= set(theirs)
    fixture = json.loads((REPOSITORY / "tests/fixtures/reference/mae_a.json").read_text())
    assert set(theirs) - {"backbone.pos_embed", "neck.decoder_pos_embed"} <= set(fixture["grad_norms"])


@pytest.mark.parametrize(
    ("source", "names", "key"), [("mmselfsup", MMSELFSUP_NAMES, "state_dict"), ("authors", FACEBOOK_NAMES, "model")]
)
@pytest.mark.parametrize("wrapped", [True, False])
def test_converted_model_computes_the_same(tmp_path, source, names, key, wrapped):
    expected, model = tiny_mae(0), tiny_mae(1)
    state_dict = under_foreign_names(expected, names)
    path = tmp_path / "checkpoint.pth"
    torch.save({key: state_dict, "epoch": 3, "meta": {"seed": 0}} if wrapped else state_dict, path)
    load_foreign_checkpoint(model, path, source)
    assert_same_outputs(model, expected)


def test_safetensors(tmp_path):
    expected, model = tiny_mae(0), tiny_mae(1)
    save_file(under_foreign_names(expected, FACEBOOK_NAMES), tmp_path / "checkpoint.safetensors")
    load_foreign_checkpoint(model, tmp_path / "checkpoint.safetensors", "authors")
    assert_same_outputs(model, expected)


def test_encoder_only(tmp_path):
    expected, model = tiny_mae(0), tiny_mae(1)
    decoder = {key: tensor.clone() for key, tensor in model.neck.state_dict().items()}
    state_dict = under_foreign_names(expected, FACEBOOK_NAMES)
    state_dict = {key: t for key, t in state_dict.items() if not key.startswith(("decoder_", "mask_token"))}
    torch.save({"model": state_dict}, tmp_path / "encoder.pth")
    with pytest.raises(ValueError, match=r"missing \(\d+\): neck\.mask_token"):
        load_foreign_checkpoint(model, tmp_path / "encoder.pth", "authors")
    load_foreign_checkpoint(model, tmp_path / "encoder.pth", "authors", new=("neck.",))
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(model(images).last_hidden_state, expected(images).last_hidden_state)
    assert all(torch.equal(tensor, decoder[key]) for key, tensor in model.neck.state_dict().items())


def test_every_misfit_is_named():
    model = tiny_mae(0)
    state_dict = model.state_dict()
    missing = state_dict.pop("backbone.embeddings.cls_token")
    state_dict["head.fc.weight"] = missing
    state_dict["neck.embed.bias"] = torch.zeros(9)
    with pytest.raises(ValueError, match="does not fit this MAEModel") as error:
        load_strictly(model, state_dict)
    for part in (
        "missing (1): backbone.embeddings.cls_token",
        "not known (1): head.fc.weight",
        "of another shape (1): neck.embed.bias: (9,) instead of (8,)",
    ):
        assert part in str(error.value)
    # only what is missing may be new
    with pytest.raises(ValueError, match=r"not known \(1\): head.fc.weight; of another shape"):
        load_strictly(model, state_dict, new=("backbone.", "neck.", "head."))


def test_checkpoint_of_another_size(tmp_path):
    torch.save({"model": under_foreign_names(tiny_mae(0), FACEBOOK_NAMES)}, tmp_path / "checkpoint.pth")
    model = MAEModel(MAEConfig(backbone_config={**VIT, "num_hidden_layers": 3}, **DECODER))
    with pytest.raises(ValueError, match=r"missing \(16\): backbone\.layers\.2\."):
        load_foreign_checkpoint(model, tmp_path / "checkpoint.pth", "authors")


def test_sources_name_algorithms():
    assert {layout.model_type for layout in LAYOUTS} <= {None, *ALGORITHMS}


def test_the_wrong_source_is_refused(tmp_path):
    torch.save({"model": under_foreign_names(tiny_mae(0), FACEBOOK_NAMES)}, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match=r"closest source, mmselfsup \(a backbone alone\), has no tensors named "):
        load_foreign_checkpoint(tiny_mae(1), tmp_path / "checkpoint.pth", "mmselfsup")
    with pytest.raises(ValueError, match="no conversion from 'paddle'; there is one from mmselfsup, authors, "):
        load_foreign_checkpoint(tiny_mae(1), tmp_path / "checkpoint.pth", "paddle")


class Opaque:
    """Stands for the objects that training code pickles along with its tensors."""


def test_pickled_objects_are_refused(tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": {"cls_token": torch.zeros(1)}, "args": Opaque()}, path)
    with pytest.raises(ValueError, match=r"cannot be read safely: .* Python objects besides its tensors"):
        read_checkpoint(path)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="cannot be read safely: it is damaged"):
        read_checkpoint(path)


def test_plain_tensors_are_read(tmp_path):
    torch.save({"state_dict": {"a": torch.arange(3)}, "meta": {"epoch": 1, "cfg": "text"}}, tmp_path / "a.pth")
    checkpoint = read_checkpoint(tmp_path / "a.pth")
    assert torch.equal(checkpoint["state_dict"]["a"], torch.arange(3))
    assert checkpoint["meta"] == {"epoch": 1, "cfg": "text"}


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint file .*nothing\.pth"):
        read_checkpoint(tmp_path / "nothing.pth")


def test_mmselfsup_configuration():
    config = mmselfsup.convert_config(
        {
            "type": "MAE",
            "data_preprocessor": {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]},
            "backbone": {"type": "MAEViT", "arch": "h", "patch_size": 14, "mask_ratio": 0.6},
            "neck": {"type": "MAEPretrainDecoder", "decoder_depth": 4},
            "head": {"type": "MAEPretrainHead", "norm_pix": True, "patch_size": 14},
        }
    )
    backbone = config.backbone_config
    assert (backbone.hidden_size, backbone.num_hidden_layers, backbone.patch_size) == (1280, 32, 14)
    assert (config.mask_ratio, config.norm_pix_loss, config.decoder_num_hidden_layers) == (0.6, True, 4)
    assert config.image_mean == pytest.approx([0.485, 0.456, 0.406])
    with pytest.raises(ValueError, match=r"no conversion of MMSelfSup's 'Nothing'; there is one for .*MAE"):
        mmselfsup.convert_config({"type": "Nothing"})
    with pytest.raises(ValueError, match=r"no conversion of MMSelfSup's 'Nothing'; there is one for .*MAE"):
        mmselfsup.convert_state_dict("Nothing", {})


def test_what_a_source_keeps_elsewhere(tmp_path):
    """MMSelfSup's checkpoint of SwAV has neither a queue nor a counter of steps."""
    case = REPOSITORY / "tests/fixtures/reference/swav_a"
    state_dict = {key[6:]: t for key, t in load_file(f"{case}.safetensors").items() if key.startswith("state/")}
    torch.save({"state_dict": state_dict}, tmp_path / "swav.pth")
    config = json.loads(case.with_suffix(".json").read_text())["mmselfsup_config"]
    model = AutoModel.from_config(mmselfsup.convert_config(config))
    load_foreign_checkpoint(model, tmp_path / "swav.pth", "mmselfsup")
    assert torch.equal(model.head.prototypes.weight, state_dict["head.loss.prototypes.weight"])


def test_the_memory_of_npid_comes_with_its_size(tmp_path):
    case = REPOSITORY / "tests/fixtures/reference/npid_a"
    state_dict = {key[6:]: t for key, t in load_file(f"{case}.safetensors").items() if key.startswith("state/")}
    torch.save({"state_dict": state_dict}, tmp_path / "npid.pth")
    config = mmselfsup.convert_config(json.loads(case.with_suffix(".json").read_text())["mmselfsup_config"])
    config.memory_size = 0  # as a recipe has it
    model = AutoModel.from_config(config)
    load_foreign_checkpoint(model, tmp_path / "npid.pth", "mmselfsup")
    assert torch.equal(model.memory.features, state_dict["memory_bank.feature_bank"])
    assert model.config.memory_size == 80


def test_simmim_of_its_authors(tmp_path):
    """The names that spec and source give them; no released file was at hand."""
    names = {
        ".attention.relative_position_bias.": ".attn.",
        ".attention.o_proj.": ".attn.proj.",
        ".attention.": ".attn.",
        ".layernorm_before.": ".norm1.",
        ".layernorm_after.": ".norm2.",
        "backbone.embeddings.patch_embeddings.projection.": "encoder.patch_embed.proj.",
        "backbone.embeddings.norm.": "encoder.patch_embed.norm.",
        "backbone.embeddings.mask_token": "encoder.mask_token",
        "backbone.encoder.": "encoder.",
        "backbone.layernorm.": "encoder.norm.",
        "neck.predict_pixels.": "decoder.0.",
    }
    swin = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4}
    expected, model = (SimMIMModel(SimMIMConfig(backbone_config=swin, mask_cell_size=4)).eval() for _ in range(2))
    state_dict = under_foreign_names(expected, names)
    assert "encoder.layers.0.blocks.1.attn.qkv.weight" in state_dict
    state_dict["encoder.layers.0.blocks.1.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.long)
    state_dict["encoder.layers.0.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)
    torch.save({"model": state_dict}, tmp_path / "simmim.pth")
    load_foreign_checkpoint(model, tmp_path / "simmim.pth", "authors")
    images, mask = torch.randn(2, 3, 16, 16), torch.arange(64).expand(2, -1) % 3 > 0
    ours, theirs = (m(images, mode="predict", bool_masked_pos=mask).reconstruction for m in (model, expected))
    assert torch.equal(ours, theirs)


def test_transformers_model_that_does_not_fit(tmp_path):
    ViTModel(ViTConfig(**VIT)).save_pretrained(tmp_path)
    model = SimMIMModel(SimMIMConfig(backbone_config={"model_type": "vit", **VIT}, mask_cell_size=4))
    with pytest.raises(ValueError, match=r"lacks decoder\.0\.bias, .* of a ViTForMaskedImageModeling"):
        load_foreign_checkpoint(model, tmp_path, "transformers")
    with pytest.raises(OSError, match="nothing"):
        load_foreign_checkpoint(model, tmp_path / "nothing", "transformers")


def test_convert_checkpoint_example(tmp_path, monkeypatch, capsys):
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(json.dumps({"model": {"model_type": "mae", "backbone_config": VIT, **DECODER}}))
    expected = tiny_mae(0)
    checkpoint = tmp_path / "epoch_1.pth"
    torch.save({"state_dict": under_foreign_names(expected, MMSELFSUP_NAMES), "meta": {"epoch": 1}}, checkpoint)
    output_dir = tmp_path / "converted"

    def convert(source, output_dir):
        arguments = {"checkpoint": checkpoint, "source": source, "recipe": recipe, "output_dir": output_dir}
        command = [f"--{name}={value}" for name, value in arguments.items()]
        monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", *command])
        runpy.run_path(str(REPOSITORY / "examples" / "convert_checkpoint.py"), run_name="__main__")

    convert("mmselfsup", output_dir)
    assert f"the model is in {output_dir}" in capsys.readouterr().out
    assert_same_outputs(AutoModel.from_pretrained(output_dir), expected)
    assert AutoImageProcessor.from_pretrained(output_dir).crop_size["height"] == 16
    backbone = ViTModel.from_pretrained(output_dir / "backbone", add_pooling_layer=False)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(backbone(images).last_hidden_state, expected(images).last_hidden_state)

    with pytest.raises(SystemExit, match="error: .* is no checkpoint for 'mae': the closest source, authors"):
        convert("authors", tmp_path / "other")
