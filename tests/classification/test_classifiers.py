"""The classifiers of the protocols, on backbones of ssl_hub, transformers and timm."""

import pytest
import timm
import torch
from timm.layers import DropPath
from timm.models import group_parameters
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    ResNetConfig,
    ViTConfig,
)

from ssl_hub import DeepClusterConfig, MAEConfig
from ssl_hub.classification.models import load_classifier
from ssl_hub.classification.optimization import build_optimizer, layer_ids, parameter_groups
from ssl_hub.data.processing import build_image_processor
from ssl_hub.hub.publishing import save_for_sharing

NAMES = ["cat", "dog", "owl"]
VIT = {"image_size": 16, "patch_size": 4, "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2}
RESNET = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 16, 24], "embedding_size": 8, "layer_type": "basic"}


@pytest.fixture
def mae(tmp_path):
    config = MAEConfig(backbone_config=VIT, decoder_hidden_size=16, decoder_num_hidden_layers=1)
    save_for_sharing(
        AutoModel.from_config(config), build_image_processor(16, config.image_mean, config.image_std), tmp_path / "mae"
    )
    return str(tmp_path / "mae")


@pytest.fixture
def resnet(tmp_path):
    AutoModel.from_config(ResNetConfig(**RESNET)).save_pretrained(tmp_path / "resnet")
    build_image_processor(224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).save_pretrained(tmp_path / "resnet")
    return str(tmp_path / "resnet")


def images(size=16, count=4):
    return torch.randn(count, 3, size, size)


@pytest.mark.parametrize("part", ["", "/backbone"])
def test_the_weights_of_a_checkpoint_are_taken_and_saved(mae, tmp_path, part):
    """Of ssl_hub's whole method and of its backbone, which is one of transformers."""
    model = load_classifier(mae + part, NAMES, pooling="mean").eval()
    pixel_values = images()
    expected = AutoModel.from_pretrained(mae, pooling="mean").eval()(pixel_values).pooler_output
    torch.testing.assert_close(model.extract_features(pixel_values).pooler_output, expected)
    model.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "saved").eval()
    assert type(loaded) is type(model) and loaded.config.id2label == dict(enumerate(NAMES))
    assert torch.equal(loaded(pixel_values).logits, model(pixel_values).logits)
    # and can be where another evaluation starts
    again = load_classifier(str(tmp_path / "saved"), ["yes", "no"])
    assert again(pixel_values).logits.shape == (4, 2)


def test_statistics_travel_with_the_weights(mae):
    AutoImageProcessor.from_pretrained(mae)
    processor = build_image_processor(16, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    processor.save_pretrained(f"{mae}/backbone")
    config = load_classifier(f"{mae}/backbone", NAMES).config
    assert config.image_mean == [0.1, 0.2, 0.3] and config.image_std == [0.4, 0.5, 0.6]
    assert load_classifier("resnet18", NAMES, from_scratch=True).config.image_mean == [0.485, 0.456, 0.406]


def test_from_scratch_takes_the_architecture_alone(mae):
    first, second = (load_classifier(mae, NAMES, from_scratch=scratch) for scratch in (True, False))
    name = "backbone.layers.0.mlp.fc1.weight"
    assert not torch.equal(first.state_dict()[name], second.state_dict()[name])


@pytest.mark.parametrize("part", ["", "/backbone"])
def test_the_norm_of_mean_tokens_takes_the_place_of_the_last_one(mae, part):
    model = load_classifier(mae + part, NAMES, pooling="mean", classifier_norm="layernorm").eval()
    plain = AutoModel.from_pretrained(f"{mae}/backbone").eval()
    plain.layernorm = torch.nn.Identity()
    pixel_values = images()
    mean = plain(pixel_values).last_hidden_state[:, 1:].mean(dim=1)
    expected = model.classifier(torch.nn.functional.layer_norm(mean, (8,), eps=1e-6))
    torch.testing.assert_close(model(pixel_values).logits, expected)


def test_a_frozen_backbone_stays_as_it_is(resnet):
    model = load_classifier(resnet, NAMES, freeze_backbone=True, classifier_norm="batchnorm").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(images(64), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    assert {name for name, each in model.named_parameters() if each.requires_grad} == {
        "classifier.weight",
        "classifier.bias",
    }
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"classifier_norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}


@pytest.mark.parametrize("name", ["resnet", "resnet18"])
def test_stages_of_transformers_and_timm(resnet, name, tmp_path):
    name = resnet if name == "resnet" else name
    model = load_classifier(name, NAMES, from_scratch=True, classifier_stages=[0, 4], freeze_backbone=True).eval()
    outputs = model(images(224, count=1), labels=torch.tensor([1]))
    assert outputs.logits.shape == (1, 2, 3)
    losses = [torch.nn.functional.cross_entropy(outputs.logits[:, i], torch.tensor([1])) for i in range(2)]
    torch.testing.assert_close(outputs.loss, sum(losses))
    with pytest.raises(ValueError, match="classifier_stage_pooling to 'adaptive'"):
        model(images(64))
    small = load_classifier(
        name, NAMES, from_scratch=True, classifier_stages=[1, 2, 3], classifier_stage_pooling="adaptive"
    )
    assert small(images(64)).logits.shape == (4, 3, 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"classifier_stages": [4]}, "'vit' has no stages whose feature maps become smaller"),
        ({"drop_path_rate": 0.1, "name": "resnet"}, "'resnet' has no stochastic depth"),
        ({"classifier_stages": [5], "name": "resnet"}, r"0 \(the stem\) to 4"),
        ({"classifier_stages": [4, 3], "name": "resnet"}, "in rising order"),
        ({"name": "nowhere"}, "nowhere"),
        ({"image_size": 32, "name": "timm"}, "timm's 'vit_tiny_patch16_224' does not take images of 32 x 32 pixels"),
    ],
)
def test_what_a_model_lacks_is_said(mae, resnet, fields, message):
    fields["from_scratch"] = fields.get("name") == "timm"
    name = {"resnet": resnet, "timm": "vit_tiny_patch16_224", "nowhere": "./nowhere", None: f"{mae}/backbone"}[
        fields.pop("name", None)
    ]
    with pytest.raises((ValueError, OSError), match=message):
        load_classifier(name, NAMES, **fields)


