"""Values that make no sense: in configurations, arguments, recipes and overrides, and what is computed too coarsely."""

import inspect
import json
import math
import runpy
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

import pytest
import torch
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, AutoModelForPreTraining, ViTConfig

import ssl_hub
from ssl_hub import MoCoConfig, SimCLRConfig, SSLConfig
from ssl_hub.classification.arguments import AugmentationArguments, ClassifierArguments
from ssl_hub.data.views import build_views
from ssl_hub.evaluation.evaluators import build_evaluators
from ssl_hub.field_types import PositiveFloat, check_fields
from ssl_hub.models.barlowtwins.modeling_barlowtwins import cross_correlation
from ssl_hub.models.densecl.modeling_densecl import match_positions
from ssl_hub.models.mocov3.modeling_mocov3 import batch_contrast
from ssl_hub.models.npid.modeling_npid import instance_contrast, nearest_rows
from ssl_hub.models.simclr.modeling_simclr import nt_xent_loss
from ssl_hub.models.swav.modeling_swav import prototype_scores, sinkhorn
from ssl_hub.modules.clustering import fit_whitening, nearest_centroids, whiten
from ssl_hub.modules.losses import cosine_loss, queue_contrast, target_loss
from ssl_hub.modules.memories import OnlineClusterMemory
from ssl_hub.registry import ALGORITHMS, class_modules
from ssl_hub.training.arguments import DataArguments, ModelArguments, PretrainingArguments, parse_arguments
from ssl_hub.training.recipes import load_recipe, read_yaml

EXAMPLE = Path(__file__).parents[2] / "examples" / "run_pretrain.py"
CONFIGS = [
    getattr(ssl_hub, next(name for name in class_modules(algorithm) if name.endswith("Config")))
    for algorithm in ALGORITHMS
]
ARGUMENTS = [ModelArguments, DataArguments, PretrainingArguments, ClassifierArguments, AugmentationArguments]
REQUIRED = {
    ModelArguments: {"recipe": "mae-vit-tiny-digits"},
    DataArguments: {"dataset_name": "digits"},
    PretrainingArguments: {"output_dir": "out"},
    ClassifierArguments: {"model_name_or_path": "model"},
    AugmentationArguments: {},
}

# Where zero says something: no queue, no decay, no clipping, from the first step on, ...
ZERO_SAYS_SOMETHING = {
    *("teacher_momentum", "teacher_base_momentum", "dense_loss_weight", "dense_loss_start_step", "class_weight_power"),
    *("num_small_crops", "queue_start_epoch", "freeze_prototypes_steps", "memory_size", "dropout", "alignment_weight"),
    *("neck_layer_scale_init_value", "decoder_num_hidden_layers", "seed", "min_lr_rate", "warmup_epochs"),
    *("warmup_steps", "weight_decay", "weight_decay_end", "norm_and_bias_lr_scale", "sgd_momentum", "adam_beta1"),
    *(
        "adam_beta2",
        "max_grad_norm",
        "train_val_split",
        "dataloader_num_workers",
        "knn_max_samples",
        "drop_path_rate",
        "classifier_std",
        "hflip",
    ),
    *("color_jitter", "random_erasing", "lighting", "mixup", "cutmix"),
}
ZERO_OF_ONE_CLASS = {("SwAVConfig", "queue_size")}


def is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def numeric_fields(cls, instance) -> list[str]:
    """Those with a number as default, and those without one whose annotation speaks of numbers."""
    known = {f.name for f in fields(cls)}
    hints = {name: hint for base in cls.__mro__[::-1] for name, hint in inspect.get_annotations(base).items()}
    names = {name for name in known if is_number(getattr(instance, name))}
    names |= {n for n in known & hints.keys() if hints[n] is not None and {"int", "float"} & set(words(hints[n]))}
    names = {n for n in names if "list" not in words(hints[n]) or n.startswith("image_")}
    return sorted(names - {"chunk_size_feed_forward", "id2label", "label2id", "recipe_length"})


def words(hint) -> list[str]:
    return str(hint).replace("[", " ").replace("]", " ").replace(",", " ").replace("|", " ").replace("'", " ").split()


