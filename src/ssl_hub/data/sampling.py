"""Which rows make which batch: the order of an epoch, and each process's part of it."""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import datasets
import numpy as np
import torch
from torch.utils.data import Sampler

# The second word of the entropy that orders are seeded with, so that no two random streams of a run share a seed: that
# of views is another word, the trainer's are small numbers.
_ORDER_STREAM = int.from_bytes(b"orde", "big")
# Stands for the epoch of views that belong to none.
NO_EPOCH = 2**32 - 1


class ViewKey(NamedTuple):
    """What the views of a sample are drawn from: the `repeat`-th time that `epoch` shows `index`, counted from 0."""

    epoch: int
    index: int
    repeat: int = 0
    row: dict | None = None  # of a stream, whose rows cannot be looked up


class _BatchSampler(Sampler[list[ViewKey]]):
    """What the two batch samplers share: who gets which part of a batch, and the place to start."""

    def __init__(self, batch_size: int, seed: int, num_processes: int, process_index: int):
        if batch_size < 1 or seed < 0 or not 0 <= process_index < num_processes:
            raise ValueError(
                "batch_size must be at least 1, seed at least 0 and process_index below num_processes, got "
                f"{batch_size=}, {seed=}, {process_index=}, {num_processes=}."
            )
        self.seed = seed
        self.global_batch_size = batch_size * num_processes
        self.part = slice(process_index * batch_size, (process_index + 1) * batch_size)
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start_batch: int = 0, weights: torch.Tensor | None = None) -> None:
        """Let the next iteration be that of `epoch`, without its first `start_batch` batches.

        Args:
            weights: `(N,)`, one a row, at least 0. As many rows as the dataset has are drawn with replacement, in
                proportion to them. Without weights every row is shown once.

        Raises:
            ValueError: The weights do not fit the dataset, are not finite, negative, or all 0.
        """
        self.epoch = epoch
        self.start_batch = start_batch
        self.probabilities = None if weights is None else self._check_weights(weights)

    def _check_weights(self, weights: torch.Tensor) -> np.ndarray:
        raise NotImplementedError

    def _too_small(self, num_rows: int) -> ValueError:
        return ValueError(
            f"The dataset has {num_rows} rows, fewer than the {self.global_batch_size} of a batch (of all processes). "
            "Make the batch smaller or the dataset larger."
        )


class EpochBatchSampler(_BatchSampler):
    """The keys of this process's part of each batch, in an order drawn from (seed, epoch)."""

    def __init__(self, num_rows: int, batch_size: int, seed: int, num_processes: int = 1, process_index: int = 0):
        super().__init__(batch_size, seed, num_processes, process_index)
        if num_rows < self.global_batch_size:
            raise self._too_small(num_rows)
        self.num_rows = num_rows

    def __len__(self) -> int:
        """Batches of a whole epoch, `start_batch` or not."""
        return self.num_rows // self.global_batch_size

    def __iter__(self) -> Iterator[list[ViewKey]]:
        epoch, first = self.epoch, self.start_batch
        generator = np.random.default_rng([self.seed, _ORDER_STREAM, epoch])
        if self.probabilities is None:
            order, repeats = generator.permutation(self.num_rows), np.zeros(self.num_rows, dtype=int)
        else:
            order = generator.choice(self.num_rows, self.num_rows, p=self.probabilities)
            repeats = _count_earlier(order)
        for batch in range(first, len(self)):
            start = batch * self.global_batch_size
            part = slice(start + self.part.start, start + self.part.stop)
            yield [ViewKey(epoch, *key) for key in zip(order[part].tolist(), repeats[part].tolist(), strict=True)]

    def _check_weights(self, weights: torch.Tensor) -> np.ndarray:
        weights = torch.as_tensor(weights).detach().cpu().double()
        if weights.shape != (self.num_rows,):
            raise ValueError(
                f"Sampling weights must be one number a row of the dataset, ({self.num_rows},); got {tuple(weights.shape)}."
            )
        wrong = (~weights.isfinite() | (weights < 0)).nonzero().flatten()
        if len(wrong) > 0 or weights.sum() == 0:
            found = f"{weights[wrong[0]].item()} for row {wrong[0].item()}" if len(wrong) > 0 else "nothing but 0"
            raise ValueError(f"Sampling weights must be finite, at least 0, and not all 0; got {found}.")
        return (weights / weights.sum()).numpy()


def _count_earlier(order: np.ndarray) -> np.ndarray:
    """How often each entry came up before."""
    by_value = np.argsort(order, kind="stable")
    ordered = order[by_value]
    earlier = np.empty_like(order)
    earlier[by_value] = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return earlier


class StreamBatchSampler(_BatchSampler):
    """The keys of this process's part of each batch of a shuffled stream.

    The row travels in the key: the stream is read once, here, and the workers decode. `index` is the row's place in the
    shuffled stream. Every process reads the whole stream.
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        batch_size: int,
        seed: int,
        num_processes: int = 1,
        process_index: int = 0,
        *,
        shuffle_buffer_size: int = 10_000,
    ):
        super().__init__(batch_size, seed, num_processes, process_index)
        self.stream = dataset.shuffle(seed=seed, buffer_size=shuffle_buffer_size)

    def __iter__(self) -> Iterator[list[ViewKey]]:
        epoch, first = self.epoch, self.start_batch
        self.stream.set_epoch(epoch)
        rows = islice(enumerate(self.stream), first * self.global_batch_size, None)
        batch = list(islice(rows, self.global_batch_size))
        if first == 0 and len(batch) < self.global_batch_size:
            raise self._too_small(len(batch))
        while len(batch) == self.global_batch_size:
            yield [ViewKey(epoch, index, row=row) for index, row in batch[self.part]]
            batch = list(islice(rows, self.global_batch_size))

    def _check_weights(self, weights: torch.Tensor) -> np.ndarray:
        raise ValueError("Sampling weights need a dataset with rows by index: load it with streaming=False.")