def test_a_checkpoint_of_another_model_is_refused(mae, resnet, tmp_path):
    ViTConfig(**VIT, num_labels=7).save_pretrained(tmp_path / "other")
    AutoImageProcessor.from_pretrained(mae).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").write_bytes((tmp_path / "resnet" / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="lacks or does not fit 5. tensors of its backbone"):
        load_classifier(str(tmp_path / "other"), NAMES)


def test_stochastic_depth_rises_over_the_blocks(mae):
    for name in (mae, f"{mae}/backbone"):
        model = load_classifier(name, NAMES, drop_path_rate=0.2)
        rates = [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]
        assert rates == pytest.approx([0.0, 0.1, 0.2])
        model.eval()(images())
    swin = {
        "model_type": "swin",
        "depths": [1, 1],
        "num_heads": [1, 1],
        "embed_dim": 8,
        "image_size": 64,
        "window_size": 2,
    }
    swin = AutoConfig.for_model(**swin)
    AutoModel.from_config(swin).save_pretrained(f"{mae}/swin")
    AutoImageProcessor.from_pretrained(mae).save_pretrained(f"{mae}/swin")
    model = load_classifier(f"{mae}/swin", NAMES, drop_path_rate=0.3)
    assert [m.drop_prob for m in model.modules() if type(m).__name__ == "SwinDropPath"][-1] == pytest.approx(0.3)
    model = load_classifier("vit_tiny_patch16_224", NAMES, from_scratch=True, drop_path_rate=0.3)
    assert max(m.drop_prob for m in model.modules() if isinstance(m, DropPath)) == pytest.approx(0.3)


def test_the_filter_of_a_sobel_model_stays_in_front(tmp_path):
    backbone = {**RESNET, "model_type": "resnet", "num_channels": 2}
    config = DeepClusterConfig(backbone_config=backbone, sobel=True, num_clusters=4, image_size=32)
    model = AutoModel.from_config(config).eval()
    model.save_pretrained(tmp_path / "sobel")
    classifier = load_classifier(str(tmp_path / "sobel"), NAMES, classifier_norm="batchnorm").eval()
    pixel_values = images(32)
    features = model(pixel_values).pooler_output
    torch.testing.assert_close(classifier.extract_features(pixel_values).pooler_output, features)


def test_layers_of_libraries(mae, resnet):
    """As timm counts the blocks of its own ViT; what is behind them is the last layer, as MMSelfSup has it."""
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=3)
    expected = group_parameters(theirs, theirs.group_matcher(coarse=False), reverse=True)
    model = load_classifier("vit_tiny_patch16_224", NAMES, from_scratch=True)
    ids = dict(zip(names := [n for n, _ in model.named_parameters()], layer_ids(names)[0], strict=True))
    for name, layer in expected.items():
        if not name.startswith(("norm.", "head.")):
            assert ids[f"backbone.timm_model.{name}"] == layer
    assert ids["backbone.timm_model.norm.weight"] == ids["classifier.weight"] == 13
    for name, depth in ((mae, 3), (f"{mae}/backbone", 3), (resnet, 4)):
        names = [name for name, _ in load_classifier(name, NAMES).named_parameters()]
        ids, count = layer_ids(names)
        assert count == depth + 2 and set(ids) == set(range(count)) and ids == sorted(ids)
    with pytest.raises(ValueError, match="leave layer_decay out"):
        layer_ids(["conv.weight", "classifier.weight"])


def test_groups(mae):
    model = load_classifier(f"{mae}/backbone", NAMES)
    groups = parameter_groups(model, 1.0, 0.1, layer_decay=0.5, head_lr_scale=10.0)
    of = {id(parameter): group for group in groups for parameter in group["params"]}
    settings = {name: (of[id(p)]["lr"], of[id(p)]["weight_decay"]) for name, p in model.named_parameters()}
    assert settings["classifier.weight"] == (10.0, 0.1) and settings["classifier.bias"] == (10.0, 0.0)
    assert settings["backbone.layernorm.weight"] == (1.0, 0.0)
    assert settings["backbone.layers.2.mlp.fc1.weight"] == (0.5, 0.1)
    assert settings["backbone.embeddings.cls_token"] == (0.5**4, 0.0)
    assert settings["backbone.embeddings.patch_embeddings.projection.weight"] == (0.5**4, 0.1)
    assert groups[0]["lr"] == 10.0
    assert {g["weight_decay"] for g in parameter_groups(model, 1.0, 0.1, decay_norm_and_bias=True)} == {0.1}


def test_lars_of_a_linear_evaluation_adapts_without_weight_decay():
    layer = torch.nn.Linear(4, 3)
    start = layer.weight.detach().clone()
    optimizer = build_optimizer("lars", [{"params": list(layer.parameters())}], 2.0, momentum=0.9, nesterov=False)
    layer.weight.grad, layer.bias.grad = torch.randn(3, 4), torch.zeros(3)
    optimizer.step()
    step = 2.0 * 0.001 * start.norm() / layer.weight.grad.norm() * layer.weight.grad
    torch.testing.assert_close(layer.weight.detach(), start - step)
