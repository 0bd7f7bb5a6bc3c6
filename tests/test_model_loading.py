"""Models of ssl_hub, transformers and timm are read by one set of rules, for features and for classifiers."""

from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models._hub import save_for_hf
from transformers import AutoModel, MobileViTImageProcessor, ResNetConfig, ViTConfig, ViTImageProcessor, ViTModel

from ssl_hub import MAEConfig
from ssl_hub.classification.models import load_classifier
from ssl_hub.data.processing import build_image_processor
from ssl_hub.evaluation.feature_models import load_feature_model
from ssl_hub.hub.publishing import save_for_sharing
from ssl_hub.model_loading import image_statistics, load_backbone, load_image_processor, read_config

VIT = {
    **{"image_size": 16, "patch_size": 4, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2},
    "intermediate_size": 16,
}
MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]


def save_ours(folder):
    config = MAEConfig(backbone_config=VIT, decoder_hidden_size=16, decoder_num_hidden_layers=1)
    config.image_mean, config.image_std = MEAN, STD
    save_for_sharing(AutoModel.from_config(config), build_image_processor(16, MEAN, STD), folder)
    return folder


def save_vit(folder):
    ViTModel(ViTConfig(**VIT)).save_pretrained(folder)
    build_image_processor(16, MEAN, STD).save_pretrained(folder)
    return folder


def save_timm(folder):
    model = timm.create_model("resnet10t", pretrained_cfg_overlay={"mean": MEAN, "std": STD})
    save_for_hf(model, folder, safe_serialization=True, model_args={"num_classes": 1000})
    return folder


@pytest.mark.parametrize(
    "save",
    [save_ours, lambda folder: save_ours(folder) / "backbone", save_vit, save_timm],
    ids=["ours", "backbone of ours", "vit", "timm"],
)
def test_features_and_classifiers_have_the_same_backbone_and_statistics(save, tmp_path):
    folder = save(tmp_path / "model")
    backbone = load_backbone(folder)
    classifier = load_classifier(str(folder), ["yes", "no"])
    model, processor = load_feature_model(folder)
    state = backbone.state_dict()
    for other in (classifier.backbone, model.backbone):
        theirs = other.state_dict()
        assert theirs.keys() <= state.keys() and all(torch.equal(theirs[name], state[name]) for name in theirs)
    assert image_statistics(processor) == (classifier.config.image_mean, classifier.config.image_std) == (MEAN, STD)
    assert not backbone.training


def test_the_name_of_a_timm_architecture_is_that_of_its_hub_weights(tmp_path, monkeypatch):
    folder = save_timm(tmp_path / "model")
    pretrained = replace(timm.get_pretrained_cfg("resnet10t"), hf_hub_id=str(folder), mean=MEAN, std=STD)
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: pretrained)
    weights = load_file(folder / "model.safetensors")
    model, processor = load_feature_model("resnet10t")
    classifier = load_classifier("resnet10t", ["yes", "no"])
    for each in (model, classifier):
        assert torch.equal(each.backbone.timm_model.conv1[0].weight, weights["conv1.0.weight"])
    assert image_statistics(processor) == (classifier.config.image_mean, classifier.config.image_std) == (MEAN, STD)


def test_a_timm_architecture_without_weights(monkeypatch):
    pretrained = replace(timm.get_pretrained_cfg("resnet10t"), hf_hub_id=None)
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: pretrained)
    for load in (load_feature_model, load_backbone, lambda name: load_classifier(name, ["yes", "no"])):
        with pytest.raises(ValueError, match="timm has no pretrained weights of 'resnet10t'"):
            load("resnet10t")
    assert load_classifier("resnet10t", ["yes", "no"], from_scratch=True).config.num_labels == 2


def edited(folder, change):
    state = load_file(folder / "model.safetensors")
    name = next(name for name in state if name.endswith("layernorm.weight"))
    change(state, name)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("save", [save_ours, save_vit])
@pytest.mark.parametrize(
    "change", [lambda state, name: state.pop(name), lambda state, name: state.update({name: torch.ones(3)})]
)
def test_weights_that_would_be_random_are_refused(save, change, tmp_path):
    """Missing ones, and those of another shape, which a classifier may have for its last layer alone."""
    folder = edited(save(tmp_path / "model"), change)
    for load in (load_feature_model, load_backbone, lambda name: load_classifier(str(name), ["yes", "no"])):
        with pytest.raises(ValueError, match="lacks or does not fit 1 tensors|has other shapes|have other shapes"):
            load(folder)


def test_a_model_without_an_image_processor_is_one_from_scratch_only(tmp_path):
    AutoModel.from_config(ResNetConfig(depths=[1], hidden_sizes=[8], embedding_size=8)).save_pretrained(tmp_path)
    for load in (load_feature_model, lambda name: load_classifier(str(name), ["yes", "no"])):
        with pytest.raises(ValueError, match="has no image processor"):
            load(tmp_path)
    config = load_classifier(str(tmp_path), ["yes", "no"], from_scratch=True).config
    assert config.image_mean == [0.485, 0.456, 0.406]


def test_statistics_of_what_does_not_normalise():
    assert image_statistics(ViTImageProcessor(do_normalize=False)) == ([0.0] * 3, [1.0] * 3)
    with pytest.raises(ValueError, match="MobileViTImageProcessor swaps red and blue"):
        image_statistics(MobileViTImageProcessor())


def test_an_architecture_needs_no_network():
    config = read_config("resnet10t")
    assert config.architecture == "resnet10t"
    mean, _ = image_statistics(load_image_processor("resnet10t", config))
    assert mean == list(timm.get_pretrained_cfg("resnet10t").mean)
