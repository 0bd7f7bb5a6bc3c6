"""What an algorithm remembers of earlier batches. Saved with the model, and the same on every process."""

import torch
from torch import nn

from ..distributed import gather
from .losses import normalize


class Queue(nn.Module):
    """A first-in-first-out queue of unit vectors, from MoCo (arXiv 1911.05722). It begins with random ones.

    Buffers: `vectors` `(size, dim)` and `pointer` `()`, the row that is written next.
    """

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.register_buffer("vectors", torch.zeros(size, dim))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    def random_vectors(self) -> torch.Tensor:
        return normalize(torch.randn_like(self.vectors))

    @torch.no_grad()
    def enqueue(self, vectors: torch.Tensor) -> None:
        """Writes the vectors `(B, dim)` of all processes over the oldest ones."""
        vectors = gather(vectors.to(self.vectors.dtype))
        size, batch_size = len(self.vectors), len(vectors)
        if size % batch_size != 0:
            sizes = [n for n in range(batch_size, 0, -1) if size % n == 0][:1]
            sizes += [n for n in range(batch_size + 1, size + 1) if size % n == 0][:1]
            raise ValueError(
                f"the queue's size {size} must be a multiple of the batch size of all processes, {batch_size}; batch "
                f"sizes near it that divide it: {', '.join(map(str, sizes))}. Or set queue_size to "
                f"{max(size // batch_size, 1) * batch_size}."
            )
        rows = torch.arange(batch_size, device=self.pointer.device) + self.pointer
        self.vectors[rows] = vectors
        self.pointer.copy_((self.pointer + batch_size) % size)
