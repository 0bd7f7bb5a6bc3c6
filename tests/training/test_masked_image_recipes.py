"""The published settings of the masked-image recipes that predict what a target generator makes."""

from importlib import resources

import pytest

from ssl_hub.training.arguments import parse_arguments
from ssl_hub.training.recipes import list_recipes, load_recipe


@pytest.mark.parametrize(
    ("name", "processes", "images"),
    [("cae-vit-base-300e", 8, 256), ("cae-vit-base-16xb128-300e", 16, 128), ("cae-vit-base-32xb64-300e", 32, 64)],
)
def test_cae(name, processes, images):
    recipe = load_recipe(name)
    config, backbone = recipe.build_config(), recipe.build_config().backbone_config
    assert (backbone.hidden_size, backbone.num_hidden_layers, backbone.num_attention_heads) == (768, 12, 12)
    assert (backbone.intermediate_size, backbone.layer_norm_eps) == (3072, 1e-6)
    assert (backbone.layer_scale_init_value, backbone.drop_path_rate) == (0.1, 0.0)
    assert (config.regressor_num_hidden_layers, config.decoder_num_hidden_layers) == (4, 4)
    assert (config.neck_num_attention_heads, config.neck_intermediate_size) == (12, 3072)
    assert (config.neck_layer_scale_init_value, config.alignment_weight, config.teacher_momentum) == (0.1, 2.0, 0.0)
    assert (config.target_type, config.target_name_or_path) == ("dalle", "facebook/flava-image-codebook")
    assert [value * 255 for value in config.image_mean] == pytest.approx([124, 117, 104], abs=1e-4)
    assert [value * 255 for value in config.image_std] == pytest.approx([59, 58, 58], abs=1e-4)

    (view,) = recipe.views
    assert (config.image_size, view["scale"], view["hflip"]) == (224, [0.08, 1.0], 0.5)
    assert view["mask"] == {"kind": "blockwise", "count": 75, "min_num_patches": 16}
    # (x - mean) / std = 0.8 x + 0.1
    assert (view["target"]["size"], view["target"]["mean"], view["target"]["std"]) == (112, 3 * [-0.125], 3 * [1.25])

    _, _, _, args = parse_arguments(["--recipe", name, "--dataset_name", "imagenet-1k", "--output_dir", "out"])
    assert (args.num_train_epochs, args.warmup_epochs) == (300, 10)
    assert args.per_device_train_batch_size * processes == images * processes == 2048
    assert (args.optim, args.learning_rate, args.adam_beta1, args.adam_beta2) == ("adamw", 1.5e-3, 0.9, 0.999)
    assert (args.weight_decay, args.max_grad_norm, args.mixed_precision) == (0.05, 3.0, "fp16")
    assert args.lr_scheduler_type == "cosine_with_min_lr"
    assert args.min_lr_rate * args.learning_rate == pytest.approx(1e-5, rel=1e-4)
    head = (resources.files("ssl_hub.recipes") / f"{name}.yaml").read_text().partition("\n")[0]
    assert f"{processes} processes with {images} images each" in head


@pytest.mark.parametrize(
    ("name", "count", "scale", "warmup_epochs", "learning_rate", "max_grad_norm", "beta2"),
    [
        ("maskfeat-vit-base-300e", 78, 0.5, 30, 1.6e-3, 0.02, 0.999),
        ("beitv1-vit-base-300e", 75, 0.08, 10, 1.5e-3, 3.0, 0.999),
        ("beitv2-vit-base-300e", 75, 0.2, 10, 1.5e-3, 3.0, 0.98),
    ],
)
def test_mask_token_models(name, count, scale, warmup_epochs, learning_rate, max_grad_norm, beta2):
    recipe = load_recipe(name)
    config, backbone = recipe.build_config(), recipe.build_config().backbone_config
    assert (backbone.hidden_size, backbone.num_hidden_layers, backbone.num_attention_heads) == (768, 12, 12)
    assert config.num_masked_patches(196) == count
    (view,) = recipe.views
    assert (config.image_size, view["scale"], view["mask"]["count"]) == (224, [scale, 1.0], count)
    _, _, _, args = parse_arguments(["--recipe", name, "--dataset_name", "imagenet-1k", "--output_dir", "out"])
    assert (args.num_train_epochs, args.warmup_epochs, args.per_device_train_batch_size) == (300, warmup_epochs, 256)
    assert (args.learning_rate, args.weight_decay, args.max_grad_norm) == (learning_rate, 0.05, max_grad_norm)
    assert (args.adam_beta1, args.adam_beta2, args.mixed_precision) == (0.9, beta2, "fp16")


def test_small_recipes():
    small = {
        f"{name}-vit-tiny-{data}" for name in ("beitv1", "beitv2", "cae", "maskfeat") for data in ("digits", "cifar10")
    }
    assert small <= set(list_recipes())
