"""What only a GPU shows: `make test-gpu`."""

import json
import math
import os
import time

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from sklearn.datasets import load_sample_images
from test_algorithms import OVERRIDES, build_trainer

from ssl_hub.data.rendering import BatchRenderer
from ssl_hub.data.views import Draws, build_views
from ssl_hub.modules.memories import OnlineClusterMemory
from ssl_hub.registry import ALGORITHMS
from ssl_hub.training.timing import Stopwatch

pytestmark = pytest.mark.skipif("SSL_HUB_TEST_GPU" not in os.environ, reason="needs a GPU: make test-gpu")
GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def forget_precision():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def losses_of(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_mixed_precision(name, tmp_path):
    losses = {}
    for precision in ("no", "bf16", "fp16"):
        trainer = build_trainer(name, tmp_path / precision, OVERRIDES.get(name), mixed_precision=precision)
        trainer.train()
        losses[precision] = losses_of(tmp_path / precision)
        assert all(parameter.dtype == torch.float32 and parameter.is_cuda for parameter in trainer.model.parameters())
        AcceleratorState._reset_state(reset_partial_state=True)
    assert losses["bf16"][0] == pytest.approx(losses["no"][0], rel=0.05, abs=0.01)
    assert losses["fp16"][0] == pytest.approx(losses["no"][0], rel=0.02, abs=0.01)
    assert len(losses["fp16"]) == 4


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_a_compiled_step_is_one_graph(name, tmp_path):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    settings = {"mixed_precision": "bf16", "eval_steps": 2, "max_train_steps": 3}
    build_trainer(name, tmp_path / "plain", OVERRIDES.get(name), **settings).train()
    AcceleratorState._reset_state(reset_partial_state=True)
    build_trainer(name, tmp_path / "compiled", OVERRIDES.get(name), torch_compile=True, **settings).train()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert losses_of(tmp_path / "compiled")[0] == pytest.approx(losses_of(tmp_path / "plain")[0], rel=0.05)


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_a_step_waits_for_nothing(name, tmp_path, monkeypatch):
    # ODC asks once a step whether a cluster is to be filled again: that is the algorithm.
    monkeypatch.setattr(OnlineClusterMemory, "rebuild_small_clusters", lambda self, min_size: None)
    trainer = build_trainer(name, tmp_path, OVERRIDES.get(name), max_grad_norm=1.0, augment_on_device=True)
    trainer.begin_epoch()
    trainer.model.train()
    batches = iter(trainer.loader)
    trainer.train_step([next(batches)])  # the optimizer's state
    batch = next(batches)
    # transformers' BEiT keeps its index of positions on the host.
    torch.cuda.set_sync_debug_mode("default" if name.startswith("beit") else "error")
    try:
        trainer.train_step([batch])
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_a_resumed_run_ends_the_same(name, tmp_path):
    """To within what atomic additions, in any order, leave."""
    trainer = build_trainer(name, tmp_path, OVERRIDES.get(name), save_total_limit=None)
    trainer.train()
    whole = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    checkpoint = str(tmp_path / "checkpoint-2")
    build_trainer(name, tmp_path, OVERRIDES.get(name), resume_from_checkpoint=checkpoint).train()
    resumed = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    for key, tensor in whole.items():
        torch.testing.assert_close(
            resumed[key], tensor, rtol=1e-3, atol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("tf32", [False, True])
def test_views_are_those_of_the_cpu(tf32):
    view = {"size": 96, "scale": [0.2, 1], "hflip": 0.5, "gaussian_blur": {"p": 0.5}, "solarize": {"p": 0.5}}
    view["color_jitter"] = {"p": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
    view["grayscale"] = 0.2
    views = build_views([view, {"kind": "patches"}, {"size": 64, "rotation": 20, "count": 2}])
    count, photos = 64, [torch.from_numpy(pixels[::2, ::2].copy()) for pixels in load_sample_images().images]
    height, width = photos[0].shape[:2]
    draws = Draws(0, np.arange(count))
    batch = {
        "pixels": torch.stack([photos[i % 2] for i in range(count)]).flatten(),
        "sizes": [(height, width)] * count,
        "drawn": [each.draw(np.full(count, height), np.full(count, width), draws) for each in views],
    }
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        on_cpu, on_gpu, again = (BatchRenderer(views, device)(batch) for device in (torch.device("cpu"), GPU, GPU))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    for expected, rendered, same in zip(*(each["pixel_values"] for each in (on_cpu, on_gpu, again)), strict=True):
        assert torch.equal(rendered, same)
        assert (rendered.cpu().int() - expected.int()).abs().float().mean() < 0.1


def test_a_cache_on_the_device(tmp_path):
    for place in ("memory", "device"):
        build_trainer("simclr", tmp_path / place, augment_on_device=True, cache_images=place).train()
    assert losses_of(tmp_path / "device") == pytest.approx(losses_of(tmp_path / "memory"), rel=1e-3)


def test_a_wait_that_the_gpu_spends_computing_is_none():
    watch = Stopwatch(GPU)
    torch.cuda._sleep(2_000_000_000)  # cycles, a second or so
    with watch.timed("data_wait"):
        time.sleep(0.1)
    assert watch.seconds["data_wait"] < 0.05
    with watch.timed("data_wait"):
        time.sleep(0.1)
    assert math.isclose(watch.seconds["data_wait"], 0.1, rel_tol=0.5)