@pytest.mark.parametrize("config_class", CONFIGS, ids=lambda c: c.__name__)
def test_every_number_of_a_configuration_is_checked(config_class):
    config = config_class()
    names = [name for name in numeric_fields(config_class, config) if not name.startswith("image_")]
    for name in [*names, "image_size"]:
        before = getattr(config, name)
        refused = [math.nan, math.inf, -math.inf, -1, "1", [1], {"a": 1}, True]
        zero_allowed = name in ZERO_SAYS_SOMETHING or (config_class.__name__, name) in ZERO_OF_ONE_CLASS
        for value in refused if zero_allowed else [*refused, 0]:
            with pytest.raises(ValueError, match=rf"^{name} must be a (whole )?number") as error:
                setattr(config, name, value)
            assert str(error.value).endswith(f"got {value!r}")
        if zero_allowed:
            setattr(config, name, 0)
        setattr(config, name, before)
    for name in ("image_mean", "image_std"):
        for value in ([math.nan] * 3, [math.inf] * 3, ["0"] * 3, 0.5, None):
            with pytest.raises(ValueError, match=f"^{name} must be a list, each item a number"):
                setattr(config, name, value)


@pytest.mark.parametrize("arguments_class", ARGUMENTS)
def test_every_numeric_argument_is_checked(arguments_class):
    required = REQUIRED[arguments_class]
    for name in numeric_fields(arguments_class, arguments_class(**required)):
        refused = [math.nan, math.inf, -math.inf, -1, "1", [1], True]
        for value in refused if name in ZERO_SAYS_SOMETHING else [*refused, 0]:
            with pytest.raises(ValueError, match=rf"^--{name} must be a (whole )?number") as error:
                arguments_class(**required, **{name: value})
            assert str(error.value).endswith(f"got {value!r}")
    for name in [f.name for f in fields(arguments_class) if f.init]:
        with pytest.raises(ValueError, match=f"^--{name} must be "):
            arguments_class(**{**required, name: object()})


def test_zero_is_taken_where_it_says_something():
    zeros = {f.name: 0 for f in fields(PretrainingArguments) if f.name in ZERO_SAYS_SOMETHING - {"weight_decay_end"}}
    args = PretrainingArguments(output_dir="out", **zeros)
    assert all(getattr(args, name) == 0 for name in zeros)


@pytest.mark.parametrize("name", ["learning_rate", "num_train_epochs"])
def test_not_a_number_on_the_command_line(name):
    arguments = ["--recipe", "mae-vit-tiny-digits", "--output_dir", "out", f"--{name}", "nan"]
    with pytest.raises(ValueError, match=f"^--{name} must be a number above 0, got nan"):
        parse_arguments(arguments)


def test_a_whole_number_is_a_float(tmp_path):
    config = SimCLRConfig(
        temperature=1, backbone_config={"model_type": "vit", "layer_norm_eps": 1}, image_mean=[0, 0, 1]
    )
    assert type(config.temperature) is type(config.backbone_config.layer_norm_eps) is float
    assert config.image_mean == [0.0, 0.0, 1.0] and type(config.image_mean[2]) is float
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**saved, "temperature": 2}))
    assert AutoConfig.from_pretrained(tmp_path).temperature == 2.0
    recipe = load_recipe("simclr-digits")
    assert recipe.build_config("temperature=1").temperature == 1.0
    recipe.model["temperature"] = 3
    assert type(recipe.build_config().temperature) is float
    assert type(PretrainingArguments(output_dir="out", learning_rate=1).learning_rate) is float


def test_scientific_notation_is_a_number():
    assert read_yaml("[1e-4, 1E3, -2e+1, 1.5e-3, 1e, e5, 12]") == [1e-4, 1e3, -20.0, 1.5e-3, "1e", "e5", 12]
    config = load_recipe("mae-vit-tiny-digits").build_config("mask_ratio=5e-1,backbone_config.layer_norm_eps=1e-5")
    assert (config.mask_ratio, config.backbone_config.layer_norm_eps) == (0.5, 1e-5)


def test_a_configuration_that_is_strict_itself():
    @strict
    class StrictConfig(SSLConfig):
        model_type = "strict_example"
        warmth: PositiveFloat = 1.0

    assert StrictConfig(warmth=2).warmth == 2.0
    with pytest.raises(ValueError, match="^warmth must be a number above 0, got 0"):
        StrictConfig(warmth=0)


