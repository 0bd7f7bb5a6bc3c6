"""Processes that work together. Each is forked from one that has imported what takes seconds in a new process."""

import multiprocessing
import os
import socket
from collections.abc import Callable

import torch
import torch.multiprocessing

multiprocessing.set_forkserver_preload(
    ["pytest", "timm", "transformers.trainer", "ssl_hub.classification.trainer", "ssl_hub.training.pretraining"]
)


def run_processes(function: Callable, num_processes: int, *args) -> None:
    """Calls `function(*args)` in processes that torch.distributed and Accelerate take for those of one run.

    Raises:
        torch.multiprocessing.ProcessRaisedException: it failed in one of them.
    """
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    torch.multiprocessing.start_processes(
        _run_process, (function, num_processes, port, args), num_processes, start_method="forkserver"
    )


def _run_process(rank: int, function: Callable, num_processes: int, port: int, args: tuple) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_processes)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    torch.set_num_threads(1)
    function(*args)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
