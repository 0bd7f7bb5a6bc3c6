"""What the trainer does for NPID, whose memory has the size of the dataset, and for the pretext tasks."""

import json

import datasets
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForPreTraining

from ssl_hub.data.datasets import load_image_dataset
from ssl_hub.training.arguments import PretrainingArguments
from ssl_hub.training.recipes import load_recipe
from ssl_hub.training.trainer import SSLTrainer


def build_trainer(name, output_dir, dataset=None, model=None, **args):
    recipe = load_recipe(f"{name}-digits")
    torch.manual_seed(0)
    args = {
        "per_device_train_batch_size": 16,
        "learning_rate": 1e-3,
        "max_train_steps": 6,
        "logging_steps": 1,
        "checkpointing_steps": "3",
    } | args
    return SSLTrainer(
        model or AutoModelForPreTraining.from_config(recipe.build_config()),
        PretrainingArguments(output_dir=str(output_dir), **args),
        dataset or load_image_dataset("digits").select(range(64)),
        recipe.views,
    )


@pytest.mark.parametrize("name", ["npid", "relativeloc", "rotationpred"])
def test_the_accuracy_is_logged(name, tmp_path):
    build_trainer(name, tmp_path, max_train_steps=1).train()
    records = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [0 <= record["loss_accuracy"] <= 1 for record in records if "loss" in record] == [True]


def test_another_dataset_is_no_dataset_to_resume_with(tmp_path):
    build_trainer("npid", tmp_path / "a").train()
    smaller = load_image_dataset("digits").select(range(48))
    trainer = build_trainer("npid", tmp_path / "a", smaller, resume_from_checkpoint="latest", max_train_steps=8)
    with pytest.raises(
        ValueError,
        match="written with images 64 and this run has 48: .*--model_name_or_path",
    ):
        trainer.train()
    model = AutoModelForPreTraining.from_pretrained(tmp_path / "a" / "checkpoint-6")
    assert len(model.memory.features) == 64
    build_trainer("npid", tmp_path / "b", smaller, model).train()
    assert len(load_file(tmp_path / "b" / "checkpoint-6" / "model.safetensors")["memory.features"]) == 48
    assert "memory.features" not in load_file(tmp_path / "b" / "model.safetensors")  # what is shared


def test_npid_refuses_a_stream(tmp_path):
    with pytest.raises(ValueError, match="load it without streaming"):
        build_trainer("npid", tmp_path, load_image_dataset("digits", streaming=True))


def test_an_unreadable_image_changes_nothing_for_the_others(tmp_path):
    """Its place in the batch is taken by the next image, which is there twice then; its own row is not touched."""
    rows = load_image_dataset("digits").select(range(32)).to_list()
    rows[5]["image"] = {"bytes": b"no image", "path": None}
    features = datasets.Features(image=datasets.Image(decode=False), label=datasets.Value("int64"))
    damaged = datasets.Dataset.from_list(rows, features=features)
    trainer = build_trainer("npid", tmp_path, damaged, max_train_steps=2)
    before = trainer.model.memory.features.clone()
    trainer.train()
    moved = (trainer.model.memory.features != before).any(dim=1)
    assert (~moved).nonzero().flatten().tolist() == [5]
