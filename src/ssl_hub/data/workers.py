"""Worker processes of loaders: what they do with signals, how they end, and what their errors say."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from torch.utils.data import DataLoader


def outlive_stop_signals(worker: int) -> None:
    """Keeps a worker at work when a terminal or a cluster signals every process of a run: the last step needs it.

    It ends with the process that started it, whose SIGTERM is the second one at the latest.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))


def close_loader(loader: DataLoader) -> None:
    """End the workers of a loader. Those that an exception leaves to the exit of Python take five seconds each."""
    if loader._iterator is not None:
        loader._iterator._shutdown_workers()
        loader._iterator = None


@contextmanager
def explain_worker_errors() -> Iterator[None]:
    """Turn what a loader's worker processes come to into one sentence: torch reports it as the text of a traceback.

    Raises:
        ChildProcessError: A worker was killed. Torch notices wherever the main process happens to be, so this goes around
            all that runs while a loader is open.
        ValueError, OSError: As the worker raised them.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise ChildProcessError(
            f"{str(error.__cause__ or error).strip()} Most likely memory ran out: the main memory, or the shared one "
            "(/dev/shm; `docker run --shm-size`). Give the run more or make --dataloader_num_workers or "
            "--per_device_train_batch_size smaller, and resume with --resume_from_checkpoint latest."
        ) from error
    except (ValueError, OSError) as error:
        if not str(error).startswith("Caught ") or "in DataLoader worker process" not in str(error):
            raise
        raise type(error)(str(error).strip().rpartition("\n")[2].partition(": ")[2]) from error
