"""What the trainer does for algorithms that cluster the images of a dataset."""

import json

import datasets
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import AutoModelForPreTraining

from ssl_hub.data.datasets import load_image_dataset
from ssl_hub.training.arguments import PretrainingArguments
from ssl_hub.training.recipes import list_recipes, load_recipe
from ssl_hub.training.timing import TIMINGS
from ssl_hub.training.trainer import SSLTrainer

NAMES = ("deepcluster", "odc")
# The settings of MMSelfSup: learning rate, epochs, schedule
PUBLISHED = {
    "deepcluster-resnet50-200e": (0.1, 200, "constant"),
    "deepcluster-sobel-resnet50-200e": (0.1, 200, "constant"),
    "odc-resnet50-440e": (0.06, 440, ("400", 0.4)),
}


def build_trainer(name, output_dir, dataset=None, model=None, **args):
    AcceleratorState._reset_state(reset_partial_state=True)
    recipe = load_recipe(f"{name}-digits")
    torch.manual_seed(0)
    args = {
        "per_device_train_batch_size": 16,
        "learning_rate": 1e-3,
        "max_train_steps": 10,
        "logging_steps": 1,
        "checkpointing_steps": "2",
        "save_total_limit": None,
    } | args
    overrides = "num_clusters=6" + (",min_cluster_size=4,centroid_interval=3" if name == "odc" else "")
    return SSLTrainer(
        model or AutoModelForPreTraining.from_config(recipe.build_config(overrides)),
        PretrainingArguments(output_dir=str(output_dir), **args),
        load_image_dataset("digits").select(range(64)) if dataset is None else dataset,
        recipe.views,
    )


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("step", [4, 6])
def test_resumed_with_its_clusters_it_ends_the_same(name, step, tmp_path):
    """After an epoch of four steps, whose clusters are to be found anew, and in the middle of one."""
    build_trainer(name, tmp_path / "whole").train()
    checkpoint = tmp_path / "whole" / f"checkpoint-{step}"
    build_trainer(name, tmp_path / "resumed", resume_from_checkpoint=str(checkpoint)).train()
    whole, resumed = (load_file(tmp_path / run / "checkpoint-10" / "model.safetensors") for run in ("whole", "resumed"))
    assert whole.keys() == resumed.keys() and "memory.labels" in whole
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    lines = [[line for line in records(tmp_path / run) if line["step"] > step] for run in ("whole", "resumed")]
    for line in (*lines[0], *lines[1]):
        for name in TIMINGS:
            line.pop(name, None)
    assert lines[0] == lines[1]


@pytest.mark.parametrize("name", NAMES)
def test_clusters_are_logged(name, tmp_path):
    build_trainer(name, tmp_path).train()
    epochs = [line for line in records(tmp_path) if "clusters_used" in line]
    assert [line["step"] for line in epochs] == [0, 4, 8]
    assert all(line["clusters_used"] == 6 and 0 < line["nmi_to_classes"] < 1 for line in epochs)
    assert [line["step"] for line in epochs if "nmi_to_last_clusters" in line] == [4, 8] * (name == "deepcluster")
    steps = [line for line in records(tmp_path) if "loss" in line]
    assert len(steps) == 10 and all(line["loss_clusters_used"] == 6 for line in steps)
    assert all(("loss_change_ratio" in line) == (name == "odc") for line in steps)


def test_the_optimizer_forgets_what_it_knew_of_the_classifier(tmp_path):
    trainer = build_trainer("deepcluster", tmp_path)
    trainer.train()
    steps = {name: int(trainer.optimizer.state[p]["step"]) for name, p in trainer.model.named_parameters()}
    assert {steps.pop(f"head.classifier.{name}") for name in ("weight", "bias")} == {2}
    assert set(steps.values()) == {10}


def test_the_classifier_has_no_momentum(tmp_path):
    trainer = build_trainer("deepcluster", tmp_path, optim="sgd", weight_decay=0.0)
    groups = {id(p): group for group in trainer.optimizer.param_groups for p in group["params"]}
    momenta = {name: groups[id(p)]["momentum"] for name, p in trainer.model.named_parameters()}
    assert {momenta.pop(f"head.classifier.{name}") for name in ("weight", "bias")} == {0.0}
    assert set(momenta.values()) == {0.9}


