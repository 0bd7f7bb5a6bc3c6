import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.models._hub import save_for_hf
from transformers import AutoModel, BertConfig, BertModel, ViTConfig, ViTImageProcessor, ViTModel

from ssl_hub.data.processing import build_image_processor
from ssl_hub.evaluation.feature_models import load_feature_model, patch_tokens, pixel_baseline, untrained_model
from ssl_hub.hub.publishing import save_for_sharing
from ssl_hub.training.recipes import load_recipe

IMAGE = Image.effect_noise((40, 30), 60).convert("RGB")


def save_ours(folder, recipe="mae-vit-tiny-digits", **overrides):
    config = load_recipe(recipe).build_config()
    for name, value in overrides.items():
        setattr(config, name, value)
    processor = build_image_processor(config.image_size, config.image_mean, config.image_std)
    save_for_sharing(AutoModel.from_config(config), processor, folder)
    return folder


def save_vit(folder, with_processor=True):
    config = ViTConfig(
        image_size=32, patch_size=8, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    ViTModel(config).save_pretrained(folder)
    if with_processor:
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_timm(folder, architecture="resnet10t"):
    save_for_hf(timm.create_model(architecture), folder, safe_serialization=True)
    return folder


def features_of(model, processor):
    with torch.no_grad():
        return model(processor([IMAGE], return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize(
    ("save", "width", "num_patches"), [(save_ours, 96, 16), (save_vit, 24, 16), (save_timm, 512, 36)]
)
def test_models_of_each_library_are_called_alike(save, width, num_patches, tmp_path):
    model, processor = load_feature_model(save(tmp_path / "model"))
    assert not any(module.training for module in model.modules())
    outputs = features_of(model, processor)
    assert outputs.pooler_output.shape == (1, width)
    assert patch_tokens(model, outputs.last_hidden_state).shape == (1, num_patches, width)
    again, _ = load_feature_model(tmp_path / "model")
    assert torch.equal(features_of(again, processor).pooler_output, outputs.pooler_output)


def test_the_features_are_those_of_the_library(tmp_path):
    model, processor = load_feature_model(save_vit(tmp_path / "vit"))
    plain = ViTModel.from_pretrained(tmp_path / "vit").eval()
    tokens = features_of(plain, processor).last_hidden_state
    assert torch.equal(features_of(model, processor).pooler_output, tokens[:, 0])
    model, _ = load_feature_model(tmp_path / "vit", pooling="mean")
    torch.testing.assert_close(features_of(model, processor).pooler_output, tokens[:, 1:].mean(dim=1))

    model, processor = load_feature_model(save_timm(tmp_path / "timm"))
    plain = timm.create_model("resnet10t", num_classes=0)
    plain.load_state_dict(load_file(tmp_path / "timm" / "model.safetensors"), strict=False)
    pixel_values = processor([IMAGE], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values).pooler_output, plain.eval()(pixel_values))


def test_a_run_without_an_image_processor_gets_the_usual_one(tmp_path):
    (save_ours(tmp_path / "model") / "preprocessor_config.json").unlink()
    _, processor = load_feature_model(tmp_path / "model")
    assert processor.crop_size == {"height": 16, "width": 16}


@pytest.mark.parametrize("save", [save_ours, save_vit, save_timm])
def test_untrained_models_have_other_weights_and_the_same_shapes(save, tmp_path):
    torch.manual_seed(1)
    model, processor = load_feature_model(save(tmp_path / "model"))
    state = torch.random.get_rng_state()
    untrained = untrained_model(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    first, second = (features_of(each, processor).pooler_output for each in (model, untrained))
    assert first.shape == second.shape and not torch.allclose(first, second)
    assert torch.equal(features_of(untrained_model(model), processor).pooler_output, second)


def test_pixels():
    model, processor = pixel_baseline()
    features = features_of(model, processor).pooler_output
    assert features.shape == (1, 3 * 16 * 16) and 0 <= features.min() <= features.max() <= 1


def lacking_weights(folder):
    save_vit(folder)
    whole = ViTModel.from_pretrained(folder)
    state = {name: tensor for name, tensor in whole.state_dict().items() if "layernorm" not in name}
    whole.save_pretrained(folder, state_dict=state)
    return folder


def text_model(folder):
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    BertModel(config).save_pretrained(folder)
    return folder


def broken_file(folder):
    (save_vit(folder) / "model.safetensors").write_bytes(b"broken")
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder, "there is no model folder"),
        (broken_file, "cannot be loaded"),
        (lacking_weights, r"lacks or does not fit \d+ tensors of its backbone, such as .*random weights"),
        (text_model, "it takes input_ids, not images alone"),
        (lambda folder: save_vit(folder, with_processor=False), "has no image processor"),
    ],
)
def test_what_cannot_be_loaded(make, message, tmp_path):
    with pytest.raises((ValueError, OSError), match=message):
        load_feature_model(make(tmp_path / "model"))
