import dataclasses
from importlib import resources

import pytest
import torch
from transformers import AutoModelForPreTraining

from ssl_hub import SSLConfig
from ssl_hub.data.views import build_views
from ssl_hub.training.arguments import DataArguments, ModelArguments, PretrainingArguments, parse_arguments
from ssl_hub.training.recipes import list_recipes, load_recipe, parse_overrides

# (width, depth, heads, patch size) and the parameters of encoder and decoder without the fixed position tables
MAE_SIZES = {
    "base": (768, 12, 12, 16, 111_655_680),
    "large": (1024, 24, 16, 16, 329_239_296),
    "huge": (1280, 32, 16, 14, 656_613_964),
}


@pytest.fixture
def recipe_file(tmp_path):
    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize("name", list_recipes())
class TestPackagedRecipes:
    def test_builds_model_and_views(self, name):
        recipe = load_recipe(name)
        config = recipe.build_config()
        assert isinstance(config, SSLConfig)
        with torch.device("meta"):
            AutoModelForPreTraining.from_config(config)
        assert len(build_views(recipe.views)) == sum(view.get("count", 1) for view in recipe.views)

    def test_training_section_is_arguments(self, name):
        recipe = load_recipe(name)
        names = {
            f.name for cls in (ModelArguments, DataArguments, PretrainingArguments) for f in dataclasses.fields(cls)
        }
        assert set(recipe.training) <= names
        _, _, _, args = parse_arguments(["--recipe", name, "--train_dir", "images", "--output_dir", "out"])
        for key, value in recipe.training.items():
            if hasattr(args, key):
                assert getattr(args, key) == value

    def test_comment_has_the_command(self, name):
        text = (resources.files("ssl_hub.recipes") / f"{name}.yaml").read_text()
        comment = text.partition("\nmodel:")[0].partition("\nextends:")[0]
        assert all(line.startswith("#") for line in comment.splitlines())
        assert "accelerate launch" in comment
        assert f"examples/run_pretrain.py --recipe {name} " in comment


@pytest.mark.parametrize("name", [name for name in list_recipes() if name.startswith("mae-") and name[-1] != "s"])
def test_mae_recipes_are_the_published_settings(name):
    size, epochs = name.split("-")[2], int(name.split("-")[3].removesuffix("e"))
    recipe = load_recipe(name)
    config = recipe.build_config()
    backbone = config.backbone_config
    width, depth, heads, patch_size, num_parameters = MAE_SIZES[size]
    assert (backbone.hidden_size, backbone.num_hidden_layers, backbone.num_attention_heads) == (width, depth, heads)
    assert (backbone.patch_size, backbone.image_size, backbone.intermediate_size) == (patch_size, 224, 4 * width)
    assert (backbone.layer_norm_eps, backbone.qkv_bias) == (1e-6, True)
    assert (config.mask_ratio, config.norm_pix_loss, config.decoder_num_hidden_layers) == (0.75, True, 8)
    assert (config.decoder_hidden_size, config.decoder_num_attention_heads) == (512, 16)
    with torch.device("meta"):
        model = AutoModelForPreTraining.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == num_parameters

    _, _, data_args, args = parse_arguments(["--recipe", name, "--dataset_name", "imagenet-1k", "--output_dir", "out"])
    assert (args.num_train_epochs, args.warmup_epochs, args.per_device_train_batch_size) == (epochs, 40, 512)
    assert args.base_learning_rate * 8 * 512 / 256 == pytest.approx(2.4e-3)
    assert (args.weight_decay, args.adam_beta1, args.adam_beta2) == (0.05, 0.9, 0.95)
    assert args.mixed_precision == ("no" if name.endswith("fp32") else "fp16")
    assert (args.checkpointing_steps, args.lr_scheduler_type) == ("epoch", "cosine")
    assert data_args.eval_split is None
    assert recipe.views == [{"count": 1, "size": 224, "scale": [0.2, 1.0], "interpolation": "bicubic", "hflip": 0.5}]


def test_every_mae_setting_has_a_recipe():
    expected = {f"mae-vit-{size}-{epochs}e" for size in ("base", "large") for epochs in (300, 400, 800, 1600)}
    assert expected | {"mae-vit-base-400e-fp32", "mae-vit-huge-1600e", "mae-vit-tiny-digits"} <= set(list_recipes())


