"""DINO (arXiv 2104.14294), written as docs/adding_an_algorithm.md says, with nothing private overridden.

It needs what no single algorithm of the package does: several crops, a centre that all processes share, schedules of
temperature, momentum and weight decay, a last layer that is frozen at first.
"""

import inspect
import re

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel

from ssl_hub import JointEmbeddingConfig, JointEmbeddingModel, ParameterRule, SSLLossOutput, register_algorithm
from ssl_hub.data.datasets import load_image_dataset
from ssl_hub.distributed import num_processes, sum_
from ssl_hub.lifecycle import Progress, cosine_ramp
from ssl_hub.modules.teachers import MomentumTeacher
from ssl_hub.training.arguments import PretrainingArguments
from ssl_hub.training.trainer import SSLTrainer

VIEWS = [{"count": 2, "size": 16, "scale": [0.5, 1.0]}, {"count": 2, "size": 8, "scale": [0.2, 0.5]}]
VIT = {
    "model_type": "vit",
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


@strict
class DINOConfig(JointEmbeddingConfig):
    model_type = "dino"

    num_prototypes: int = 64
    student_temperature: float = 0.1
    teacher_temperature: float = 0.07
    teacher_warmup_temperature: float = 0.04
    teacher_warmup_share: float = 0.3
    teacher_base_momentum: float = 0.9
    center_momentum: float = 0.9


class DINOModel(JointEmbeddingModel):
    config_class = DINOConfig
    num_views = 4
    parameter_rules = (ParameterRule(r"^head\.", weight_decay_scale=0.0, frozen_epochs=1),)

    def __init__(self, config):
        super().__init__(config)
        width, size = config.projection_hidden_size, config.projection_size
        self.neck = nn.Sequential(nn.Linear(self.hidden_size, width), nn.GELU(), nn.Linear(width, size))
        self.head = nn.Linear(size, config.num_prototypes, bias=False)
        self.teacher = MomentumTeacher(backbone=self.backbone, neck=self.neck, head=self.head)
        self.register_buffer("center", torch.zeros(config.num_prototypes))
        self.register_scheduled(temperature=config.teacher_temperature)
        self.post_init()

    def loss(self, pixel_values):
        self.check_views(pixel_values, same_size=False)
        logits = [self.head(F.normalize(self.project(view), dim=1)) for view in pixel_values]
        with torch.no_grad():
            targets = [self.teacher.head(F.normalize(self.teacher_project(view), dim=1)) for view in pixel_values[:2]]
            probabilities = [((target - self.center) / self.temperature).softmax(dim=1) for target in targets]
            if self.training:
                mean = sum_(torch.cat(targets).mean(dim=0)) / num_processes()
                self.center.lerp_(mean, 1 - self.config.center_momentum)
        terms = [
            -(probability * (logit / self.config.student_temperature).log_softmax(dim=1)).sum(dim=1).mean()
            for i, probability in enumerate(probabilities)
            for j, logit in enumerate(logits)
            if i != j
        ]
        loss = sum(terms) / len(terms)
        return SSLLossOutput(loss=loss, losses={"distillation": loss.detach()})

    def begin_step(self, progress):
        config = self.config
        share = min(progress.share / config.teacher_warmup_share, 1.0)
        start, end = config.teacher_warmup_temperature, config.teacher_temperature
        self.set_scheduled(temperature=start + share * (end - start))

    def end_step(self, progress):
        self.teacher.follow(self, cosine_ramp(self.config.teacher_base_momentum, 1.0, progress.share))


register_algorithm(DINOConfig, DINOModel)


def build_trainer(output_dir, **args):
    torch.manual_seed(0)
    config = DINOConfig(backbone_config=VIT, projection_hidden_size=32, projection_size=16)
    args = {
        "per_device_train_batch_size": 16,
        "max_train_steps": 12,
        "learning_rate": 2e-3,
        "weight_decay": 0.04,
        "weight_decay_end": 0.4,
        "checkpointing_steps": "6",
        "logging_steps": 1,
        "save_total_limit": None,
    } | args
    dataset = load_image_dataset("digits").select(range(64))
    return SSLTrainer(
        AutoModel.from_config(config), PretrainingArguments(output_dir=str(output_dir), **args), dataset, VIEWS
    )


def test_nothing_private_is_overridden():
    overridden = {name for name in vars(DINOModel) if hasattr(JointEmbeddingModel, name)}
    assert not {name for name in overridden if re.match(r"_[a-z]", name) and inspect.isfunction(vars(DINOModel)[name])}


def test_it_trains_by_its_schedules_and_resumes(tmp_path):
    trainer = build_trainer(tmp_path / "whole")
    head = trainer.model.head.weight.detach().clone()
    seen = []

    def note(optimizer, *_):
        decays = [group["weight_decay"] for group in optimizer.param_groups]
        seen.append((trainer.model.temperature.item(), max(decays), torch.equal(trainer.model.head.weight, head)))

    trainer.optimizer.register_step_post_hook(note)
    trainer.train()
    temperatures, decays, head_is_frozen = zip(*seen, strict=True)
    assert temperatures[0] == pytest.approx(0.04) and temperatures[4:] == pytest.approx([0.07] * 8)
    assert decays == pytest.approx([cosine_ramp(0.04, 0.4, step / 12) for step in range(12)])
    assert list(head_is_frozen) == [True] * 4 + [False] * 8  # an epoch has four steps
    assert trainer.model.center.abs().max() > 0

    build_trainer(tmp_path / "cut").train()
    (tmp_path / "cut" / "model.safetensors").unlink()
    build_trainer(tmp_path / "cut", resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-6")).train()
    whole, resumed = (load_file(tmp_path / run / "model.safetensors") for run in ("whole", "cut"))
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_a_compiled_step_follows_the_schedule():
    model = build_model()
    views = [torch.randn(8, 3, view["size"], view["size"]) for view in VIEWS for _ in range(view["count"])]
    torch._dynamo.reset()
    step = torch.compile(model, backend="eager", fullgraph=True)
    for number in range(3):
        model.begin_step(Progress(number, 10, 5))
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            expected = model.eval()(views, mode="loss").loss
            torch.testing.assert_close(step(views, mode="loss").loss, expected)


def build_model():
    torch.manual_seed(0)
    return AutoModel.from_config(DINOConfig(backbone_config=VIT, projection_hidden_size=32, projection_size=16))
