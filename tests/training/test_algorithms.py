"""What the trainer does for every algorithm, and for those with several views, a teacher and a memory."""

import importlib
import logging

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForPreTraining

from ssl_hub import NPIDModel
from ssl_hub.data.datasets import load_image_dataset
from ssl_hub.evaluation import label_free
from ssl_hub.modules.memories import OnlineClusterMemory
from ssl_hub.modules.teachers import MomentumTeacher
from ssl_hub.registry import ALGORITHMS
from ssl_hub.training.arguments import PretrainingArguments
from ssl_hub.training.online_probe import OnlineProbe
from ssl_hub.training.recipes import list_recipes, load_recipe
from ssl_hub.training.trainer import SSLTrainer

# For 64 images.
OVERRIDES = {"densecl": "queue_size=64", "moco": "queue_size=64", "odc": "num_clusters=8"}


def build_trainer(name, output_dir, overrides=None, **args):
    recipe = load_recipe(next(each for each in list_recipes() if each.startswith(f"{name}-") and "digits" in each))
    torch.manual_seed(0)
    args = {
        "per_device_train_batch_size": 16,
        "learning_rate": 1e-3,
        "max_train_steps": 4,
        "logging_steps": 1,
        "checkpointing_steps": "2",
    } | args
    return SSLTrainer(
        AutoModelForPreTraining.from_config(recipe.build_config(overrides)),
        PretrainingArguments(output_dir=str(output_dir), **args),
        load_image_dataset("digits").select(range(64)),
        recipe.views,
        load_image_dataset("digits", "test").select(range(32)),
    )


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_resumed_in_mid_epoch_it_ends_the_same(name, tmp_path):
    """With teacher, queue or bank, whatever the algorithm has."""
    overrides = OVERRIDES.get(name)
    trainer = build_trainer(name, tmp_path, overrides, save_total_limit=None)
    assert trainer.steps_per_epoch == 4
    trainer.train()
    whole = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    checkpoint = str(tmp_path / "checkpoint-2")
    build_trainer(name, tmp_path, overrides, resume_from_checkpoint=checkpoint).train()
    resumed = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_a_step_reads_no_tensor_of_the_device(name, tmp_path, monkeypatch):
    """For a read the host waits. Tensors of the meta device hold nothing, so that reading one is an error."""
    autocast = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda device, **options: autocast("cpu", **options))  # it knows no meta
    optimizers = importlib.import_module("torch.optim.optimizer")
    monkeypatch.setattr(optimizers, "_get_fused_kernels_supported_devices", lambda: ["meta"])
    monkeypatch.setattr(Accelerator, "device", torch.device("meta"))
    monkeypatch.setattr(SSLTrainer, "_seed", lambda *args, **options: None)
    # ODC asks once a step whether a cluster is to be filled again: that is the algorithm.
    monkeypatch.setattr(OnlineClusterMemory, "rebuild_small_clusters", lambda self, min_size: None)
    monkeypatch.setattr(NPIDModel, "begin_run", lambda self, num_samples: self.memory.start(num_samples))

    trainer = build_trainer(name, tmp_path, OVERRIDES.get(name), max_grad_norm=1.0)
    if name == "simclr":
        labels = torch.tensor(trainer.train_dataset["label"])
        trainer.run_evaluation.probe = OnlineProbe(labels, 10, 0.1, 16, trainer.accelerator.device)
    trainer.model.train()
    loss = trainer.model.loss

    def watched(*args, **kwargs):
        with RefuseCopies():
            return loss(*args, **kwargs)

    if not name.startswith("beit"):  # transformers' BEiT keeps its index of positions on the host
        monkeypatch.setattr(trainer.model, "loss", watched)
    trainer.train_step([next(iter(trainer.loader))])
    assert all(parameter.is_meta for parameter in trainer.model.parameters())


class RefuseCopies(TorchFunctionMode):
    """Refuses to copy numbers to the device, for which the host waits too: lists, also as an index, and tensors."""

    makers = (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)
    movers = (torch.Tensor.to, torch.Tensor.__getitem__)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        if isinstance(outputs, torch.Tensor) and outputs.is_meta:
            index = args[1] if func is torch.Tensor.__getitem__ else ()
            assert func not in self.makers, f"{func.__name__}{args}"
            assert not any(isinstance(each, list | tuple) for each in (index if isinstance(index, tuple) else [index]))
            if func in self.movers:
                tensors = [each for each in tree_leaves(args) if isinstance(each, torch.Tensor)]
                assert all(each.is_meta for each in tensors), f"{func.__name__} of a tensor of the host"
        return outputs


def test_the_teacher_follows_once_an_optimizer_step(tmp_path, monkeypatch):
    followed = []
    follow = MomentumTeacher.follow

    def noted(self, student, momentum):
        followed.append(momentum)
        follow(self, student, momentum)

    monkeypatch.setattr(MomentumTeacher, "follow", noted)
    trainer = build_trainer(
        "byol", tmp_path, "teacher_base_momentum=0.9", gradient_accumulation_steps=2, max_train_steps=2
    )
    followed.clear()  # the copy of a new model
    trainer.train()
    assert followed == [pytest.approx(0.95), pytest.approx(1.0)]


def test_loss_chunk_size(tmp_path):
    trainer = build_trainer("simclr", tmp_path / "a", loss_chunk_size=4)
    sizes = []
    trainer.model.backbone.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    trainer.output_dir.mkdir()
    trainer._start()
    trainer.model.train()
    sizes.clear()
    trainer.train_step([next(iter(trainer.loader))])
    assert sizes == [4] * 16  # 32 views, forwards once without a graph and once for the gradient
    with pytest.raises(ValueError, match="MAEModel does not, so --gradient_accumulation_steps does the same"):
        recipe = load_recipe("mae-vit-tiny-digits")
        model = AutoModelForPreTraining.from_config(recipe.build_config())
        args = PretrainingArguments(output_dir=str(tmp_path / "b"), loss_chunk_size=4, max_train_steps=1)
        SSLTrainer(model, args, load_image_dataset("digits"), recipe.views)


def test_a_collapse_is_reported_in_plain_words(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(label_free, "embedding_std", lambda features: 0.001)
    with caplog.at_level(logging.WARNING):
        build_trainer("simsiam", tmp_path, max_train_steps=1).train()
    warnings = [record.message for record in caplog.records if "collapsed" in record.message]
    assert len(warnings) == 1  # not of the untrained model
    assert "all images get nearly the same vector (embedding_std 0.0010 of 1" in warnings[0]
    assert "Usual causes: too high a learning rate" in warnings[0]


def test_the_terms_of_a_loss_are_logged(tmp_path):
    build_trainer("barlowtwins", tmp_path, max_train_steps=1).train()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert '"loss_on_diagonal"' in text and '"loss_off_diagonal"' in text