def test_unknown_recipe():
    with pytest.raises(ValueError, match=r"no recipe 'mae-vit-bse-300e' and no such file; near it: mae-vit-base-300e"):
        load_recipe("mae-vit-bse-300e")
    with pytest.raises(ValueError, match=r"no recipe 'xyz'.*the recipes are .*mae-vit-base-300e"):
        load_recipe("xyz")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds nothing, not sections"),
        ("- 1\n- 2\n", "holds a list, not sections"),
        ("just a sentence", "holds a str, not sections"),
        ("model: {model_type: mae", "is not YAML"),
        ("modle:\n  model_type: mae\n", "has the section 'modle'; its sections may be extends, model, views, training"),
        ("model:\nviews: []\n", "section 'model' of recipe .* must be a dict; got None"),
        ("views: {size: 224}\n", "section 'views' of recipe .* must be a list; got {'size': 224}"),
        ("extends: mae-vit-base-30e\n", "no recipe 'mae-vit-base-30e'.*near it: mae-vit-base-300e"),
    ],
)
def test_file_that_is_no_recipe(recipe_file, text, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(recipe_file(text))


def test_extends(recipe_file):
    file = recipe_file(
        "extends: mae-vit-large-800e\nmodel: {mask_ratio: 0.6}\nviews: [{size: 224}]\ntraining: {seed: 1}\n"
    )
    recipe, parent = load_recipe(file), load_recipe("mae-vit-large-800e")
    assert recipe.name == file
    assert recipe.model == {**parent.model, "mask_ratio": 0.6}
    assert recipe.views == [{"size": 224}]
    assert recipe.training == {**parent.training, "seed": 1}
    assert (recipe.training["num_train_epochs"], recipe.training["base_learning_rate"]) == (800, 1.5e-4)


@pytest.mark.parametrize("model_type", ["mea", "resnet", "null"])
def test_unknown_model_type(recipe_file, model_type):
    recipe = load_recipe(recipe_file(f"model: {{model_type: {model_type}}}\n"))
    with pytest.raises(ValueError, match=r"asks for the model_type .*; ssl_hub has .*\bmae\b"):
        recipe.build_config()


def test_unknown_model_field(recipe_file):
    recipe = load_recipe(recipe_file("extends: mae-vit-base-300e\nmodel: {mask_rate: 0.6}\n"))
    with pytest.raises(
        ValueError, match=r"recipe .* sets what MAEConfig does not have: 'mask_rate' \(near it: mask_ratio"
    ):
        recipe.build_config()
    recipe = load_recipe(recipe_file("extends: mae-vit-base-300e\nmodel: {backbone_config: {hiden_size: 8}}\n"))
    with pytest.raises(ValueError, match=r"'backbone_config.hiden_size' \(near it: backbone_config.hidden_size"):
        recipe.build_config()


def test_stem_of_a_resnet(recipe_file):
    backbone = "{model_type: resnet, hidden_sizes: [8], depths: [1], layer_type: basic, stem: 3x3}"
    config = load_recipe(recipe_file(f"model: {{model_type: simclr, backbone_config: {backbone}}}")).build_config()
    assert config.backbone_config.stem == "3x3"


def test_overrides():
    recipe = load_recipe("mae-vit-base-300e")
    config = recipe.build_config("mask_ratio=0.6,backbone_config.patch_size=32,image_mean=[0.5, 0.4, 0.3]")
    assert (config.mask_ratio, config.backbone_config.patch_size) == (0.6, 32)
    assert (config.image_mean, config.backbone_config.hidden_size) == ([0.5, 0.4, 0.3], 768)
    with pytest.raises(ValueError, match=r"--config_overrides sets .*'mask_rate' \(near it: mask_ratio"):
        recipe.build_config("mask_rate=0.6")


def test_parse_overrides():
    assert parse_overrides("a=1,b.c=[1, 2],b.d=x") == {"a": 1, "b": {"c": [1, 2], "d": "x"}}
    assert parse_overrides("a=true,b=1.5e-4,c=null") == {"a": True, "b": 1.5e-4, "c": None}
    with pytest.raises(ValueError, match=r"takes name=value,name=value,...; got 'mask_ratio'"):
        parse_overrides("mask_ratio")
