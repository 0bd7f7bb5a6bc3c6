"""How a run is put together: a batch that fits, a part held out, weights and overrides."""

import json

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import ResNetConfig, ResNetModel

from ssl_hub.data.datasets import load_image_dataset
from ssl_hub.modeling_utils import SSLModel
from ssl_hub.training.arguments import build_arguments
from ssl_hub.training.pretraining import build_trainer, hold_out, run_pretraining
from ssl_hub.training.recipes import load_recipe

TINY = "backbone_config.hidden_size=16,backbone_config.num_hidden_layers=1,backbone_config.intermediate_size=16"


@pytest.fixture(autouse=True)
def own_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)


def arguments(output_dir, **values):
    return build_arguments(
        **{
            "recipe": "mae-vit-tiny-digits",
            "config_overrides": TINY,
            "train_split": "train[:96]",
            "eval_split": "test[:32]",
            "max_train_steps": 6,
            "warmup_steps": 0,
            "per_device_train_batch_size": 16,
            "logging_steps": 1,
            "checkpointing_steps": "2",
            "dataloader_num_workers": 0,
            "output_dir": str(output_dir),
        }
        | values
    )


def memory_for(monkeypatch, images, from_step=0):
    """Lets the loss of more images run out of memory."""
    forward, tried = SSLModel.forward, []

    def limited(self, pixel_values, *, mode="tensor", **inputs):
        if mode == "loss":
            tried.append(len(pixel_values))
            if len(pixel_values) > images and len(tried) > from_step:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, pixel_values, mode=mode, **inputs)

    monkeypatch.setattr(SSLModel, "forward", limited)
    return tried


def weights(folder):
    return load_file(folder / "checkpoint-6" / "model.safetensors")


def test_a_batch_that_does_not_fit_is_halved(tmp_path, monkeypatch, caplog):
    small = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    run_pretraining(arguments(tmp_path / "small", **small))
    tried = memory_for(monkeypatch, 4)
    trainer = run_pretraining(arguments(tmp_path / "found", auto_find_batch_size=True))
    assert tried[:3] == [16, 8, 4]
    assert "a batch of 16 images does not fit in memory: now 8, in 2 forward passes an optimizer step" in caplog.text
    assert trainer.global_batch_size == 16
    expected, found = weights(tmp_path / "small"), weights(tmp_path / "found")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    steps = [json.loads(line)["step"] for line in (tmp_path / "found/metrics.jsonl").read_text().splitlines()]
    assert steps.count(0) == 2  # the evaluation and its baselines, of the last try alone


def test_a_batch_that_stops_fitting_resumes_from_the_last_checkpoint(tmp_path, monkeypatch):
    tried = memory_for(monkeypatch, 8, from_step=3)
    run_pretraining(arguments(tmp_path, auto_find_batch_size=True))
    assert tried == [16] * 4 + [8] * 8  # steps 3 to 6 again
    assert weights(tmp_path)


def test_memory_for_no_image_and_a_batch_that_nobody_asked_to_halve(tmp_path, monkeypatch):
    memory_for(monkeypatch, 0)
    with pytest.raises(ValueError, match="not even one image fits in memory: choose a smaller model"):
        run_pretraining(arguments(tmp_path / "found", auto_find_batch_size=True))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        run_pretraining(arguments(tmp_path / "given"))


def test_a_part_is_held_out(tmp_path):
    trainer = build_trainer(*arguments(tmp_path, eval_split=None, train_val_split=0.25))
    assert (len(trainer.train_dataset), len(trainer.eval_dataset)) == (72, 24)
    images = [row["image"]["bytes"] for dataset in (trainer.train_dataset, trainer.eval_dataset) for row in dataset]
    assert len(images) == 96 and set(images) == {row["image"]["bytes"] for row in hold_out_whole(trainer)}
    assert trainer.eval_dataset["label"] == hold_out(hold_out_whole(trainer), 0.25, seed=0)[1]["label"]


def hold_out_whole(trainer):
    return load_image_dataset("digits", trainer.data_args.train_split)


def test_overrides_beside_a_plain_backbone(tmp_path):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(tmp_path)
    recipe = load_recipe("simclr-resnet18-cifar10")
    model = recipe.build_model("image_size=40,projection_hidden_size=24", str(tmp_path))
    assert (model.config.image_size, model.config.projection_hidden_size) == (40, 24)
    assert model.config.backbone_config.hidden_sizes == [8, 16]
    with pytest.raises(ValueError, match="--config_overrides change what is new in a model, and --model_name_or_path"):
        recipe.build_model("backbone_config.depths=[1, 2]", str(tmp_path))
    model.save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match="leave one of them out"):
        recipe.build_model("image_size=40", str(tmp_path / "ours"))
