"""Training classifiers with transformers' Trainer, by recipes, with several processes, and resumed."""

import json
import os
import random
import runpy
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from processes import run_processes
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageClassification, EvalPrediction, ResNetConfig, ViTConfig

from ssl_hub.classification.arguments import AugmentationArguments, list_protocols, load_protocol, parse_arguments
from ssl_hub.classification.linear_probe import probe_features
from ssl_hub.classification.trainer import _accuracies, _ranks, build_trainer, build_transform, run_trainer
from ssl_hub.data.processing import build_image_processor
from ssl_hub.training.recipes import list_recipes

EXAMPLES = Path(__file__).parents[2] / "examples"
VIT = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
RESNET = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 16, 24], "embedding_size": 8, "layer_type": "basic"}
FINETUNE = [
    "--pooling",
    "mean",
    "--classifier_norm",
    "layernorm",
    "--layer_decay",
    "0.75",
    "--drop_path_rate",
    "0.1",
    "--mixup",
    "0.8",
    "--cutmix",
    "1",
    "--auto_augment",
    "rand-m9-mstd0.5-inc1",
    "--random_erasing",
    "0.25",
    "--label_smoothing_factor",
    "0.1",
    "--weight_decay",
    "0.05",
]
QUIET = ["--disable_tqdm", "True", "--report_to", "none", "--use_cpu", "True", "--dataloader_pin_memory", "False"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    AutoModel.from_config(ViTConfig(**VIT, intermediate_size=32)).save_pretrained(folder / "vit")
    AutoModel.from_config(ResNetConfig(**RESNET)).save_pretrained(folder / "resnet")
    for name in ("vit", "resnet"):
        build_image_processor(16, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)).save_pretrained(folder / name)
    return folder


@pytest.fixture(autouse=True)
def reset():
    AcceleratorState._reset_state(reset_partial_state=True)


def arguments(model, output_dir, *more):
    given = ["--model_name_or_path", str(model), "--output_dir", str(output_dir), *QUIET]
    # 143 training images
    data = ["--dataset_name", "digits", "--eval_split", "test", "--train_fraction", "0.1", "--image_size", "16"]
    return [*given, *data, "--per_device_train_batch_size", "32", "--per_device_eval_batch_size", "128", *more]


def train(model, output_dir, *more, freeze_backbone=False):
    trainer = build_trainer(parse_arguments(arguments(model, output_dir, *more)), freeze_backbone)
    return trainer, run_trainer(trainer)


def test_finetuning_learns_and_saves(models, tmp_path, capsys):
    options = ["--base_learning_rate", "0.08", "--num_train_epochs", "15", "--crop_scale_min", "0.6", "--hflip", "0"]
    best = [
        "--eval_strategy",
        "epoch",
        "--save_strategy",
        "best",
        "--load_best_model_at_end",
        "--metric_for_best_model",
        "accuracy",
    ]
    trainer, metrics = train(models / "resnet", tmp_path / "out", *options, *best)
    assert trainer.args.learning_rate == 0.08 * 32 / 256
    assert metrics["eval_accuracy"] == trainer.state.best_metric
    assert metrics["eval_accuracy"] > 0.2  # 0.1 by chance
    assert json.loads((tmp_path / "out" / "all_results.json").read_text())["eval_accuracy"] == metrics["eval_accuracy"]
    assert f"accuracy {metrics['eval_accuracy']:.2%}" in capsys.readouterr().out
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    state = loaded.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in trainer.model.state_dict().items())
    assert loaded.config.id2label[3] == "3" and (tmp_path / "out" / "preprocessor_config.json").exists()


