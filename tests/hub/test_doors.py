"""The round trip of every algorithm through the Hub, by each of the three doors."""

import json
import subprocess
import sys

import pytest
import torch
from accelerate.state import AcceleratorState
from huggingface_hub import HfApi
from loopback_hub import client_environment, loopback_hub, use_hub
from transformers import AutoModelForPreTraining

from ssl_hub import SSLTrainer
from ssl_hub.data.datasets import load_image_dataset
from ssl_hub.hub.publishing import publish
from ssl_hub.registry import ALGORITHMS
from ssl_hub.training.arguments import PretrainingArguments
from ssl_hub.training.recipes import list_recipes, load_recipe

OVERRIDES = {
    "deepcluster": "num_clusters=4",
    "densecl": "queue_size=16",
    "moco": "queue_size=16",
    "odc": "num_clusters=4",
}
LOAD = """
import json, sys
import torch
import ssl_hub
from transformers import AutoModel, AutoModelForPreTraining
for name in json.loads(sys.argv[1]):
    model = AutoModelForPreTraining.from_pretrained(f"me/{name}-by-model")
    backbone = AutoModel.from_pretrained(f"me/{name}-by-model", subfolder="backbone")
    torch.save({"model": model.state_dict(), "backbone": backbone.state_dict()}, f"{name}.pt")
"""


def push_by_every_door(name, images, output_dir):
    recipe = load_recipe(next(each for each in list_recipes() if each.startswith(f"{name}-") and "digits" in each))
    AcceleratorState._reset_state(reset_partial_state=True)
    model = AutoModelForPreTraining.from_config(recipe.build_config(OVERRIDES.get(name)))
    args = PretrainingArguments(
        output_dir=str(output_dir),
        per_device_train_batch_size=16,
        learning_rate=1e-3,
        max_train_steps=1,
        eval_crop_ratio=224 / 256,  # that of an image processor made from a configuration
        push_to_hub=True,
        hub_model_id=f"me/{name}-by-trainer",
    )
    SSLTrainer(model, args, images, recipe.views).train()
    publish(output_dir, f"me/{name}-by-publish")
    model.push_to_hub(f"me/{name}-by-model")
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Every algorithm's model, which was pushed, with the state of what was loaded from there."""
    folder = tmp_path_factory.mktemp("doors")
    images = load_image_dataset("digits", "train").select(range(32))
    with loopback_hub(folder) as endpoint, pytest.MonkeyPatch.context() as monkeypatch:
        use_hub(endpoint, folder, monkeypatch)
        monkeypatch.setattr("ssl_hub.training.run_report.plot_training_curves", lambda *args: None)  # takes a while
        models = {name: push_by_every_door(name, images, folder / name) for name in ALGORITHMS}
        command = [sys.executable, "-c", LOAD, json.dumps(list(models))]
        environment = client_environment(endpoint, folder / "home", token=None)
        loaded = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert loaded.returncode == 0, loaded.stderr
        yield {name: (model, torch.load(folder / f"{name}.pt", weights_only=True)) for name, model in models.items()}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_round_trip(name, models):
    model, loaded = models[name]
    trees = [
        {entry.path: entry.blob_id for entry in HfApi().list_repo_tree(f"me/{name}-by-{door}", recursive=True)}
        for door in ("model", "trainer", "publish")
    ]
    for tree in trees:
        assert tree.pop("README.md")  # says what its door knows
    assert all(tree.items() >= trees[0].items() for tree in trees) and "backbone/model.safetensors" in trees[0]

    shared = {key: x for key, x in model.state_dict().items() if not key.startswith(tuple(model.training_state))}
    assert all(torch.equal(x, loaded["model"][key]) for key, x in shared.items())
    backbone = {key: x for key, x in model.backbone.state_dict().items() if key != "embeddings.mask_token"}
    assert all(torch.equal(x, loaded["backbone"][key]) for key, x in backbone.items())
