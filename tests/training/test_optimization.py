import math
import re

import pytest
import torch
from transformers import AutoModelForPreTraining, SchedulerType

from ssl_hub.lifecycle import ParameterRule, Progress
from ssl_hub.training.arguments import PretrainingArguments
from ssl_hub.training.optimization import (
    Schedule,
    build_optimizer,
    describe_groups,
    drop_frozen_gradients,
    parameter_groups,
)
from ssl_hub.training.recipes import load_recipe


@pytest.fixture(scope="module")
def model():
    return AutoModelForPreTraining.from_config(load_recipe("mae-vit-tiny-digits").build_config())


def arguments(**args):
    return PretrainingArguments(output_dir="unused", **args)


class Linear(torch.nn.Module):
    """As little of a model as an optimizer needs."""

    parameter_rules = ()

    def __init__(self):
        super().__init__()
        self.backbone = torch.nn.Linear(3, 2)
        self.head = torch.nn.Linear(2, 2)


def names_of(model, group):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for parameter in group["params"]]


def learning_rates(total_steps, steps_per_epoch=None, **args):
    """The learning rate of each step, and what it would be in the one after the last."""
    args = arguments(**args)
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "constant_lr": False}], lr=args.learning_rate or 1.0)
    schedule = Schedule(optimizer, args, total_steps, steps_per_epoch)
    rates = []
    for step in range(total_steps + 1):
        schedule.apply(Progress(step, total_steps, steps_per_epoch))
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


# Groups


def test_vectors_and_tokens_are_not_decayed(model):
    decayed, free = parameter_groups(model, arguments(), 1.0)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0.0)
    decayed, free = (names_of(model, group) for group in (decayed, free))
    assert sorted(decayed + free) == sorted(name for name, _ in model.named_parameters())
    assert all(name.endswith(".weight") and "norm" not in name for name in decayed)
    assert {"backbone.embeddings.cls_token", "neck.mask_token"} <= set(free)
    assert all(name.endswith((".bias", "_token")) or "norm" in name for name in free)


@pytest.mark.parametrize("backbone", ["vit", "swin", "timm"])
def test_positions_and_tables_of_any_backbone_are_not_decayed(backbone):
    configs = {
        "vit": {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        "swin": {"model_type": "swin", "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
        "timm": {"model_type": "timm_wrapper", "architecture": "vit_tiny_patch16_224", "model_args": {"depth": 1}},
    }
    recipe = load_recipe("simclr-digits")
    recipe.model["backbone_config"] = configs[backbone]
    model = AutoModelForPreTraining.from_config(recipe.build_config("image_size=32"))
    _, free = (names_of(model, group) for group in parameter_groups(model, arguments(), 1.0))
    free = [name for name in free if dict(model.named_parameters())[name].ndim > 1]
    assert free and all(re.search("pos|token|relative_position_bias_table", name) for name in free)


def test_frozen_parameters_are_left_out(model):
    model.backbone.embeddings.requires_grad_(False)
    count = sum(len(group["params"]) for group in build_optimizer(model, arguments(), 256).param_groups)
    frozen = len(list(model.backbone.embeddings.parameters()))
    model.backbone.embeddings.requires_grad_(True)
    assert frozen > 0 and count == len(list(model.parameters())) - frozen


def test_rules_of_a_model():
    model = Linear()
    model.parameter_rules = (
        ParameterRule(r"head\.bias", lr_scale=2.0, weight_decay_scale=5.0),
        ParameterRule(r"^head\.", momentum=0.0, constant_lr=True),
    )
    args = arguments(optim="sgd", learning_rate=1.0, weight_decay=0.1, warmup_steps=10)
    optimizer = build_optimizer(model, args, 256)
    groups = {name: group for group in optimizer.param_groups for name in names_of(model, group)}
    found = {name: (g["lr"], g["weight_decay"], g["momentum"], g["constant_lr"]) for name, g in groups.items()}
    assert found == {
        "backbone.weight": (1.0, 0.1, 0.9, False),
        "backbone.bias": (1.0, 0.0, 0.9, False),
        "head.bias": (2.0, 0.5, 0.9, False),
        "head.weight": (1.0, 0.1, 0.0, True),
    }
    Schedule(optimizer, args, 20, None).apply(Progress(0, 20))
    assert (groups["backbone.weight"]["lr"], groups["head.weight"]["lr"]) == (0.0, 1.0)
    assert build_optimizer(model, arguments(), 256).param_groups[-1]["betas"] == (0.0, 0.95)
    lines = describe_groups(optimizer)
    assert "4 parameters in 1 tensors: learning rate 1 (constant), weight decay 0.1, momentum 0" in lines
    assert len(lines) == 4


def test_a_rule_that_matches_nothing():
    model = Linear()
    model.parameter_rules = (ParameterRule("haed"),)
    with pytest.raises(ValueError, match="rule 'haed' of Linear matches no trainable parameter.*head.bias"):
        build_optimizer(model, arguments(), 256)


def test_frozen_epochs_leave_parameters_and_optimizer_state_alone():
    model = Linear()
    model.parameter_rules = (ParameterRule("^head", frozen_epochs=1),)
    optimizer = build_optimizer(model, arguments(learning_rate=0.1), 256)
    before = model.head.weight.detach().clone()
    for step, moves in ((0, False), (4, False), (5, True)):
        model.head(model.backbone(torch.ones(1, 3))).sum().backward()
        drop_frozen_gradients(optimizer, Progress(step, 10, steps_per_epoch=5))
        optimizer.step()
        optimizer.zero_grad()
        assert torch.equal(before, model.head.weight) is not moves
        assert (model.head.weight in optimizer.state) is moves


def test_the_learning_rate_grows_with_the_batch_unless_it_is_given(model):
    args = arguments(base_learning_rate=1e-3, adam_beta2=0.9, weight_decay=0.1)
    first, second = build_optimizer(model, args, global_batch_size=1024).param_groups
    assert first["lr"] == second["lr"] == pytest.approx(4e-3)
    assert first["betas"] == (0.9, 0.9) and first["weight_decay"] == 0.1
    assert build_optimizer(model, arguments(learning_rate=0.5), global_batch_size=1024).param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("optim", ["adamw", "sgd", "lars"])
def test_optimizers_leave_norms_and_biases_out(model, optim):
    args = arguments(optim=optim, learning_rate=1.0, norm_and_bias_lr_scale=0.5)
    decayed, free = build_optimizer(model, args, 256).param_groups
    assert (decayed["lr"], free["lr"], free["weight_decay"]) == (1.0, 0.5, 0.0)
    args.decay_norm_and_bias = True
    assert len(build_optimizer(model, args, 256).param_groups) == 1


def test_lars_adapts_the_decayed_parameters_only():
    """One step of LARS (arXiv 1708.03888) on a matrix, and of plain SGD on a vector."""
    model = Linear()
    weight, bias = model.backbone.weight.detach().clone(), model.backbone.bias.detach().clone()
    optimizer = build_optimizer(model, arguments(optim="lars", learning_rate=2.0, weight_decay=0.1), 256)
    model.backbone(torch.ones(1, 3)).sum().backward()
    gradient = model.backbone.weight.grad.clone()
    optimizer.step()
    ratio = 0.001 * weight.norm() / (gradient.norm() + 0.1 * weight.norm() + 1e-8)
    assert torch.allclose(model.backbone.weight, weight - 2.0 * ratio * (gradient + 0.1 * weight), atol=1e-6)
    assert torch.allclose(model.backbone.bias, bias - 2.0 * model.backbone.bias.grad)


# Schedules


def test_warm_up_from_0_then_a_cosine_to_0():
    rates = learning_rates(20, learning_rate=2.0, warmup_steps=4)
    assert rates[:5] == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0])
    assert rates[4:] == pytest.approx([1 + math.cos(math.pi * step / 16) for step in range(17)])
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)