@pytest.mark.parametrize(
    ("model", "options", "frozen"),
    [
        ("vit", [*FINETUNE, "--learning_rate", "0.001"], False),
        ("resnet", ["--optimizer", "lars", "--classifier_norm", "batchnorm", "--learning_rate", "1"], True),
    ],
)
def test_a_killed_run_that_is_resumed_ends_alike(models, tmp_path, model, options, frozen):
    """In mid-epoch, with everything that is drawn at random: fine-tuning, and a linear evaluation."""
    model = models / model
    options = [*options, "--max_steps", "6", "--save_steps", "2", "--save_strategy", "steps"]
    whole, _ = train(model, tmp_path / "whole", *options, freeze_backbone=frozen)

    trainer = build_trainer(parse_arguments(arguments(model, tmp_path / "killed", *options)), frozen)
    step = trainer.training_step

    def training_step(*args, **kwargs):
        if trainer.state.global_step == 3:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    trainer.training_step = training_step
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    np.random.seed(7), random.seed(7), torch.manual_seed(7)
    latest = ["--resume_from_checkpoint", "latest"]
    resumed, metrics = train(model, tmp_path / "killed", *options, *latest, freeze_backbone=frozen)
    assert resumed.state.global_step == 6
    assert metrics["eval_accuracy"] * 360 == pytest.approx(round(metrics["eval_accuracy"] * 360))  # of all test images
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("model", "recipe", "more"),
    [
        ("resnet", "linear-resnet50-sgd-100e", ""),
        ("resnet", "linear-resnet50-lars-90e", ""),
        ("vit", "linear-vit-lars-90e", "--fp16 False --dataloader_drop_last False"),
        ("resnet", "linear-resnet50-stages-90e", "--classifier_stage_pooling adaptive --classifier_stages 1 4"),
    ],
)
def test_linear_evaluations_as_published(models, tmp_path, model, recipe, more):
    """The backbone stays as it was, and the classifier becomes what the protocol asks for."""
    more = f"--recipe {recipe} --num_train_epochs 1 --dataloader_num_workers 0 {more}".split()
    trainer, metrics = train(models / model, tmp_path / "out", *more, freeze_backbone=True)
    before = AutoModel.from_pretrained(models / model).state_dict()
    for name, tensor in trainer.model.backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert trainer.model.classifier_norm.affine is False if "vit" in recipe else "accuracy"
    stages = [name for name in metrics if name.startswith("eval_accuracy")]
    assert stages == (["eval_accuracy_stage1", "eval_accuracy_stage4"] if "stages" in recipe else ["eval_accuracy"])
    rates = [line["learning_rate"] for line in trainer.state.log_history if "learning_rate" in line]
    expected = load_protocol(recipe)["base_learning_rate"] * 32 / 256
    assert trainer.args.learning_rate == pytest.approx(expected) and all(rate <= expected for rate in rates)


def test_optimizers_of_transformers(models, tmp_path):
    options = ["--learning_rate", "0.1", "--weight_decay", "0.2", "--optim", "adafactor"]
    trainer = build_trainer(parse_arguments(arguments(models / "vit", tmp_path, *options)), False)
    optimizer = trainer.create_optimizer()
    assert type(optimizer).__name__ == "Adafactor"
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    of = {name: decays[id(parameter)] for name, parameter in trainer.model.named_parameters()}
    assert of["classifier.weight"] == 0.2 and of["classifier.bias"] == of["backbone.embeddings.cls_token"] == 0.0


def test_milestones_are_epochs(models, tmp_path):
    options = [
        "--learning_rate",
        "1",
        "--optimizer",
        "sgd",
        "--lr_milestones",
        "1",
        "2",
        "--lr_milestone_factor",
        "0.5",
    ]
    trainer = build_trainer(parse_arguments(arguments(models / "vit", tmp_path, *options)), True)
    trainer.create_optimizer_and_scheduler(15)
    rates = []
    for _ in range(15):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.optimizer.step(), trainer.lr_scheduler.step()
    # 143 images make 4.5 batches an epoch
    assert [rates.index(0.5), rates.index(0.25)] == [4, 9]


def test_augmentation_is_drawn_from_seed_epoch_and_index(models, tmp_path):
    args = parse_arguments(arguments(models / "vit", tmp_path, *FINETUNE, "--learning_rate", "1"))
    images = build_trainer(args, False).train_dataset
    first = images[5]["pixel_values"]
    state = random.getstate(), torch.get_rng_state()
    images[6]
    assert random.getstate() == state[0] and torch.equal(torch.get_rng_state(), state[1])
    assert torch.equal(images[5]["pixel_values"], first)
    images.set_epoch(1)
    assert not torch.equal(images[5]["pixel_values"], first)
    for index in range(len(images)):  # every operation of RandAugment comes up
        images[index]


def test_the_strongest_posterize_leaves_a_bit(models, tmp_path):
    options = ["--auto_augment", "rand-m10-n14-inc1", "--learning_rate", "1"]
    images = build_trainer(parse_arguments(arguments(models / "vit", tmp_path, *options)), False).train_dataset
    assert all(images[index]["pixel_values"].isfinite().all() for index in range(30))


def test_lighting_moves_all_pixels_alike():
    augmentation = AugmentationArguments(crop_scale_min=1.0, hflip=0.0, lighting=0.1)
    image = Image.new("RGB", (16, 16), (100, 120, 140))
    plain = torch.tensor([100, 120, 140]) / 255
    transform = build_transform(augmentation, 16, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    moved = torch.stack([transform(image) for _ in range(400)])
    assert torch.equal(moved, moved[:, :, :1, :1].expand_as(moved))
    noise = (moved[:, :, 0, 0] - plain) * 255
    # The eigenvalues, times 0.1, are the deviations along the components.
    deviations = torch.linalg.eigvalsh(noise.T.cov()).sqrt().flip(0)
    torch.testing.assert_close(deviations, torch.tensor([5.54625, 0.4794, 0.11475]), rtol=0.15, atol=0)


def test_ranks_and_accuracies():
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [torch.nan] * 3, [1.0, 0.0, 0.0]])
    labels = torch.tensor([0, 1, 2, 0, -100])
    ranks = _ranks(logits, labels)
    assert ranks.tolist()[:4] == [0, 1, 2, 2]  # neither equal scores nor NaN are right
    assert _accuracies(EvalPrediction(ranks.numpy(), labels.numpy())) == {"accuracy": 0.25, "top5_accuracy": 1.0}
    stages = _ranks(torch.stack([logits, -logits], dim=1), labels)
    assert _accuracies(EvalPrediction(stages.numpy(), labels.numpy()), [2, 3])["accuracy_stage3"] == 0.0


