"""The recipes of NPID, RelativeLoc and RotationPred are the published settings."""

from importlib import resources

import pytest

from ssl_hub.training.arguments import parse_arguments
from ssl_hub.training.recipes import list_recipes, load_recipe

NPID = {"projection_size": 128, "num_negatives": 65536, "memory_momentum": 0.5, "temperature": 0.07, "memory_size": 0}
MEAN_STD_OF_RELATIVELOC = {
    "image_mean": pytest.approx([124 / 255, 117 / 255, 104 / 255]),
    "image_std": pytest.approx([59 / 255, 58 / 255, 58 / 255]),
}
# Images a process (of 8), learning rate, epochs, warm-up epochs, milestones, precision, configuration
PUBLISHED = {
    "npid-resnet50-200e": (32, 0.03, 200, 0, "120,160", None, {**NPID, "ensure_negatives": False}),
    "npid-resnet50-ensure-negatives-200e": (32, 0.03, 200, 0, "120,160", None, {**NPID, "ensure_negatives": True}),
    "relativeloc-resnet50-70e": (
        *(64, 0.2, 70, 5, "30,50", None),
        {"projection_size": 4096, "dropout": 0.5, **MEAN_STD_OF_RELATIVELOC},
    ),
    "rotationpred-resnet50-70e": (16, 0.2, 70, 5, "30,50", None, {}),
    "rotationpred-resnet50-amp-70e": (16, 0.2, 70, 5, "30,50", "fp16", {}),
}
VIEWS = {
    "npid": {
        "scale": [0.2, 1.0],
        "interpolation": "bilinear",
        "hflip": 0.5,
        "color_jitter": {"p": 1.0, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.4},
        "grayscale": {"p": 0.2, "before_jitter": True},
    },
    "relativeloc": {
        "kind": "patches",
        "resize": 292,
        "grid": 3,
        "size": 64,
        "jitter": 21,
        "interpolation": "bilinear",
        "grayscale": {"p": 0.66, "weights": "mean"},
    },
    "rotationpred": {"scale": [0.08, 1.0], "interpolation": "bilinear", "hflip": 0.5},
}


def test_every_recipe_is_in_the_table():
    names = {name for name in list_recipes() if name.partition("-")[0] in VIEWS}
    data = ("digits", "resnet18-cifar10", "resnet18-small")
    small = {f"{algorithm}-{each}" for algorithm in VIEWS for each in data}
    assert names == set(PUBLISHED) | small


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_settings(name):
    images, learning_rate, epochs, warmup_epochs, milestones, precision, model = PUBLISHED[name]
    arguments = ["--recipe", name, "--dataset_name", "imagenet-1k", "--output_dir", "out"]
    _, _, data_args, args = parse_arguments(arguments)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (images, 1)
    assert args.learning_rate is None and data_args.eval_split is None and args.checkpointing_steps == "epoch"
    assert args.base_learning_rate * 8 * images / 256 == pytest.approx(learning_rate)
    assert (args.num_train_epochs, args.warmup_epochs, args.warmup_steps) == (epochs, warmup_epochs, None)
    assert (args.lr_milestones, args.lr_milestone_factor) == (milestones, 0.1)
    assert (args.optim, args.sgd_momentum, args.weight_decay, args.decay_norm_and_bias) == ("sgd", 0.9, 1e-4, True)
    assert args.mixed_precision == precision and args.max_grad_norm is None

    recipe = load_recipe(name)
    assert recipe.views == [VIEWS[name.partition("-")[0]]]
    config = recipe.build_config()
    assert {field: getattr(config, field) for field in model} == model
    backbone = config.backbone_config
    shape = (backbone.layer_type, tuple(backbone.depths), tuple(backbone.hidden_sizes), config.image_size)
    assert shape == ("bottleneck", (3, 4, 6, 3), (256, 512, 1024, 2048), 224)

    comment = (resources.files("ssl_hub.recipes") / f"{name}.yaml").read_text()
    assert f"8 processes with {images} images each" in comment.partition("\n")[0]
    assert "--num_processes 8 " in comment
