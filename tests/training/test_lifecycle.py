"""That a run calls a model's hooks as promised: in order, alike on every process, and the same after a resume."""

import json
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from PIL import Image
from processes import run_processes
from safetensors.torch import load_file, save_file
from transformers import AutoModel, ResNetConfig

from ssl_hub import JointEmbeddingConfig, JointEmbeddingModel, SSLLossOutput, register_algorithm
from ssl_hub.data.datasets import load_image_dataset
from ssl_hub.training.arguments import PretrainingArguments
from ssl_hub.training.trainer import SSLTrainer

VIEWS = [{"size": 16, "scale": [0.6, 1.0]}]


class BankConfig(JointEmbeddingConfig):
    model_type = "bank"


class BankModel(JointEmbeddingModel):
    """Regresses what a bank holds for an image; the bank is drawn anew before every epoch."""

    config_class = BankConfig

    def __init__(self, config):
        super().__init__(config)
        self.neck = torch.nn.Linear(self.hidden_size, 4)
        self.calls = []
        self.post_init()

    def begin_run(self, num_samples):
        self.calls.append(("begin_run", num_samples))
        self.register_buffer("bank", torch.zeros(num_samples, 4))

    def begin_epoch(self, progress, features):
        self.calls.append(("begin_epoch", progress.step))
        self.table = features(lambda images: self.neck(self.pooled_features(self.backbone, images)))
        self.bank = self.table.features + torch.randn(len(self.bank), 4)
        return torch.rand(len(self.bank))

    def begin_step(self, progress):
        self.calls.append(("begin_step", progress.step))

    def loss(self, pixel_values, *, indices):
        loss = (self.project(pixel_values) - self.bank[indices]).square().mean()
        self.calls.append(("loss", sorted(indices.tolist())))
        return SSLLossOutput(loss=loss, losses={"regression": loss.detach()})

    def end_step(self, progress):
        self.calls.append(("end_step", progress.step))


register_algorithm(BankConfig, BankModel)


def build_trainer(output_dir, dataset=None, **args):
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.manual_seed(0)
    backbone = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    model = AutoModel.from_config(BankConfig(backbone_config=backbone, image_size=16))
    args = {
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "max_train_steps": 12,
        "checkpointing_steps": "6",
        "save_total_limit": None,
    } | args
    dataset = load_image_dataset("digits").select(range(32)) if dataset is None else dataset
    return SSLTrainer(model, PretrainingArguments(output_dir=str(output_dir), **args), dataset, VIEWS)


def test_hooks_are_called_in_order(tmp_path):
    trainer = build_trainer(tmp_path, max_train_steps=5)
    trainer.train()
    expected = [("begin_run", 32)]
    for step in range(5):
        expected += [("begin_epoch", step)] * (step % 4 == 0)
        expected += [("begin_step", step), "loss", ("end_step", step + 1)]
    assert [call if call[0] != "loss" else "loss" for call in trainer.model.calls] == expected


def test_a_run_resumed_in_mid_epoch_ends_the_same(tmp_path):
    """With the bank and the sampling weights of the epoch that was under way; begin_epoch is not called for it."""
    whole = build_trainer(tmp_path / "whole")
    whole.train()
    build_trainer(tmp_path / "cut").train()
    for path in (tmp_path / "cut").glob("model.safetensors"):
        path.unlink()
    resumed = build_trainer(tmp_path / "cut", resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-6"))
    resumed.train()
    assert resumed.model.calls[1:] == whole.model.calls[whole.model.calls.index(("begin_step", 6)) :]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


def test_an_image_that_cannot_be_read_keeps_its_row(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(32):
        Image.effect_noise((20, 20), 60).save(images / f"{number:02}.png")
    for number in (5, 31):
        (images / f"{number:02}.png").write_text("no image")
    trainer = build_trainer(tmp_path / "run", load_image_dataset(images), max_train_steps=1)
    trainer.train()
    table = trainer.model.table
    assert len(table.features) == 32
    assert (~table.known).nonzero().flatten().tolist() == [5, 31]
    assert not table.features[~table.known].any() and table.features[table.known].any(dim=1).all()


def train_and_save(output_dir):
    trainer = build_trainer(output_dir, per_device_train_batch_size=4)
    trainer.train()
    stem = f"{output_dir}-{trainer.accelerator.process_index}"
    save_file({"bank": trainer.model.bank}, f"{stem}.safetensors")
    seen = [call[1] for call in trainer.model.calls if call[0] == "loss"]
    Path(f"{stem}.json").write_text(json.dumps(seen))


def test_processes_share_the_epoch(tmp_path):
    """Two processes draw the same bank, and see the images that one process sees."""
    run_processes(train_and_save, 2, tmp_path / "two")
    one = build_trainer(tmp_path / "one")
    one.train()
    first, second = (load_file(tmp_path / f"two-{process}.safetensors") for process in range(2))
    assert torch.equal(first["bank"], second["bank"])
    torch.testing.assert_close(first["bank"], one.model.bank, atol=1e-3, rtol=1e-3)
    seen = [json.loads((tmp_path / f"two-{process}.json").read_text()) for process in range(2)]
    together = [sorted(a + b) for a, b in zip(*seen, strict=True)]
    assert together == [call[1] for call in one.model.calls if call[0] == "loss"]