@pytest.mark.parametrize("name", list_protocols())
def test_every_recipe_is_made_of_arguments(models, tmp_path, name):
    """One that a machine without a GPU refuses is one in fp16."""
    assert name not in list_recipes()
    given = ["--recipe", name, "--fp16", "False"]
    model_args, _, _, args = parse_arguments(arguments(models / "vit", tmp_path, *given))
    protocol = load_protocol(name)
    assert args.base_learning_rate == float(protocol["base_learning_rate"]) and args.learning_rate is None
    assert model_args.classifier_norm == protocol.get("classifier_norm")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe", "finetune-vit-bas-100e", "--learning_rate", "1"], "near it: finetune-vit-base-100e"),
        ([], "give either --learning_rate or --base_learning_rate"),
        (["--learning_rate", "1", "--layer_decay", "2"], "--layer_decay must be"),
        (["--learning_rate", "1", "--mixup", "1", "--per_device_train_batch_size", "31"], "must be an even number"),
        (
            ["--learning_rate", "1", "--mixup", "1", "--per_device_train_batch_size", "144"],
            "fewer than the 144 of a batch",
        ),
        (["--learning_rate", "1", "--auto_augment", "none"], "timm does not know the augmentation 'none'"),
        (["--learning_rate", "1", "--auto_augment", "rand-zz1"], "timm does not know the augmentation 'rand-zz1'"),
        (["--learning_rate", "1", "--classifier_stages", "1"], "'vit' has no stages"),
        (["--learning_rate", "1", "--model_name_or_path", "./nowhere"], "nowhere"),
        (["--learning_rate", "1", "--eval_split", "dev"], "no split 'dev'"),
        (
            ["--learning_rate", "1e30", "--optimizer", "sgd", "--max_steps", "3"],
            "the loss is (nan|inf) by step 3: make the learning rate smaller",
        ),
    ],
)
def test_errors_are_a_sentence(models, tmp_path, monkeypatch, options, message):
    monkeypatch.setattr(sys, "argv", ["run_finetune.py", *arguments(models / "vit", tmp_path, *options)])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SystemExit, match=message):
        runpy.run_path(str(EXAMPLES / "run_finetune.py"), run_name="__main__")


def test_a_recipe_with_a_misspelt_argument(models, tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: finetune-vit-base-100e\nmixap: 1\n")
    with pytest.raises(ValueError, match="sets 'mixap', which is no argument; near it: mixup"):
        parse_arguments(arguments(models / "vit", tmp_path, "--recipe", str(tmp_path / "mine.yaml")))


def train_and_probe(models, output_dir, batch_size):
    """Fine-tuning, linear evaluation with augmentation, and the sweep of probes."""
    given = ["--max_steps", "4", "--optimizer", "sgd", "--save_strategy", "no", "--dataloader_drop_last", "True"]
    given += ["--per_device_train_batch_size", batch_size, "--classifier_norm", "batchnorm"]
    given += ["--auto_augment", "rand-m9-mstd0.5-inc1", "--random_erasing", "0.25", "--label_smoothing_factor", "0.1"]
    accuracies = []
    for name, rate, frozen in (("vit", "0.02", False), ("resnet", "1", True)):
        options = [*given, "--learning_rate", rate]
        trainer, metrics = train(models / name, output_dir / name, *options, freeze_backbone=frozen)
        accuracies.append(metrics["eval_accuracy"])
    # The features that the probes learn from are the same whatever the processes that extract them.
    args = arguments(models / "vit", output_dir / "probed", "--learning_rate", "1", "--num_train_epochs", "20")
    found = probe_features(parse_arguments(args), [0.01, 0.1, 1.0], held_out=0.2)
    if trainer.is_world_process_zero():
        (output_dir / "found.json").write_text(json.dumps([*accuracies, found.test_accuracy]))


def train_and_probe_quietly(models, output_dir, batch_size):
    with (output_dir / f"printed-{os.environ['RANK']}.txt").open("w") as file, redirect_stdout(file):
        train_and_probe(models, output_dir, batch_size)


def test_two_processes_are_one_with_the_whole_batch(models, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    train_and_probe(models, tmp_path / "one", "32")
    run_processes(train_and_probe_quietly, 2, models, tmp_path / "two", "16")
    printed = [(tmp_path / "two" / f"printed-{rank}.txt").read_text() for rank in range(2)]
    assert "".join(printed).count("linear probe: ") == 1
    for model in ("vit", "resnet"):
        one, two = (load_file(tmp_path / name / model / "model.safetensors") for name in ("one", "two"))
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-5)
    found = [json.loads((tmp_path / name / "found.json").read_text()) for name in ("one", "two")]
    assert found[0] == pytest.approx(found[1], abs=2 / 360)
