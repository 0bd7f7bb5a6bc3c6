"""A process that shares evaluations with others: in a file of its own, as a process starts by importing it."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from ssl_hub.evaluation import features
from ssl_hub.evaluation.base import LabelledFeatures
from ssl_hub.evaluation.knn import KNNEvaluator, knn_accuracies
from ssl_hub.lifecycle import FeatureTable


def run(rank, world_size, folder):
    """Gathers the parts `part-RANK.safetensors` of all processes into each one's `table-RANK.safetensors`."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    features._MAX_ENTRIES = 15  # three rows at a time
    table = features.gather_feature_tables(FeatureTable(**load_file(f"{folder}/part-{rank}.safetensors")))
    save_file({"features": table.features, "known": table.known}, f"{folder}/table-{rank}.safetensors")
    with pytest.raises(ValueError, match="4 rows were extracted by several processes"):
        features.gather_feature_tables(FeatureTable(torch.zeros(10, 2), torch.arange(10) < 4))
    Path(f"{folder}/knn-{rank}.json").write_text(json.dumps(accuracies(shared=True)))
    dist.destroy_process_group()


def accuracies(shared):
    """By kNN of many test images, of two for three processes, and of an evaluator."""
    generator = torch.Generator().manual_seed(0)
    train, test = (
        LabelledFeatures(torch.randn(count, 8, generator=generator), torch.randint(3, (count,), generator=generator))
        for count in (60, 50)
    )
    two = LabelledFeatures(*(each[:2] for each in test))
    found = [knn_accuracies(*train, *each, ks=[1, 9], temperatures=[0.07, 1.0], shared=shared) for each in (test, two)]
    return [*found[0].values(), *found[1].values(), KNNEvaluator(k=100).evaluate(test, train)["knn_accuracy"]]
