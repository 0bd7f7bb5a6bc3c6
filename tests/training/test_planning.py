"""What a run on a folder of images is made of when nobody says."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from loopback_hub import client_environment, loopback_hub
from PIL import Image
from transformers import ResNetConfig, ResNetModel

import ssl_hub
from ssl_hub.commands import main
from ssl_hub.training import planning, rehearsal
from ssl_hub.training.planning import choose_loading, plan_pretraining
from ssl_hub.training.recipes import load_recipe, read_yaml
from ssl_hub.training.rehearsal import Timing


@pytest.fixture(autouse=True)
def own_accelerator(monkeypatch):
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(rehearsal, "_TIMED_SECONDS", 0)


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "tiny-small.yaml"
    file.write_text(
        "extends: simclr-resnet18-cifar10\n"
        "model:\n"
        "  image_size: 96\n"
        "  projection_hidden_size: 8\n"
        "  backbone_config: {model_type: resnet, layer_type: basic, depths: [1, 1], embedding_size: 4, hidden_sizes: [4, 8]}\n"
        "training: {per_device_train_batch_size: 16, num_train_epochs: 20, warmup_epochs: 5, dataloader_num_workers: 0}\n"
    )
    return str(file)


def write_images(folder, count, size=(40, 48), gray=False, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    for number in range(count):
        pixels = generator.integers(0, 256, (*size, 1 if gray else 3), dtype=np.uint8)
        Image.fromarray(np.repeat(pixels, 3, axis=2) if gray else pixels).save(folder / f"{number:03}.png")
    return folder


def said(capsys):
    """The lines, by what they are about."""
    lines = [line.split(None, 1) for line in capsys.readouterr().out.splitlines()]
    return {line[0]: line[1] for line in lines if len(line) == 2}


def test_choices_for_a_folder(tmp_path, recipe, capsys):
    folder = write_images(tmp_path / "birds", 60)
    (folder / "copy.png").write_bytes((folder / "000.png").read_bytes())
    (folder / "broken.png").write_bytes(b"no image")
    plan = plan_pretraining(str(folder), recipe=recipe, dataloader_num_workers=0)
    _, model_args, data_args, args = plan.arguments
    lines = said(capsys)
    assert lines["images"] == "62, no labels; short side 40 pixels; colour"
    assert lines["evaluation"] == "12 images are held out: there is no validation or test folder"
    assert lines["image"] == "size  64 pixels: 96 of the recipe would be more than the images have"
    assert lines["weights"].startswith("from scratch: no pretrained backbone is known")
    assert lines["batch"] == "8 images: 50 images are few for the 16 of the recipe"
    assert lines["metrics"].endswith("need no labels: in class folders, kNN and a linear probe would be added")
    assert lines["precision"] == "float32: the device is a CPU"
    assert lines["workers"] == "0 to load images: as you said"
    assert lines["cache"].startswith("memory: decoded, the images are 0.3 MiB of ")
    assert lines["length"] == "120 steps, 20.0 epochs: that of the recipe"
    assert lines["estimate"].startswith("about ") and "GiB of memory; " in lines["estimate"]
    assert (model_args.config_overrides, model_args.model_name_or_path) == ("image_size=64", None)
    assert (data_args.train_dir, data_args.eval_split) == (str(folder), None)
    assert (len(plan.train_dataset), len(plan.eval_dataset)) == (50, 12)
    assert (args.max_train_steps, args.warmup_steps, args.eval_steps, args.mixed_precision) == (120, 30, 24, "no")
    assert args.output_dir == "runs/birds-tiny-small" and args.auto_find_batch_size


def test_what_is_wrong_with_images(tmp_path, recipe, capsys):
    folder = write_images(tmp_path / "birds", 40, gray=True)
    (folder / "copy.png").write_bytes((folder / "000.png").read_bytes())
    (folder / "broken.png").write_bytes(b"no image")
    plan_pretraining(str(folder), recipe=recipe, dataloader_num_workers=0, max_train_steps=2)
    out = capsys.readouterr().out
    assert "40 pixels; gray\n" in out
    assert "warning     1: exact copies of other images, which count twice" in out
    assert f"warning     1 of 42 that were looked at: cannot be read and are skipped ({folder}/broken.png)" in out
    assert "length      2 steps, 0.5 epochs: as you said" in out


def test_labels_and_parts(tmp_path, recipe, capsys):
    for part, count in (("train", 20), ("val", 5)):
        for name in ("cat", "dog"):
            write_images(tmp_path / "pets" / part / name, count)
    plan = plan_pretraining(str(tmp_path / "pets"), recipe=recipe, dataloader_num_workers=0)
    _, _, data_args, args = plan.arguments
    lines = said(capsys)
    assert lines["images"] == "40 in 2 classes; short side 40 pixels; colour"
    assert lines["evaluation"] == "10 images of 'validation': they are beside the training images"
    assert (data_args.eval_split, data_args.train_val_split) == ("validation", 0.0)
    assert lines["metrics"].startswith("kNN and a linear probe beside chance and raw pixels; ")
    assert [each["type"] for each in read_yaml(args.evaluation)] == [
        *("label_free", "spectrum", "views", "knn", "linear_probe"),
    ]


def test_what_was_given_stays(tmp_path, recipe, capsys):
    folder = write_images(tmp_path / "birds", 40)
    given = {
        "config_overrides": "image_size=32,projection_size=8",
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2.0,
        "train_val_split": 0.5,
        "mixed_precision": "bf16",
        "warmup_steps": 1,
        "eval_steps": 3,
        "auto_find_batch_size": False,
        "output_dir": str(tmp_path / "out"),
    }
    _, model_args, data_args, args = plan_pretraining(
        str(folder), recipe=recipe, model_name_or_path="none", dataloader_num_workers=0, **given
    ).arguments
    values = vars(model_args) | vars(data_args) | vars(args)
    assert {name: values[name] for name in given} == given
    assert values["model_name_or_path"] is None
    out = capsys.readouterr().out
    assert out.count("as you said") == 9


def test_a_dry_run_writes_nothing(tmp_path, recipe, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "birds", 40)
    before = sorted(tmp_path.rglob("*"))
    main(["pretrain", "birds", "--recipe", recipe, "--dry_run"])
    assert capsys.readouterr().out.endswith("nothing was written: without --dry_run the run begins\n")
    main(["pretrain", "--train_dir", "birds", "--recipe", recipe, "--output_dir", "out", "--dry_run"])
    assert capsys.readouterr().out.startswith("estimate    about ")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_on_a_folder_and_its_resumption(tmp_path, recipe, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "birds", 40)
    words = ["pretrain", "birds", "--recipe", recipe, "--dataloader_num_workers", "0"]
    main([*words, "--max_train_steps", "4"])
    output = tmp_path / "runs" / "birds-tiny-small"
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "rankme" in line] == [0, 1, 2, 3, 4]
    assert "Recipe: `tiny-small" in (output / "README.md").read_text()
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(
        SystemExit, match=r"error: runs/birds-tiny-small already holds a run .*resume it by --resume_from"
    ):
        main(words)
    main([*words, "--max_train_steps", "6", "--resume_from_checkpoint", "latest"])
    out = capsys.readouterr().out
    assert "resuming    runs/birds-tiny-small: all as its recipe.yaml says" in out
    saved = load_recipe(str(output / "recipe.yaml"))
    assert (saved.training["max_train_steps"], saved.training["per_device_train_batch_size"]) == (6, 8)
    assert saved.build_config().image_size == 64


def test_the_call_for_a_notebook(tmp_path, recipe, capsys, monkeypatch):
    """A folder in place of a recipe is planned, as by the command."""
    monkeypatch.setattr(planning, "DEFAULT_RECIPE", recipe)
    folder = write_images(tmp_path / "birds", 40)
    options = {"max_train_steps": 1, "warmup_steps": 0, "dataloader_num_workers": 0}
    model = ssl_hub.pretrain(str(folder), output_dir=tmp_path / "out", **options)
    assert not model.training and model.config.image_size == 64
    assert said(capsys)["evaluation"].startswith("8 images are held out")
    with pytest.raises(ValueError, match="without a recipe pretrain takes the path of a folder of images"):
        ssl_hub.pretrain(output_dir=tmp_path / "out")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "neither an image folder nor parquet .*: it has no file at all"),
        ({f"{i}.txt": b"text" for i in range(3)}, r"it has 3 files \(.txt\)"),
        ({f"{i}.png": b"text" for i in range(40)}, "None of the 40 images .* can be read"),
        ("ten", "has 10 images to train on, and pretraining compares images"),
    ],
)
def test_folders_that_do_not_do(tmp_path, recipe, files, message):
    folder = tmp_path / "birds"
    folder.mkdir()
    if files == "ten":
        write_images(folder, 10)
    else:
        for name, content in files.items():
            (folder / name).write_bytes(content)
    with pytest.raises((ValueError, OSError), match=message):
        plan_pretraining(str(folder), recipe=recipe)


def test_few_images_start_from_a_pretrained_backbone(tmp_path):
    """The one that is named for the recipe's backbone, from the Hub."""
    config = ResNetConfig(embedding_size=64, hidden_sizes=[8, 8, 8, 16], depths=[2, 2, 2, 2], layer_type="basic")
    ResNetModel(config).save_pretrained(tmp_path / "resnet")
    script = f"""
import huggingface_hub
from ssl_hub.training import planning
from ssl_hub.training.recipes import load_recipe
planning._PRETRAINED = {{"me/resnet-18": {{"layer_type": "basic", "depths": [2, 2, 2, 2]}}}}
recipe = load_recipe("simclr-resnet18-cifar10")
recipe.model["backbone_config"] = {{"model_type": "resnet", "layer_type": "basic", "depths": [2, 2, 2, 2]}}
print(*planning.find_pretrained(recipe))
api = huggingface_hub.HfApi()
api.create_repo("me/resnet-18")
api.upload_folder(repo_id="me/resnet-18", folder_path={str(tmp_path / "resnet")!r})
print(*planning.find_pretrained(recipe))
"""
    with loopback_hub(tmp_path) as endpoint:
        environment = client_environment(endpoint, tmp_path / "home")
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
    missing, found = done.stdout.splitlines()
    assert missing.startswith("None me/resnet-18 cannot be had (")
    assert found.strip() == "me/resnet-18"