def test_warm_up_in_epochs():
    assert learning_rates(20, 6, learning_rate=1.0, warmup_epochs=0.5)[:4] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    with pytest.raises(ValueError, match="--warmup_steps instead of warmup_epochs"):
        learning_rates(20, None, warmup_epochs=0.5)


def test_another_schedule():
    rates = learning_rates(10, learning_rate=1.0, lr_scheduler_type="constant_with_warmup", warmup_steps=2)
    assert rates == pytest.approx([0.0, 0.5] + [1.0] * 9)


def test_a_schedule_that_needs_more_than_steps():
    with pytest.raises(ValueError, match=r"one of linear, cosine, .*; got 'greedy'"):
        learning_rates(10, lr_scheduler_type=SchedulerType.GREEDY)


def test_milestones():
    rates = learning_rates(12, 2, learning_rate=1.0, lr_milestones="2,4", warmup_steps=2)
    assert rates == pytest.approx([0.0, 0.5, 1.0, 1.0] + [0.1] * 4 + [0.01] * 5)
    rates = learning_rates(6, 2, learning_rate=1.0, lr_milestones="2", lr_milestone_factor=0.4)
    assert rates == pytest.approx([1.0] * 4 + [0.4] * 3)
    with pytest.raises(ValueError, match="no known epoch.*no lr_milestones"):
        learning_rates(12, None, lr_milestones="2,4")


def test_cosine_to_a_share_of_the_learning_rate():
    rates = learning_rates(10, learning_rate=2.0, lr_scheduler_type="cosine_with_min_lr", min_lr_rate=0.25)
    assert rates[0] == 2.0 and rates[-1] == pytest.approx(0.5)


def test_weight_decay_goes_to_its_end_by_a_cosine():
    model = Linear()
    args = arguments(weight_decay=0.04, weight_decay_end=0.4, learning_rate=1.0)
    optimizer = build_optimizer(model, args, 256)
    schedule = Schedule(optimizer, args, 10, None)
    decays = []
    for step in (0, 5, 10):
        schedule.apply(Progress(step, 10))
        decays.append([group["weight_decay"] for group in optimizer.param_groups])
    assert decays == [pytest.approx([decay, 0.0]) for decay in (0.04, 0.22, 0.4)]
    with pytest.raises(ValueError, match="where a positive --weight_decay goes; got 0.1 from 0"):
        arguments(weight_decay=0.0, weight_decay_end=0.1)


def test_simsiams_predictor_keeps_its_learning_rate():
    model = AutoModelForPreTraining.from_config(load_recipe("simsiam-digits").build_config())
    args = arguments(optim="sgd", learning_rate=1.0, warmup_steps=2)
    optimizer = build_optimizer(model, args, 256)
    Schedule(optimizer, args, 10, None).apply(Progress(7, 10))
    for group in optimizer.param_groups:
        assert all(name.startswith("head.predictor.") is group["constant_lr"] for name in names_of(model, group))
        assert (group["lr"] == 1.0) is group["constant_lr"]
