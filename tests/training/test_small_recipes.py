import math

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from ssl_hub.data.datasets import load_image_dataset
from ssl_hub.registry import ALGORITHMS
from ssl_hub.training.arguments import build_arguments
from ssl_hub.training.pretraining import build_trainer
from ssl_hub.training.recipes import list_recipes, load_recipe

SMALL = [name for name in list_recipes() if name.endswith("-small")]
# Of every backbone its kind of layers, narrow and few, at 32 pixels; and what 48 images are too few for.
REDUCED = {
    "resnet": "image_size=32,backbone_config.embedding_size=8,backbone_config.hidden_sizes=[8, 16],"
    "backbone_config.depths=[1, 1]",
    "vit": "backbone_config.image_size=32,backbone_config.hidden_size=24,backbone_config.num_hidden_layers=2,"
    "backbone_config.intermediate_size=48",
    "swin": "backbone_config.image_size=32,backbone_config.embed_dim=12,backbone_config.depths=[1, 1],"
    "backbone_config.num_heads=[1, 2],backbone_config.window_size=4",
}
FEWER_CLUSTERS = {"deepcluster": ",num_clusters=6,pca_size=8", "odc": ",num_clusters=6"}
NUM_STEPS = 50


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    """Images of three colours, with noise, as a folder of class folders."""
    root, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 4)):
        for channel, name in enumerate(("red", "green", "blue")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 160, (40, 40, 3), dtype=np.uint8)
                pixels[..., channel] += 90
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return [load_image_dataset(root / split) for split in ("train", "test")]


@pytest.mark.parametrize("name", SMALL)
def test_trains_at_reduced_width(name, splits, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    config = load_recipe(name).build_config()
    arguments = build_arguments(
        name,
        config_overrides=REDUCED[config.backbone_config.model_type] + FEWER_CLUSTERS.get(config.model_type, ""),
        dataset_name="made",
        output_dir=str(tmp_path),
        max_train_steps=NUM_STEPS,
        per_device_train_batch_size=8,
        logging_steps=10,
        dataloader_num_workers=0,
    )
    trainer = build_trainer(*arguments, *splits)
    before = {key: value.clone() for key, value in trainer.model.named_parameters() if value.requires_grad}
    trainer.train()
    assert [key for key, value in before.items() if torch.equal(value, trainer.model.get_parameter(key))] == []
    records = trainer.log.records()
    losses = [record["loss"] for record in records if "loss" in record]
    assert len(losses) == NUM_STEPS // 10 and all(math.isfinite(loss) for loss in losses)
    (last,) = (record for record in records if record["step"] == NUM_STEPS and "knn_accuracy" in record)
    assert last.keys() >= {"rankme", "embedding_std"}


@pytest.mark.parametrize("name", SMALL)
def test_is_for_one_device(name):
    _, _, data, args = build_arguments(name, train_dir="images", output_dir="out")
    assert 64 <= args.per_device_train_batch_size <= 256 and args.gradient_accumulation_steps == 1
    assert 64 <= load_recipe(name).build_config().image_size <= 224
    assert args.mixed_precision is None and data.dataset_name is None and args.warmup_epochs > 0


def test_every_algorithm_without_a_tokenizer_has_one():
    tokens = {"beitv1", "beitv2", "cae"}
    assert {load_recipe(name).model["model_type"] for name in SMALL} == set(ALGORITHMS) - tokens
