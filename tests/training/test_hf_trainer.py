"""transformers' Trainer pretrains every kind of algorithm as SSLTrainer does."""

import math

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import AutoModelForPreTraining, Trainer, TrainerCallback, TrainingArguments

from ssl_hub.data.datasets import load_image_dataset
from ssl_hub.training.arguments import PretrainingArguments
from ssl_hub.training.hf_trainer import EpochViews, SSLCallback, ViewCollator
from ssl_hub.training.optimization import build_optimizer
from ssl_hub.training.recipes import load_recipe
from ssl_hub.training.trainer import SSLTrainer

BATCH = {"per_device_train_batch_size": 16, "per_device_eval_batch_size": 32}


@pytest.fixture(autouse=True)
def one_state():
    AcceleratorState._reset_state(reset_partial_state=True)


def build_model(recipe):
    torch.manual_seed(0)
    model = AutoModelForPreTraining.from_config(recipe.build_config())
    model.begin_run(64)  # a memory begins with random rows
    return model


def build_trainer(recipe, folder, max_steps=6, **options):
    """A run like that of `pretrained`."""
    images, model = load_image_dataset("digits").select(range(64)), build_model(recipe)
    args = {
        "seed": 0,
        "max_steps": max_steps,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "dataloader_drop_last": True,
        "report_to": "none",
        "use_cpu": True,
    }
    args = TrainingArguments(output_dir=str(folder), **{**args, **BATCH, **options})
    views = EpochViews(images, recipe.views, model.config, args.seed)
    optimizer = build_optimizer(model, PretrainingArguments(output_dir=str(folder), learning_rate=1e-3), 16)
    return Trainer(
        model,
        args,
        train_dataset=views,
        eval_dataset=views,
        data_collator=ViewCollator(model, recipe.views),
        callbacks=[SSLCallback(views)],
        optimizers=(optimizer, None),
    )


def pretrained(recipe, folder):
    args = {"max_train_steps": 6, "learning_rate": 1e-3, "lr_scheduler_type": "constant", **BATCH}
    images, model = load_image_dataset("digits").select(range(64)), build_model(recipe)
    SSLTrainer(model, PretrainingArguments(output_dir=str(folder), **args), images, recipe.views, evaluation=[]).train()
    return model


@pytest.mark.parametrize(
    "name",
    ["byol-digits", "swav-digits", "mae-vit-tiny-digits", "cae-vit-tiny-digits", "deepcluster-digits", "npid-digits"],
)
def test_a_run_ends_with_the_weights_of_ours(name, tmp_path):
    recipe = load_recipe(name)
    trainer = build_trainer(recipe, tmp_path / "theirs")
    trainer.train()
    theirs, ours = trainer.model.state_dict(), pretrained(recipe, tmp_path / "ours").state_dict()
    assert all(torch.equal(theirs[key], tensor) for key, tensor in ours.items())
    assert math.isfinite(trainer.evaluate()["eval_loss"])
    assert all(torch.equal(theirs[key], tensor) for key, tensor in trainer.model.state_dict().items())


@pytest.mark.parametrize("name", ["mae-vit-tiny-digits", "deepcluster-digits", "npid-digits"])
def test_a_run_that_is_resumed_ends_alike(name, tmp_path):
    """A ViT's file has other names than the model; DeepCluster's clusters and NPID's memory are training state."""
    recipe = load_recipe(name)
    whole = build_trainer(recipe, tmp_path, save_steps=4)
    whole.train()
    resumed = build_trainer(recipe, tmp_path, save_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    state = resumed.model.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in whole.model.state_dict().items())


def test_an_epoch_that_was_prepared_is_not_resumed_in_its_middle(tmp_path):
    recipe = load_recipe("deepcluster-digits")
    build_trainer(recipe, tmp_path, max_steps=2, save_steps=2).train()
    with pytest.raises(ValueError, match="DeepClusterModel prepares every epoch, .* save_strategy='epoch'"):
        build_trainer(recipe, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_the_schedule_leaves_constant_learning_rates_alone(tmp_path):
    trainer = build_trainer(load_recipe("simsiam-digits"), tmp_path, lr_scheduler_type="linear")
    rates = []

    class Note(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
            rates.append({group["constant_lr"]: group["lr"] for group in optimizer.param_groups})

    trainer.add_callback(Note())
    trainer.train()
    assert {each[True] for each in rates} == {1e-3}
    assert [each[False] for each in rates] == pytest.approx([1e-3 * (6 - step) / 6 for step in range(6)])


@pytest.mark.parametrize("option", [{"remove_unused_columns": True}, {"dataloader_drop_last": False}])
def test_arguments_that_pretraining_needs(option, tmp_path):
    with pytest.raises(ValueError, match=f"TrainingArguments need {next(iter(option))}="):
        build_trainer(load_recipe("byol-digits"), tmp_path, **option)


def test_views_that_do_not_fit_the_model(tmp_path):
    recipe = load_recipe("byol-digits")
    with pytest.raises(ValueError, match="does not take bool_masked_pos"):
        ViewCollator(build_model(recipe), [{"count": 2, "size": 16, "mask": {"kind": "random", "ratio": 0.5}}])