def test_types_of_a_dataclass():
    @dataclass(frozen=True)
    class Example:
        pair: tuple[int, float] = (1, 2)
        names: list[str] = field(default_factory=list)

        def __post_init__(self):
            check_fields(self)

    assert Example().pair == (1, 2.0)
    for values in ({"pair": (1,)}, {"pair": (1.5, 2)}, {"names": [1]}, {"names": "ab"}):
        with pytest.raises(ValueError, match="must be a list, each item"):
            Example(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperatur": 0.1}, "MoCoConfig has no field 'temperatur'; near it: temperature"),
        ({"pooling": "max"}, "pooling must be 'cls' or 'mean', got 'max'"),
        ({"mlp_projector": 1}, "mlp_projector must be True or False, got 1"),
        ({"backbone_config": "vit"}, "backbone_config must be a mapping or a PreTrainedConfig, got 'vit'"),
        ({"backbone_config": {"model_type": ["vit"]}}, r"no model_type \['vit'\]"),
        ({"backbone_config": {"model_type": "vit", "hidden_size": "a"}}, "'hidden_size' expected int, got str"),
        (
            {"backbone_config": {"model_type": "vit", "hidden_size": -1}},
            "backbone_config.hidden_size must be 0 or more",
        ),
        ({"backbone_config": {"model_type": "resnet", "depths": [1, -1]}}, "backbone_config.depths must be 0 or more"),
        ({"backbone_config": ViTConfig(layer_norm_eps=math.nan)}, "backbone_config.layer_norm_eps must be .* got nan"),
        (
            {"backbone_config": {"model_type": "resnet", "layer_type": "a"}},
            "layer_type=a is not one of basic,bottleneck",
        ),
        ({"num_labels": -1}, "num_labels must be a whole number of at least 1, got -1"),
        ({"dtype": "float33"}, "transformers refuses the MoCoConfig: .*float33"),
        ({"id2label": 3}, "transformers refuses the MoCoConfig"),
    ],
)
def test_configurations_that_cannot_be(values, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        MoCoConfig(**values)
    if all(not isinstance(value, ViTConfig) for value in values.values()):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "moco", **values}))
        with pytest.raises(ValueError, match=message):
            AutoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("mae-vit-tiny-digits", "mask_ratio=null", r"mask_ratio must be a number in \(0, 1\), got None"),
        ("mae-vit-tiny-digits", "mask_ratio=[1]", r"mask_ratio must be .* got \[1\]"),
        ("mae-vit-tiny-digits", "mask_ratio.a=1", "mask_ratio must be .* got {'a': 1}"),
        ("mae-vit-tiny-digits", "mask_ratio=.nan", "got nan"),
        ("mae-vit-tiny-digits", "mask_ratio=[", r"the value of 'mask_ratio=\[' is not YAML"),
        ("mae-vit-tiny-digits", "mask_ratio=!!python/name:os.system", "is not YAML: could not determine a constructor"),
        ("mae-vit-tiny-digits", "mask_ratio=0.5,mask_ratio=0.6", "sets mask_ratio, or a part of it, more than once"),
        ("mae-vit-tiny-digits", "pooling=cls,pooling.a=1", "sets both pooling and pooling.a"),
        ("mae-vit-tiny-digits", "mask_ration=0.5", "near it: mask_ratio"),
        ("mae-vit-tiny-digits", "=1", "does not have: ''"),
        ("mae-vit-tiny-digits", "num_labels=null", "num_labels must be a whole number"),
        ("mae-vit-tiny-digits", "backbone_config=[]", r"backbone_config must be a mapping .* got \[\]"),
        ("mae-vit-tiny-digits", "backbone_config.model_type=[1]", r"no model_type \[1\]"),
        ("mae-vit-tiny-digits", "backbone_config.hiden_size=8", "near it: backbone_config.hidden_size"),
        ("mae-vit-tiny-digits", "backbone_config.patch_size=0", "got 16 and 0"),
        ("mae-vit-tiny-digits", "backbone_config.num_attention_heads=0", "a multiple of its number of attention heads"),
        ("mae-vit-tiny-digits", "backbone_config.hidden_size=0", "a multiple of its number of attention heads"),
        ("mae-vit-tiny-digits", "backbone_config.num_channels=0", "need 0 values each"),
        ("mae-vit-tiny-digits", "backbone_config.hidden_act=a", "KeyError: 'a'; look at hidden_act in backbone_config"),
        ("beitv1-vit-tiny-digits", "backbone_config.num_attention_heads=5", "got 64 and 5"),
        ("maskfeat-vit-tiny-digits", "backbone_config.num_attention_heads=0", "got 64 and 0"),
        ("cae-vit-tiny-digits", "backbone_config.hidden_act=a", "look at hidden_act in backbone_config"),
        ("simmim-swin-tiny-digits", "backbone_config.num_heads=[0,0]", "got 48 and 0"),
        ("simmim-swin-tiny-digits", "backbone_config.depths=[]", "need a number for each stage"),
        ("simmim-swin-tiny-digits", "backbone_config.window_size=0", "window_size of a Swin must be at least 1"),
        ("simmim-swin-tiny-digits", "backbone_config.embed_dim=0", "got 0 and 3"),
        ("simsiam-digits", "backbone_config.depths=[]", "look at depths in backbone_config"),
        ("simsiam-digits", "backbone_config.hidden_act=a", "look at hidden_act in backbone_config"),
        ("simsiam-digits", "backbone_config.embedding_size=0", "cannot be a backbone"),
        ("maskfeat-vit-tiny-digits", "target_options.num_bins=0", "target_options.num_bins must be a whole number of"),
        ("maskfeat-vit-tiny-digits", "target_options.cell_size=null", "target_options.cell_size must be .* got None"),
        ("maskfeat-vit-tiny-digits", "target_options.gaussian_window=-1", "gaussian_window must be .* at least 0"),
        ("mae-vit-tiny-digits", "target_type=clip,target_options={image_std: [0]}", "each item a number above 0"),
    ],
)
def test_overrides_that_cannot_be(recipe, overrides, message):
    with pytest.raises(ValueError, match=message):
        AutoModelForPreTraining.from_config(load_recipe(recipe).build_config(overrides))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: {path}", "a recipe cannot extend itself; got .*mine.yaml -> .*mine.yaml"),
        ("extends: {other}", "a recipe cannot extend itself; got .*mine.yaml -> .*other.yaml -> .*mine.yaml"),
        ("model: {model_type: mae, model_type: beit}", "is not YAML: found 'model_type' more than once"),
        ("model: !!timestamp soon", "is not YAML"),
        ("extends: 3", "the section 'extends' .* got 3"),
        ("model:", "the section 'model' .* got None"),
        ("model: [mae]", r"the section 'model' .* got \['mae'\]"),
        ("model: {model_type: [mae]}", r"the model_type \['mae'\]"),
        ("model: {model_type: null}", "the model_type None"),
        ("model: {model_type: mae, 3: 4}", "what MAEConfig does not have: 3"),
        ("model: {model_type: mae, backbone_config: [1]}", "backbone_config must be a mapping"),
        ("model: {model_type: mae, backbone_config: {3: 4}}", "does not have: 'backbone_config.3'"),
        ("extends: mae-vit-tiny-digits\ntraining: {3: 4}", "sets 3, which is no training argument"),
        ("extends: mae-vit-tiny-digits\ntraining: {seed: null}", "--seed must be a whole number .* got None"),
        ("extends: mae-vit-tiny-digits\ntraining: {seed: [1]}", r"--seed must be a whole number .* got \[1\]"),
        ("extends: mae-vit-tiny-digits\ntraining: {learning_rate: .inf}", "--learning_rate must be .* got inf"),
        ("extends: mae-vit-tiny-digits\ntraining: {streaming: 3}", "--streaming must be True or False, got 3"),
        (
            "extends: mae-vit-tiny-digits\ntraining: {optim: adam}",
            "--optim must be 'adamw', 'sgd' or 'lars', got 'adam'",
        ),
        ("extends: mae-vit-tiny-digits\ntraining: {lr_scheduler_type: a}", "--lr_scheduler_type must be 'linear', "),
        ("extends: mae-vit-tiny-digits\ntraining: {lr_milestones: '3,a'}", "--lr_milestones must be epochs such as"),
        ("extends: mae-vit-tiny-digits\ntraining: {lr_milestones: .nan}", "--lr_milestones must be epochs such as"),
        ("extends: mae-vit-tiny-digits\ntraining: {checkpointing_steps: true}", "--checkpointing_steps must be a text"),
    ],
)
def test_recipes_that_cannot_be(text, message, tmp_path):
    path, other = tmp_path / "mine.yaml", tmp_path / "other.yaml"
    path.write_text(text.replace("{path}", str(path)).replace("{other}", str(other)))
    other.write_text(f"extends: {path}")
    with pytest.raises(ValueError, match=message):
        parse_arguments(["--recipe", str(path), "--output_dir", "out", "--dataset_name", "digits"])
        load_recipe(str(path)).build_config()


