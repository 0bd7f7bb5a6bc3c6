import dataclasses
import json
import math
from importlib import resources

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import AutoModel, AutoModelForPreTraining, ConvNextConfig

from ssl_hub import SSLConfig, SSLTrainer, load_image_dataset
from ssl_hub.data.views import build_views
from ssl_hub.training.arguments import DataArguments, ModelArguments, PretrainingArguments, parse_arguments
from ssl_hub.training.recipes import list_recipes, load_recipe, parse_overrides

# (width, depth, heads, patch size) and the parameters of encoder and decoder without the fixed position tables
MAE_SIZES = {
    "base": (768, 12, 12, 16, 111_655_680),
    "large": (1024, 24, 16, 16, 329_239_296),
    "huge": (1280, 32, 16, 14, 656_613_964),
}

# The published ImageNet settings of the joint-embedding recipes:
# (processes, images a process, accumulated), learning rate, epochs, warm-up epochs, optimizer, weight decay, and what
# the configuration says besides.
BARLOWTWINS = {"projection_hidden_size": 8192, "projection_size": 8192, "off_diagonal_weight": 0.0051}
BYOL = {
    "teacher_base_momentum": 0.99,
    "projection_hidden_size": 4096,
    "projection_size": 256,
    "predictor_hidden_size": 4096,
}
MOCO = {"teacher_momentum": 0.999, "queue_size": 65536, "projection_size": 128}
MOCOV3 = {"teacher_base_momentum": 0.99, "projection_hidden_size": 4096, "projection_size": 256}
MOCOV3_RESNET = {**MOCOV3, "temperature": 1.0, "projection_num_layers": 2, "predictor_last_batchnorm": False}
MOCOV3_VIT = {**MOCOV3, "temperature": 0.2, "projection_num_layers": 3, "predictor_last_batchnorm": True}
SIMCLR = {"temperature": 0.1, "projection_hidden_size": 2048, "projection_size": 128}
SIMSIAM = {"projection_hidden_size": 2048, "projection_size": 2048, "predictor_hidden_size": 512}
SWAV = {"temperature": 0.1, "num_prototypes": 3000, "queue_size": 3840, "freeze_prototypes_steps": 5005}
PUBLISHED = {
    "barlowtwins-resnet50-300e": ((8, 256, 1), 1.6, 300, 10, "lars", 1e-6, BARLOWTWINS),
    "barlowtwins-resnet50-1000e": ((8, 256, 1), 1.6, 1000, 10, "lars", 1e-6, BARLOWTWINS),
    "barlowtwins-resnet50-accum8-100e": ((8, 32, 8), 1.6, 100, 10, "lars", 1e-6, BARLOWTWINS),
    "byol-resnet50-200e": ((16, 256, 1), 4.8, 200, 10, "lars", 1e-6, BYOL),
    "byol-resnet50-amp-accum2-100e": ((8, 256, 2), 7.2, 100, 10, "lars", 1e-6, BYOL),
    "byol-resnet50-amp-accum2-200e": ((8, 256, 2), 4.8, 200, 10, "lars", 1e-6, BYOL),
    "byol-resnet50-amp-accum2-300e": ((8, 256, 2), 4.8, 300, 10, "lars", 1e-6, BYOL),
    "byol-resnet50-accum16-100e": ((8, 32, 16), 7.2, 100, 10, "lars", 1e-6, BYOL),
    "byol-resnet50-accum16-200e": ((8, 32, 16), 4.8, 200, 10, "lars", 1e-6, BYOL),
    "byol-resnet50-accum16-300e": ((8, 32, 16), 4.8, 300, 10, "lars", 1e-6, BYOL),
    "densecl-resnet50-200e": ((8, 32, 1), 0.03, 200, 0, "sgd", 1e-4, {**MOCO, "temperature": 0.2}),
    "mocov1-resnet50-200e": ((8, 32, 1), 0.03, 200, 0, "sgd", 1e-4, {**MOCO, "temperature": 0.07}),
    "mocov2-resnet50-200e": ((8, 32, 1), 0.03, 200, 0, "sgd", 1e-4, {**MOCO, "temperature": 0.2}),
    "mocov3-resnet50-100e": ((8, 512, 1), 9.6, 100, 10, "lars", 1e-6, MOCOV3_RESNET),
    "mocov3-resnet50-300e": ((8, 512, 1), 4.8, 300, 10, "lars", 1e-6, MOCOV3_RESNET),
    "mocov3-resnet50-800e": (
        (8, 512, 1),
        4.8,
        800,
        10,
        "lars",
        1.5e-6,
        {**MOCOV3_RESNET, "teacher_base_momentum": 0.996},
    ),
    "mocov3-vit-small-300e": ((16, 256, 1), 2.4e-3, 300, 40, "adamw", 0.1, MOCOV3_VIT),
    "mocov3-vit-base-300e": ((16, 256, 1), 2.4e-3, 300, 40, "adamw", 0.1, MOCOV3_VIT),
    "mocov3-vit-large-300e": ((64, 64, 1), 2.4e-3, 300, 40, "adamw", 0.1, MOCOV3_VIT),
    "simclr-resnet50-batch256-200e": ((8, 32, 1), 0.3, 200, 10, "lars", 1e-6, SIMCLR),
    "simclr-resnet50-batch512-200e": ((8, 64, 1), 0.6, 200, 10, "lars", 1e-6, SIMCLR),
    "simclr-resnet50-200e": ((16, 256, 1), 4.8, 200, 10, "lars", 1e-6, SIMCLR),
    "simclr-resnet50-800e": ((16, 256, 1), 4.8, 800, 10, "lars", 1e-6, SIMCLR),
    "simsiam-resnet50-100e": ((8, 32, 1), 0.05, 100, 0, "sgd", 1e-4, SIMSIAM),
    "simsiam-resnet50-200e": ((8, 32, 1), 0.05, 200, 0, "sgd", 1e-4, SIMSIAM),
    "swav-resnet50-200e": ((8, 32, 1), 0.6, 200, 0, "lars", 1e-6, SWAV),
}
# (hidden size, layers, heads) of MoCo v3's ViTs
MOCOV3_SIZES = {"small": (384, 12, 12), "base": (768, 12, 12), "large": (1024, 24, 16)}
# A view: size, smallest area of the crop, interpolation, (strengths of the colour jitter, its p), p of blur and solarize
BYOL_JITTER, SWAV_JITTER = ((0.4, 0.4, 0.2, 0.1), 0.8), ((0.8, 0.8, 0.8, 0.2), 0.8)
MOCO_VIEWS = 2 * [(224, 0.2, "bilinear", ((0.4, 0.4, 0.4, 0.1), 0.8), 0.5, 0.0)]
VIEWS = {
    "barlowtwins": [(224, 0.08, "bicubic", BYOL_JITTER, 1.0, 0.0), (224, 0.08, "bicubic", BYOL_JITTER, 0.1, 0.2)],
    "byol": [(224, 0.08, "bicubic", BYOL_JITTER, 1.0, 0.0), (224, 0.08, "bicubic", BYOL_JITTER, 0.1, 0.2)],
    "densecl": MOCO_VIEWS,
    "mocov1": 2 * [(224, 0.2, "bilinear", ((0.4, 0.4, 0.4, 0.4), 1.0), 0.0, 0.0)],
    "mocov2": MOCO_VIEWS,
    "mocov3-resnet50": [(224, 0.2, "bilinear", BYOL_JITTER, 1.0, 0.0), (224, 0.2, "bilinear", BYOL_JITTER, 0.1, 0.2)],
    "mocov3-vit": [(224, 0.08, "bilinear", BYOL_JITTER, 1.0, 0.0), (224, 0.08, "bilinear", BYOL_JITTER, 0.1, 0.2)],
    "simclr": 2 * [(224, 0.08, "bilinear", SWAV_JITTER, 0.5, 0.0)],
    "simsiam": MOCO_VIEWS,
    "swav": 2 * [(224, 0.14, "bilinear", SWAV_JITTER, 0.5, 0.0)] + 6 * [(96, 0.05, "bilinear", SWAV_JITTER, 0.5, 0.0)],
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
        assert len(build_views(recipe.views, config.image_size)) == sum(view.get("count", 1) for view in recipe.views)

    def test_training_section_is_arguments(self, name):
        recipe = load_recipe(name)
        names = {
            f.name for cls in (ModelArguments, DataArguments, PretrainingArguments) for f in dataclasses.fields(cls)
        }
        assert set(recipe.training) <= names
        _, _, _, args = parse_arguments(["--recipe", name, "--train_dir", "images", "--output_dir", "out"])
        for key, value in recipe.training.items():
            if hasattr(args, key):
                assert getattr(args, key) == type(getattr(args, key))(value)

    def test_comment_has_the_command(self, name):
        text = (resources.files("ssl_hub.recipes") / f"{name}.yaml").read_text()
        comment = text.partition("\nmodel:")[0].partition("\nextends:")[0]
        assert all(line.startswith("#") for line in comment.splitlines())
        assert "accelerate launch" in comment
        assert f"examples/run_pretrain.py --recipe {name} " in comment


@pytest.mark.parametrize(
    "name", [name for name in list_recipes() if name.startswith("mae-") and not name.startswith("mae-vit-tiny-")]
)
def test_mae_recipes_are_the_published_settings(name):
    size, epochs = name.split("-")[2], int(name.split("-")[3].removesuffix("e"))
    recipe = load_recipe(name)
    config = recipe.build_config()
    backbone = config.backbone_config
    width, depth, heads, patch_size, num_parameters = MAE_SIZES[size]
    assert (backbone.hidden_size, backbone.num_hidden_layers, backbone.num_attention_heads) == (width, depth, heads)
    assert (backbone.patch_size, backbone.intermediate_size, config.image_size) == (patch_size, 4 * width, 224)
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
    assert recipe.views == [{"count": 1, "scale": [0.2, 1.0], "interpolation": "bicubic", "hflip": 0.5}]


def test_every_mae_setting_has_a_recipe():
    expected = {f"mae-vit-{size}-{epochs}e" for size in ("base", "large") for epochs in (300, 400, 800, 1600)}
    assert expected | {"mae-vit-base-400e-fp32", "mae-vit-huge-1600e", "mae-vit-tiny-digits"} <= set(list_recipes())


def test_every_imagenet_recipe_is_in_a_table():
    small, elsewhere = (
        ("-digits", "-cifar10", "-small"),
        ("deepcluster-", "npid-", "odc-", "relativeloc-", "rotationpred-"),
    )
    elsewhere += ("beitv1-", "beitv2-", "cae-", "mae-", "maskfeat-", "simmim-")
    assert set(PUBLISHED) == {n for n in list_recipes() if not n.startswith(elsewhere) and not n.endswith(small)}


@pytest.mark.parametrize("name", list(PUBLISHED))
class TestJointEmbeddingRecipes:
    def test_published_training(self, name):
        batch, learning_rate, epochs, warmup_epochs, optimizer, weight_decay, _ = PUBLISHED[name]
        processes, images, accumulated = batch
        arguments = ["--recipe", name, "--dataset_name", "imagenet-1k", "--output_dir", "out"]
        _, _, data_args, args = parse_arguments(arguments)
        assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (images, accumulated)
        assert args.learning_rate is None and data_args.eval_split is None and args.checkpointing_steps == "epoch"
        assert args.base_learning_rate * math.prod(batch) / 256 == pytest.approx(learning_rate)
        assert (args.num_train_epochs, args.warmup_epochs, args.warmup_steps) == (epochs, warmup_epochs, None)
        assert (args.optim, args.weight_decay, args.sgd_momentum) == (optimizer, weight_decay, 0.9)
        assert args.mixed_precision == ("fp16" if "mocov3" in name or "-amp-" in name else None)

        algorithm = name.partition("-")[0]
        everything_decays = algorithm in ("densecl", "mocov1", "mocov2", "simsiam", "swav") or "-vit-" in name
        assert args.decay_norm_and_bias == everything_decays
        assert args.norm_and_bias_lr_scale == (0.024 if algorithm == "barlowtwins" else 1.0)
        assert args.lr_milestones == ("120,160" if algorithm == "mocov1" else None)
        ends_above_0 = algorithm in ("barlowtwins", "swav")
        schedule = ("cosine_with_min_lr", 0.001) if ends_above_0 else ("cosine", 0.0)
        assert (args.lr_scheduler_type, args.min_lr_rate) == schedule
        assert args.max_grad_norm == (5.0 if name == "mocov3-vit-large-300e" else None)
        if optimizer == "adamw":
            assert (args.adam_beta1, args.adam_beta2) == (0.9, 0.999)

        comment = (resources.files("ssl_hub.recipes") / f"{name}.yaml").read_text()
        what = f"{processes} processes with {images} images each" + (
            f", {accumulated} times" if accumulated > 1 else ""
        )
        assert what in comment.partition("\n")[0] and f"--num_processes {processes} " in comment

    def test_published_model(self, name):
        config = load_recipe(name).build_config()
        expected = PUBLISHED[name][-1]
        assert {field: getattr(config, field) for field in expected} == expected
        algorithm, backbone = name.partition("-")[0], config.backbone_config
        assert config.image_size == 224
        if "-vit-" in name:
            width, depth, heads = MOCOV3_SIZES[name.split("-")[2]]
            sizes = (backbone.hidden_size, backbone.num_hidden_layers, backbone.num_attention_heads)
            assert sizes == (width, depth, heads)
            assert (backbone.intermediate_size, backbone.patch_size) == (4 * width, 16)
            assert (backbone.layer_norm_eps, backbone.qkv_bias, config.freeze_patch_projection) == (1e-6, True, True)
        else:
            shape = (backbone.layer_type, tuple(backbone.depths), tuple(backbone.hidden_sizes))
            assert shape == ("bottleneck", (3, 4, 6, 3), (256, 512, 1024, 2048))
            assert config.zero_init_residual == (algorithm in ("barlowtwins", "simclr", "simsiam", "swav"))
        if config.model_type == "moco":
            assert config.mlp_projector == (algorithm == "mocov2")

    def test_published_views(self, name):
        recipe = load_recipe(name)
        expected = next(views for start, views in VIEWS.items() if name.startswith(start))
        given = []
        assert recipe.build_config().image_size == 224
        for view in recipe.views:
            size = view.get("size", 224)
            jitter = view["color_jitter"]
            strengths = tuple(jitter[key] for key in ("brightness", "contrast", "saturation", "hue"))
            blur, solarize = view.get("gaussian_blur", {"p": 0.0}), view.get("solarize", {"p": 0.0})
            grayscale = {"p": 0.2, "weights": "mean", "before_jitter": True} if "mocov1" in name else 0.2
            assert (view["hflip"], view["grayscale"], blur.get("sigma", [0.1, 2.0])) == (0.5, grayscale, [0.1, 2.0])
            low, high = view["scale"]
            assert high == (0.14 if size == 96 else 1.0)
            given += view["count"] * [
                (size, low, view["interpolation"], (strengths, jitter["p"]), blur["p"], solarize["p"])
            ]
        assert given == expected


@pytest.mark.parametrize("name", [name for name in list_recipes() if name.endswith("-digits")])
def test_digits_recipes_train(name, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    recipe, _, data_args, args = parse_arguments(
        [
            *("--recipe", name, "--output_dir", str(tmp_path), "--max_train_steps", "3", "--warmup_steps", "0"),
            *("--logging_steps", "1", "--dataloader_num_workers", "0"),
        ]
    )
    dataset = load_image_dataset(data_args.dataset_name, data_args.train_split)
    SSLTrainer(AutoModelForPreTraining.from_config(recipe.build_config()), args, dataset, recipe.views).train()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    assert len(losses) == 3 and all(math.isfinite(loss) for loss in losses) and len(set(losses)) == 3
    assert AutoModel.from_pretrained(tmp_path).config.model_type == recipe.model["model_type"]


@pytest.mark.parametrize("name", [name for name in list_recipes() if name.endswith("-resnet18-cifar10")])
def test_cifar10_recipes_have_a_resnet18_for_small_images(name):
    config = load_recipe(name).build_config()
    assert (config.backbone_config.depths, config.backbone_config.hidden_sizes) == ([2, 2, 2, 2], [64, 128, 256, 512])
    with torch.device("meta"):
        backbone = AutoModelForPreTraining.from_config(config).backbone
        features = backbone.eval()(torch.empty(1, 3, 32, 32)).last_hidden_state
    stem = backbone.embedder.embedder.convolution
    assert (stem.kernel_size, stem.stride, stem.out_channels) == ((3, 3), (1, 1), 64)
    assert features.shape == (1, 512, 4, 4)
    # torchvision's ResNet-18 has 11,689,512 with a classifier of 513,000 and a first layer of 9,408.
    assert backbone.num_parameters() == 11_689_512 - 513_000 - 9_408 + 3 * 3 * 3 * 64


def test_joint_embedding_algorithms_have_small_recipes():
    algorithms = ("barlowtwins", "byol", "densecl", "moco", "mocov3", "simclr", "simsiam", "swav")
    small = {f"{name}-{data}" for name in algorithms for data in ("digits", "resnet18-cifar10")}
    assert small <= set(list_recipes())


# embed_dim, heads, window, epochs, learning rate, milestones
SIMMIM = {
    "simmim-swin-base-100e": (128, [4, 8, 16, 32], 6, 100, 8e-4, None),
    "simmim-swin-base-800e": (128, [4, 8, 16, 32], 6, 800, 4e-4, "700"),
    "simmim-swin-large-800e": (192, [6, 12, 24, 48], 12, 800, 4e-4, "700"),
}


@pytest.mark.parametrize("name", list(SIMMIM))
def test_simmim_recipes_are_the_published_settings(name):
    width, heads, window, epochs, learning_rate, milestones = SIMMIM[name]
    recipe = load_recipe(name)
    config = recipe.build_config()
    backbone = config.backbone_config
    assert (backbone.embed_dim, backbone.depths, backbone.num_heads) == (width, [2, 2, 18, 2], heads)
    assert (config.image_size, backbone.patch_size, backbone.window_size) == (192, 4, window)
    assert (backbone.mlp_ratio, backbone.qkv_bias, backbone.use_absolute_embeddings) == (4.0, True, False)
    assert (config.mask_kind, config.mask_ratio, config.mask_cell_size) == ("aligned", 0.6, 32)
    assert config.pad_small_maps == (window == 12)
    _, _, _, args = parse_arguments(["--recipe", name, "--dataset_name", "imagenet-1k", "--output_dir", "out"])
    assert (args.num_train_epochs, args.warmup_epochs, args.per_device_train_batch_size) == (epochs, 10, 128)
    assert args.base_learning_rate * 16 * 128 / 256 == pytest.approx(learning_rate)
    assert (args.weight_decay, args.adam_beta1, args.adam_beta2, args.max_grad_norm) == (0.05, 0.9, 0.999, 5)
    assert (args.mixed_precision, args.optim) == ("fp16", "adamw")
    assert (args.lr_milestones, args.lr_milestone_factor) == (milestones, 0.1)
    if milestones is None:
        assert (args.lr_scheduler_type, args.min_lr_rate * learning_rate) == ("cosine_with_min_lr", pytest.approx(4e-5))
    assert recipe.views == [{"count": 1, "scale": [0.67, 1.0], "interpolation": "bilinear", "hflip": 0.5}]


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
        (
            "modle:\n  model_type: mae\n",
            "has the section 'modle'; its sections may be extends, model, views, training, evaluation, results",
        ),
        ("results: {publisht: x}\n", "'results' of recipe .* may have published and measured, each a text; got {'publ"),
        ("results: {measured: 68.3}\n", "may have published and measured, each a text; got {'measured': 68.3}"),
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


def test_evaluation_is_replaced_as_a_whole(tmp_path):
    parent, child, silent = (tmp_path / f"{name}.yaml" for name in ("parent", "child", "silent"))
    parent.write_text("extends: mae-vit-tiny-digits\nevaluation: [{type: knn, k: 5}, {type: label_free}]\n")
    child.write_text(f"extends: {parent}\nevaluation: [{{type: linear_probe}}]\n")
    silent.write_text(f"extends: {parent}\n")
    assert load_recipe("mae-vit-tiny-digits").evaluation is None
    assert load_recipe(str(silent)).evaluation == [{"type": "knn", "k": 5}, {"type": "label_free"}]
    assert load_recipe(str(child)).evaluation == [{"type": "linear_probe"}]


def test_results_are_a_recipe_s_own(recipe_file):
    published = load_recipe("simsiam-resnet50-100e").results["published"]
    assert published == "ImageNet-1k top-1 by MMSelfSup: 68.3 linear (resnet50_linear-8xb512-coslr-90e)"
    file = recipe_file("extends: simsiam-resnet50-100e\nresults: {measured: none}\n")
    assert load_recipe(file).results == {"measured": "none"}
    assert load_recipe(recipe_file("extends: simsiam-resnet50-100e\n")).results == {}


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


def test_a_backbone_of_another_type_replaces_the_recipe_s(recipe_file):
    recipe = load_recipe("simclr-digits")
    config = recipe.build_config("backbone_config.model_type=convnext,backbone_config.patch_size=2")
    assert (config.backbone_config.patch_size, config.backbone_config.depths) == (2, ConvNextConfig().depths)
    config = recipe.build_config("backbone_config.model_type=regnet,backbone_config.groups_width=8")
    assert (config.backbone_config.groups_width, config.backbone_config.depths) == (8, [1, 1])
    with pytest.raises(ValueError, match=r"no model_type 'convnxt' for backbone_config; near it: convnext"):
        recipe.build_config("backbone_config.model_type=convnxt")
    with pytest.raises(ValueError, match=r"'backbone_config.stem'"):
        recipe.build_config("backbone_config.stem=3x3")


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
