"""The console command, and the call that does the same for a notebook."""

import json

import datasets
import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import AutoModel

import ssl_hub
from ssl_hub.commands import COMMANDS, main
from ssl_hub.data.datasets import load_image_dataset
from ssl_hub.data.processing import build_image_processor
from ssl_hub.hub.publishing import save_for_sharing
from ssl_hub.training.recipes import list_recipes, load_recipe
from ssl_hub.training.timing import TIMINGS

SHORT = {"max_train_steps": 2, "warmup_steps": 0, "logging_steps": 1, "per_device_train_batch_size": 32}


@pytest.fixture(autouse=True)
def own_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = load_recipe("mae-vit-tiny-digits").build_config()
    save_for_sharing(AutoModel.from_config(config), build_image_processor(16, (0.5,) * 3, (0.5,) * 3, 1.0), folder)
    return folder


def records(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMINGS} for line in lines]


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert not end.value.code and f"ssl-hub {command}" in shown
    if command == "finetune":
        assert all(f"\n{title}:\n" in shown for title in ("Model", "Augmentation", "Data", "Training"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pretrian"], "there is no command pretrian; did you mean pretrain?"),
        (["x"], "there is no command x; the commands are pretrain, "),
        (["recipes", "moco", "swin"], "no recipe has moco and swin"),
        (["recipes", "simclrr"], "no recipe has simclrr; near it: simclr"),
        (["knn", "--model_name_or_path", "no/such", "--dataset_name", "digits"], "there is no model folder no/such"),
    ],
)
def test_user_errors(words, message, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit) as end:
        main(words)
    assert str(end.value.code).startswith("error: ") and ("no/such" in words or message in str(end.value.code))


def test_recipes_are_found_by_words(capsys):
    main(["recipes"])
    everything = capsys.readouterr().out
    assert all(f"\n  {name} " in everything for name in list_recipes())
    assert max(map(len, everything.splitlines())) <= 110
    main(["recipes", "MoCo", "cifar10", "ResNet-18"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert [row[0] for row in rows] == ["recipe", "moco-resnet18-cifar10", "mocov3-resnet18-cifar10"]
    assert rows[1][1:] == ["MoCo", "ResNet-18", "32", "cifar10", "200", "epochs", "256"]
    main(["recipes", "simclr-resnet50-200e"])
    assert "\n      published: ImageNet-1k top-1 by MMSelfSup: 66.9 linear" in capsys.readouterr().out


def test_knn(model, tmp_path, capsys):
    some = {split: load_image_dataset("digits", split).select(range(40)) for split in ("train", "test")}
    datasets.DatasetDict(some).save_to_disk(tmp_path)
    main(["knn", "--model_name_or_path", str(model), "--dataset_name", str(tmp_path), "--k", "1", "5"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"kNN accuracy of {model} on 40 images, neighbours among 40"
    assert [line.split()[0] for line in lines[1:]] == ["k", "1", "5"]
    accuracies = [float(line.split()[2].removesuffix("%")) for line in lines[2:]]
    assert min(accuracies) > 20  # 10 by chance
    some["test"] = some["test"].remove_columns("label")
    datasets.DatasetDict(some).save_to_disk(tmp_path / "unlabelled")
    with pytest.raises(SystemExit, match="the split 'test' of .*unlabelled' has no labels: sort its images"):
        main(["knn", "--model_name_or_path", str(model), "--dataset_name", str(tmp_path / "unlabelled")])


class TestPretrain:
    def test_it_is_the_run_of_the_command(self, tmp_path):
        words = [word for name, value in SHORT.items() for word in (f"--{name}", str(value))]
        main(["pretrain", "--recipe", "mae-vit-tiny-digits", "--output_dir", str(tmp_path / "command"), *words])
        model = ssl_hub.pretrain("mae-vit-tiny-digits", output_dir=tmp_path / "call", **SHORT)
        assert records(tmp_path / "call") == records(tmp_path / "command")
        assert (tmp_path / "call/recipe.yaml").read_text() == (tmp_path / "command/recipe.yaml").read_text()
        saved = AutoModel.from_pretrained(tmp_path / "command").state_dict()
        assert not model.training
        assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items())

    def test_of_a_dataset_in_memory(self, tmp_path):
        splits = {split: load_image_dataset("digits", split).select(range(64)) for split in ("train", "test")}
        ssl_hub.pretrain("mae-vit-base-300e", datasets.DatasetDict(splits), output_dir=tmp_path, **TINY, **SHORT)
        assert "knn_accuracy" in records(tmp_path)[0]
        assert "in memory" not in (tmp_path / "README.md").read_text() + (tmp_path / "recipe.yaml").read_text()

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"num_epochs": 3}, "there is no argument 'num_epochs'; near it: num_train_epochs"),
            ({"recipe_length": (1, 1)}, "there is no argument 'recipe_length'"),
            ({"max_train_steps": 0}, "--max_train_steps must be"),
            ({"dataset": "digits", "train_dir": "images"}, "give either --dataset_name"),
        ],
    )
    def test_user_errors(self, tmp_path, values, message):
        with pytest.raises(ValueError, match=message):
            ssl_hub.pretrain("mae-vit-tiny-digits", output_dir=tmp_path, **values)


TINY = {
    "config_overrides": (
        "image_size=16,backbone_config.patch_size=4,backbone_config.hidden_size=16,backbone_config.num_hidden_layers=1,"
        "backbone_config.num_attention_heads=2,backbone_config.intermediate_size=16,decoder_hidden_size=16,"
        "decoder_num_hidden_layers=1,decoder_num_attention_heads=2,decoder_intermediate_size=16"
    ),
    "mixed_precision": "no",
    "checkpointing_steps": "epoch",
    "dataloader_num_workers": 0,
}
