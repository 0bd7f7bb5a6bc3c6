import math

import pytest
import torch
from transformers import AutoModelForPreTraining, SchedulerType

from ssl_hub.training.arguments import PretrainingArguments
from ssl_hub.training.optimization import build_optimizer, build_scheduler, parameter_groups
from ssl_hub.training.recipes import load_recipe


@pytest.fixture(scope="module")
def model():
    return AutoModelForPreTraining.from_config(load_recipe("mae-vit-tiny-digits").build_config())


def optimizer(**args):
    parameter = torch.nn.Parameter(torch.zeros(2, 2))
    args = PretrainingArguments(output_dir="unused", **args)
    group = {"params": [parameter], "constant_learning_rate": False}
    return torch.optim.AdamW([group], lr=args.learning_rate or 1.0), args


def learning_rates(total_steps, steps_per_epoch=None, **args):
    """The learning rate of each step, and what it is after the last one."""
    optimizer_, args = optimizer(**args)
    scheduler = build_scheduler(optimizer_, args, total_steps, steps_per_epoch)
    rates = []
    for _ in range(total_steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer_.step()
        scheduler.step()
    return [*rates, scheduler.get_last_lr()[0]]


def test_vectors_and_tokens_are_not_decayed(model):
    decayed, free = parameter_groups(model, PretrainingArguments(output_dir="unused"), 1.0)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, free = ([names[id(p)] for p in group["params"]] for group in (decayed, free))
    assert sorted(decayed + free) == sorted(names.values())
    assert all(name.endswith(".weight") and "norm" not in name for name in decayed)
    assert {"backbone.embeddings.cls_token", "neck.mask_token"} <= set(free)
    assert all(name.endswith((".bias", "_token")) or "norm" in name for name in free)


def test_frozen_parameters_are_left_out(model):
    model.backbone.embeddings.requires_grad_(False)
    args = PretrainingArguments(output_dir="unused")
    count = sum(len(group["params"]) for group in build_optimizer(model, args, 256).param_groups)
    frozen = len(list(model.backbone.embeddings.parameters()))
    model.backbone.embeddings.requires_grad_(True)
    assert frozen > 0 and count == len(list(model.parameters())) - frozen


def test_the_learning_rate_grows_with_the_batch_unless_it_is_given(model):
    args = PretrainingArguments(output_dir="unused", base_learning_rate=1e-3, adam_beta2=0.9, weight_decay=0.1)
    first, second = build_optimizer(model, args, global_batch_size=1024).param_groups
    assert first["lr"] == second["lr"] == pytest.approx(4e-3)
    assert first["betas"] == (0.9, 0.9) and first["weight_decay"] == 0.1
    args = PretrainingArguments(output_dir="unused", learning_rate=0.5)
    assert build_optimizer(model, args, global_batch_size=1024).param_groups[0]["lr"] == 0.5


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
    with pytest.raises(ValueError, match="no known epoch.*no lr_milestones"):
        learning_rates(12, None, lr_milestones="2,4")


def test_cosine_to_a_share_of_the_learning_rate():
    rates = learning_rates(10, learning_rate=2.0, lr_scheduler_type="cosine_with_min_lr", min_lr_rate=0.25)
    assert rates[0] == 2.0 and rates[-1] == pytest.approx(0.5)


@pytest.mark.parametrize("optim", ["adamw", "sgd", "lars"])
def test_optimizers_leave_norms_and_biases_out(model, optim):
    args = PretrainingArguments(output_dir="unused", optim=optim, learning_rate=1.0, norm_and_bias_lr_scale=0.5)
    decayed, free = build_optimizer(model, args, 256).param_groups
    assert (decayed["lr"], free["lr"], free["weight_decay"]) == (1.0, 0.5, 0.0)
    args.decay_norm_and_bias = True
    assert len(build_optimizer(model, args, 256).param_groups) == 1


def test_lars_adapts_the_decayed_parameters_only():
    """One step of LARS (arXiv 1708.03888) on a matrix, and of plain SGD on a vector."""
    module = torch.nn.Linear(3, 2)
    module.no_weight_decay, module.constant_learning_rate = (), ()
    weight, bias = module.weight.detach().clone(), module.bias.detach().clone()
    args = PretrainingArguments(output_dir="unused", optim="lars", learning_rate=2.0, weight_decay=0.1)
    optimizer = build_optimizer(module, args, 256)
    module(torch.ones(1, 3)).sum().backward()
    gradient = module.weight.grad.clone()
    optimizer.step()
    ratio = 0.001 * weight.norm() / (gradient.norm() + 0.1 * weight.norm() + 1e-8)
    assert torch.allclose(module.weight, weight - 2.0 * ratio * (gradient + 0.1 * weight), atol=1e-6)
    assert torch.allclose(module.bias, bias - 2.0 * module.bias.grad)


def test_a_constant_learning_rate_beside_the_schedule():
    """SimSiam's predictor keeps its learning rate, after a resume too."""
    model = AutoModelForPreTraining.from_config(load_recipe("simsiam-digits").build_config())
    args = PretrainingArguments(output_dir="unused", optim="sgd", learning_rate=1.0, warmup_steps=2)
    optimizer = build_optimizer(model, args, 256)
    scheduler = build_scheduler(optimizer, args, 10, None)
    for _ in range(7):
        optimizer.step()
        scheduler.step()
    resumed = build_scheduler(build_optimizer(model, args, 256), args, 10, None)
    resumed.load_state_dict(scheduler.state_dict())
    resumed.step()
    scheduler.step()
    assert resumed.get_last_lr() == scheduler.get_last_lr()
    for rate, group in zip(scheduler.get_last_lr(), optimizer.param_groups, strict=True):
        if group["constant_learning_rate"]:
            assert rate == 1.0
        else:
            assert 0 < rate < 1
    names = [
        n for n, p in model.named_parameters() if any(p is q for g in optimizer.param_groups[2:] for q in g["params"])
    ]
    assert names and all(name.startswith("head.predictor.") for name in names)