def test_a_length_that_fits():
    times = {"step_seconds": 2.0, "wait_share": 0.0, "epoch_seconds": 10.0, "evaluation_seconds": 20.0}
    timing = Timing(None, total_steps=1000, steps_per_epoch=10, warmup_steps=100, memory=2**30, device="cpu", **times)
    steps = timing.steps_in(1200, num_evaluations=6)
    assert steps == 360  # (1200 - 120) / 3
    assert timing.seconds(steps, 6) == 1200
    assert timing.steps_in(10, num_evaluations=6) == 6


@pytest.mark.parametrize(
    ("device", "waits", "epochs", "size", "chosen"),
    [
        ("cpu", True, 20, 2**30, ("memory", False)),
        ("cpu", True, 1, 2**30, ("no", False)),
        ("cpu", True, 20, 5 * 2**30, ("no", False)),
        ("cuda", False, 20, 2**30, ("memory", False)),
        ("cuda", True, 20, 2**30, ("device", False)),
        ("cuda", True, 20, 3 * 2**30, ("memory", True)),
        ("cuda", True, 20, 5 * 2**30, ("no", True)),
        ("cuda", True, 1, 2**30, ("no", True)),
    ],
)
def test_where_images_are_kept(device, waits, epochs, size, chosen):
    assert choose_loading(device, waits, epochs, size, free=16 * 2**30, free_on_device=8 * 2**30)[:2] == chosen


@pytest.mark.parametrize(
    ("given", "channels"),
    [
        ({}, 128),
        ({"config_overrides": "backbone_config.hidden_sizes=[32,64,128,256]"}, 256),
        ({"model_name_or_path": "pretrained"}, 512),
    ],
)
def test_a_new_resnet_is_narrow_on_a_cpu(tmp_path, given, channels):
    planner = planning._Planner(str(tmp_path), {"output_dir": str(tmp_path / "out"), **given})
    planner.device = torch.device("cpu")
    planner._choose_width()
    config = planner.recipe.build_config(planner.values.get("config_overrides"))
    assert config.backbone_config.hidden_sizes[-1] == channels