def test_infinite_numbers_of_views_and_evaluators():
    with pytest.raises(ValueError, match="brightness must be a number from 0 to .*, got inf"):
        build_views([{"size": 8, "color_jitter": {"p": 1, "brightness": math.inf}}])
    for temperature in (math.nan, math.inf):
        with pytest.raises(ValueError, match=f"temperature={temperature} must be a positive number"):
            build_evaluators([{"type": "knn", "temperature": temperature}])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config_overrides", "temperature=a"], "error: temperature must be a number above 0, got 'a'"),
        (["--config_overrides", "backbone_config.num_channels=a"], "error: .*'num_channels' expected int, got str"),
        (["--learning_rate", "-1"], "error: --learning_rate must be a number above 0, got -1.0"),
        (["--model_name_or_path", "{broken}"], "error: the model .* cannot be loaded: .*'hidden_size' expected int"),
        (["--model_name_or_path", "{nan}"], "error: the model .* cannot be loaded: temperature must be .* got nan"),
    ],
)
def test_the_example_says_it_in_one_line(arguments, message, tmp_path, monkeypatch):
    for name, values in {
        "broken": {"model_type": "vit", "hidden_size": "a"},
        "nan": {"model_type": "simclr", "temperature": math.nan},
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(values))
        arguments = [word.replace(f"{{{name}}}", str(tmp_path / name)) for word in arguments]
    arguments = ["--recipe", "simclr-digits", "--output_dir", str(tmp_path / "out"), *arguments]
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *arguments])
    with pytest.raises(SystemExit, match=message) as error:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "\n" not in str(error.value)