@pytest.mark.parametrize("name", NAMES)
def test_another_dataset(name, tmp_path):
    """Its clusters cannot be resumed with, but the weights are a start."""
    build_trainer(name, tmp_path / "first", max_train_steps=4).train()
    assert not {"memory.labels", "memory.features"} & set(load_file(tmp_path / "first" / "model.safetensors"))
    other = load_image_dataset("digits").select(range(80))
    trainer = build_trainer(
        name, tmp_path / "second", other, resume_from_checkpoint=str(tmp_path / "first/checkpoint-4")
    )
    with pytest.raises(ValueError, match="written with images 64 and this run has 80: .*--model_name_or_path"):
        trainer.train()
    for number, folder in enumerate(("first", "first/checkpoint-4")):
        model = AutoModelForPreTraining.from_pretrained(tmp_path / folder)
        build_trainer(name, tmp_path / str(number), other, model, max_train_steps=2).train()
        state = load_file(tmp_path / str(number) / "checkpoint-2" / "model.safetensors")
        assert len(state["memory.labels"]) == 80 and state["memory.labels"].min() >= 0


@pytest.mark.parametrize("name", NAMES)
def test_a_stream(name, tmp_path):
    stream = load_image_dataset("digits").select(range(64)).to_iterable_dataset()
    with pytest.raises(ValueError, match="load the dataset without streaming, or take an algorithm .* such as SwAV"):
        build_trainer(name, tmp_path, stream)


@pytest.mark.parametrize("name", NAMES)
def test_unreadable_images_have_no_cluster(name, tmp_path):
    rows = load_image_dataset("digits").select(range(64)).cast_column("image", datasets.Image(decode=False)).to_list()
    for row in (5, 40):
        rows[row]["image"] = {"bytes": b"not an image", "path": f"broken{row}.png"}
    dataset = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image(decode=False))
    build_trainer(name, tmp_path, dataset).train()
    labels = load_file(tmp_path / "checkpoint-10" / "model.safetensors")["memory.labels"]
    assert (labels < 0).nonzero().flatten().tolist() == [5, 40]


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_recipes(name):
    recipe = load_recipe(name)
    config, args = recipe.build_config(), recipe.training
    learning_rate, epochs, schedule = PUBLISHED[name]
    assert args["base_learning_rate"] * 8 * 64 / 256 == pytest.approx(learning_rate)
    assert (args["num_train_epochs"], args["per_device_train_batch_size"]) == (epochs, 64)
    assert (args["optim"], args["sgd_momentum"], args["weight_decay"]) == ("sgd", 0.9, 1e-5)
    assert args["decay_norm_and_bias"] and "warmup_epochs" not in args
    if schedule == "constant":
        assert args["lr_scheduler_type"] == "constant"
        assert (config.pca_size, config.sobel, config.class_weight_power) == (256, "sobel" in name, 0.0)
    else:
        assert (args["lr_milestones"], args["lr_milestone_factor"]) == schedule
        assert (config.projection_hidden_size, config.projection_size, config.memory_momentum) == (512, 256, 0.5)
        assert (config.min_cluster_size, config.centroid_interval, config.class_weight_power) == (20, 10, 0.5)
    assert (config.num_clusters, config.kmeans_iterations, config.weighted_mean) == (10000, 20, True)
    backbone = config.backbone_config
    assert (backbone.layer_type, list(backbone.depths), config.image_size) == ("bottleneck", [3, 4, 6, 3], 224)
    assert (backbone.num_channels, config.num_channels) == (2 if "sobel" in name else 3, 3)
    jitter = {"p": 1.0, "brightness": 0.4, "contrast": 0.4, "saturation": 1.0, "hue": 0.5}
    assert recipe.views == [
        {
            **{"scale": [0.08, 1.0], "interpolation": "bilinear", "hflip": 0.5, "rotation": 2},
            **{"color_jitter": jitter, "grayscale": 0.2},
        }
    ]


def test_both_have_small_recipes():
    assert {f"{name}-{data}" for name in NAMES for data in ("digits", "resnet18-cifar10")} <= set(list_recipes())
