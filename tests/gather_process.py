"""A process that gathers feature tables: in a file of its own, as a process starts by importing it."""

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from ssl_hub.evaluation import features
from ssl_hub.lifecycle import FeatureTable


def run(rank, world_size, folder):
    """Gathers the parts `part-RANK.safetensors` of all processes into each one's `table-RANK.safetensors`."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    features._MAX_ENTRIES = 15  # three rows at a time
    table = features.gather_feature_tables(FeatureTable(**load_file(f"{folder}/part-{rank}.safetensors")))
    save_file({"features": table.features, "known": table.known}, f"{folder}/table-{rank}.safetensors")
    with pytest.raises(ValueError, match="4 rows were extracted by several processes"):
        features.gather_feature_tables(FeatureTable(torch.zeros(10, 2), torch.arange(10) < 4))
    dist.destroy_process_group()