def test_matching_does_not_depend_on_the_precision():
    # Two keys so near each other that bfloat16 does not tell them apart.
    queries = torch.nn.functional.normalize(torch.randn(4, 32, 49), dim=1)
    keys = torch.nn.functional.normalize(queries + 1e-3 * torch.randn(4, 32, 49), dim=1)
    keys = torch.cat([keys, queries], dim=2)
    expected = (queries.double().transpose(1, 2) @ keys.double()).argmax(dim=2)
    with torch.autocast("cpu", torch.bfloat16):
        assert (match_positions(queries, keys) == expected).all()
        assert ((queries.transpose(1, 2) @ keys).argmax(dim=2) != expected).any()  # so the precision matters here


def test_clusters_do_not_depend_on_the_precision():
    features = torch.nn.functional.normalize(torch.randn(64, 32), dim=1)
    centroids = torch.cat([features + 1e-3 * torch.randn(64, 32), features])
    expected = (features.double() @ centroids.double().T).argmax(dim=1)
    memory = OnlineClusterMemory(len(centroids), 32, momentum=1.0)
    memory.start(64)
    memory.centroids.copy_(centroids)
    projection = torch.randn(32, 8)
    whitened = whiten(features, torch.zeros(32), projection)
    with torch.autocast("cpu", torch.bfloat16):
        assert (nearest_centroids(features, centroids) == expected).all()
        memory.update(torch.arange(64), features)
        assert torch.equal(whiten(features, torch.zeros(32), projection), whitened)
        assert ((features @ centroids.T).argmax(dim=1) != expected).any()
    assert (memory.labels == expected).float().mean() > 0.95  # normalised once more, which rounds


@pytest.mark.parametrize(
    "compute",
    [
        lambda a, b: nt_xent_loss(a, 0.1),
        lambda a, b: batch_contrast(a, b, 0.1),
        lambda a, b: queue_contrast(a, b, b.flip(0), 0.1),
        lambda a, b: instance_contrast(a, b, torch.arange(8), torch.arange(64).view(8, 8) % 8, 0.1)[0],
        lambda a, b: nearest_rows(a, b, 3)[0],
        lambda a, b: sinkhorn(prototype_scores(a, b), 0.05, 3),
        lambda a, b: cross_correlation(a, b),
        lambda a, b: cosine_loss(a, b),
        lambda a, b: fit_whitening(a, 4)[1].abs(),
        lambda a, b: target_loss(a, b),
    ],
)
def test_similarities_do_not_depend_on_the_precision(compute):
    first, second = torch.nn.functional.normalize(torch.randn(2, 8, 16), dim=2)
    expected = compute(first, second)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(compute(first, second), expected)
