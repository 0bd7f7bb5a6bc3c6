"""N processes must give the loss and the gradients of one process that has the whole batch."""

import pytest
import torch
import torch.distributed as dist
from clustering_common import ClusteringTests, table
from joint_embedding_common import BACKBONES, AnyBackboneTests
from processes import run_processes
from safetensors.torch import load_file, save_file
from test_modeling_common import BATCH_SIZE, find_test_class
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ssl_hub.distributed import (
    broadcast_,
    gather,
    gather_with_gradient,
    shuffle_batch,
    sum_with_gradient,
    synchronize_batchnorm,
    unshuffle_batch,
)
from ssl_hub.lifecycle import Progress
from ssl_hub.registry import ALGORITHMS

TEST_CLASSES = {model_type: find_test_class(model_type) for model_type in ALGORITHMS}
# With BatchNorm in the backbone too. Models that do not synchronise it cannot equal one process then.
WITH_RESNET = [
    name
    for name, test_class in TEST_CLASSES.items()
    if test_class.model_class.sync_batchnorm and issubclass(test_class, AnyBackboneTests)
]
CLUSTERING = [name for name, test_class in TEST_CLASSES.items() if issubclass(test_class, ClusteringTests)]
CASES = [*((name, False) for name in ALGORITHMS), *((name, True) for name in WITH_RESNET)]


def build_model(name, with_resnet):
    """In double precision, so that an error of 1e-5 is an error, not rounding."""
    overrides = {"backbone_config": BACKBONES["resnet"]} if with_resnet else {}
    model = TEST_CLASSES[name]().model(**overrides).double().train()
    if name == "swav":  # with a full queue
        model.memory.vectors = nn.functional.normalize(torch.randn_like(model.memory.vectors), dim=2)
    if name == "npid":  # with negatives that do not depend on the process
        model.draw_negatives = lambda indices: (7 * indices[:, None] + torch.arange(50)) % len(model.memory.features)
    return model


def run_steps(model, name, part, module):
    """Two losses, so that a queue holds what the first one put in; gradients of the second, and the state after it."""
    test_class = TEST_CLASSES[name]
    images = test_class.images()
    images = [view[part].double() for view in images] if isinstance(images, list) else images[part].double()
    inputs = {key: value[part] for key, value in test_class.loss_inputs(BATCH_SIZE).items()}
    for _ in range(2):
        module.zero_grad()
        model.end_step(Progress(1, 2))
        loss = module(images, mode="loss", **inputs).loss
        loss.backward()
    results = {f"grad/{n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    results |= {f"state/{n}": b.double() for n, b in model.named_buffers() if "num_batches" not in n}
    return results | {"loss": loss.detach()}


def run_process(folder):
    """One of the processes that train together, each on its part of the batch."""
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    part = slice(rank * BATCH_SIZE // world_size, (rank + 1) * BATCH_SIZE // world_size)
    for name, with_resnet in CASES:
        torch.manual_seed(rank)
        model = build_model(name, with_resnet)
        if name == "swav":  # drawn per process above
            dist.broadcast(model.memory.vectors, src=0)
        if model.sync_batchnorm:
            synchronize_batchnorm(model, torch.device("cpu"))
        module = DistributedDataParallel(model, broadcast_buffers=False)
        results = run_steps(model, name, part, module)
        results["loss"] = gather(results["loss"][None]).mean()
        save_file(
            {key: value.contiguous() for key, value in results.items()},
            folder / f"{name}-{with_resnet}-{rank}.safetensors",
        )
    for name in CLUSTERING:
        save_file(cluster(name), folder / f"clusters-{name}-{rank}.safetensors")
    save_file(check_primitives(rank, world_size), folder / f"primitives-{rank}.safetensors")


def cluster(name):
    """What `begin_epoch` makes of the features of a dataset, with an unreadable image, and what a step makes of that."""
    model = TEST_CLASSES[name]().model().double().train()
    model.begin_run(40)
    torch.manual_seed(7)
    weights = model.begin_epoch(Progress(0, 10, 5), table(unknown=[3]))
    if name == "odc":  # with clusters to dissolve and to split
        model.memory.labels[model.memory.labels == 0] = 1
    model.end_step(Progress(1, 10))
    return {"weights": weights, **{key: tensor.contiguous() for key, tensor in model.state_dict().items()}}


def check_primitives(rank, world_size):
    rows = torch.arange(3.0) + 10 * rank
    weights = torch.arange(3.0 * world_size)
    leaf = rows.clone().requires_grad_()
    ((rank + 1) * gather_with_gradient(leaf) * weights).sum().backward()
    summed = rows.clone().requires_grad_()
    ((rank + 1) * sum_with_gradient(summed)).sum().backward()
    batch = torch.arange(4.0)[:, None] + 4 * rank
    shuffled, order = shuffle_batch(batch)
    return {
        "gather": gather(rows),
        "broadcast": broadcast_(rows.clone()),
        "gather_grad": leaf.grad,
        "sum": sum_with_gradient(rows),
        "sum_grad": summed.grad,
        "shuffled": shuffled,
        "unshuffled": unshuffle_batch(shuffled, order),
    }


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """The results of all processes for all cases."""
    folder = tmp_path_factory.mktemp("processes")
    run_processes(run_process, 4, folder)
    return 4, folder


@pytest.mark.parametrize(("name", "with_resnet"), CASES)
def test_as_many_processes_as_one(processes, name, with_resnet):
    world_size, folder = processes
    torch.manual_seed(0)
    model = build_model(name, with_resnet)
    expected = run_steps(model, name, slice(None), model)
    for rank in range(world_size):
        results = load_file(folder / f"{name}-{with_resnet}-{rank}.safetensors")
        for key, value in expected.items():
            # A teacher's BatchNorm without synchronisation and such have statistics of their own.
            if key.startswith("state/") and "running" in key and not model.sync_batchnorm:
                continue
            error = (results[key] - value).norm()
            assert error <= 1e-5 * value.norm() + 1e-9, f"{key} on process {rank}: {error} of {value.norm()}"


@pytest.mark.parametrize("name", CLUSTERING)
def test_as_many_processes_cluster_as_one(processes, name):
    world_size, folder = processes
    expected = cluster(name)
    assert (expected["memory.labels"] >= 0).sum() == 39 and len(expected["memory.labels"].unique()) == 5
    for rank in range(world_size):
        results = load_file(folder / f"clusters-{name}-{rank}.safetensors")
        assert results.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.allclose(results[key], value, rtol=1e-12, atol=1e-14), f"{key} on process {rank}"


def test_primitives(processes):
    world_size, folder = processes
    results = [load_file(folder / f"primitives-{rank}.safetensors") for rank in range(world_size)]
    everything = torch.cat([torch.arange(3.0) + 10 * rank for rank in range(world_size)])
    factor = sum(range(1, world_size + 1))
    for rank, result in enumerate(results):
        assert torch.equal(result["gather"], everything)
        assert torch.equal(result["broadcast"], torch.arange(3.0))
        assert torch.equal(result["gather_grad"], factor * torch.arange(3.0 * rank, 3.0 * rank + 3))
        assert torch.equal(result["sum"], sum(torch.arange(3.0) + 10 * r for r in range(world_size)))
        assert torch.equal(result["sum_grad"], torch.full((3,), float(factor)))
        assert torch.equal(result["unshuffled"], torch.arange(4.0)[:, None] + 4 * rank)
    shuffled = torch.cat([result["shuffled"] for result in results]).flatten()
    assert torch.equal(shuffled.sort().values, torch.arange(4.0 * world_size))
    assert not torch.equal(shuffled, torch.arange(4.0 * world_size))
