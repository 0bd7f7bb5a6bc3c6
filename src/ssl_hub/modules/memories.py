"""What an algorithm remembers of earlier batches. Saved with the model, and the same on every process."""

import torch
from torch import nn

from ..distributed import broadcast_, gather
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


class InstanceMemory(nn.Module):
    """A unit vector for every image of a dataset, an average of its latest features (arXiv 1805.01978).

    Buffer: `features` `(num_samples, dim)`, row i is image i; without a row until `start` says how many there are.

    Args:
        momentum: weight of the NEW feature in the average, in (0, 1].
    """

    def __init__(self, num_samples: int, dim: int, momentum: float):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("features", torch.zeros(num_samples, dim))

    @torch.no_grad()
    def start(self, num_samples: int) -> None:
        """Begins anew with random unit vectors, the same on every process; none at all for 0 samples."""
        features = self.features
        self.features = broadcast_(normalize(features.new_empty(num_samples, features.shape[1]).normal_()))

    def check_indices(self, indices: torch.Tensor, batch_size: int) -> None:
        """Raises `ValueError` unless `indices` `(B,)` are rows of the memory, one for each image of the batch."""
        num_samples = len(self.features)
        if num_samples == 0:
            raise ValueError(
                "the memory has no rows yet: call model.begin_run(num_samples), with the number of images of the "
                "dataset, before training"
            )
        if indices.shape != (batch_size,) or indices.is_floating_point():
            raise ValueError(
                f"indices must be the {batch_size} rows of the images in the dataset, whole numbers of the shape "
                f"({batch_size},); got {indices.dtype} of the shape {tuple(indices.shape)}"
            )
        in_memory = ((indices >= 0) & (indices < num_samples)).all()
        if torch.compiler.is_compiling():
            torch._assert_async(in_memory, "indices outside the memory")
        elif not in_memory:
            raise ValueError(
                f"indices must lie in [0, {num_samples}), the memory's {num_samples} images; got "
                f"{int(indices.min())} to {int(indices.max())}. Was model.begin_run called with the size of this dataset?"
            )

    @torch.no_grad()
    def update(self, indices: torch.Tensor, features: torch.Tensor) -> None:
        """Moves the rows `(B,)` of all processes towards their new features `(B, dim)`.

        Of an image that is there twice, the last feature counts.
        """
        indices, features = gather(indices), gather(normalize(features.to(self.features.dtype)))
        moved = normalize(self.features[indices].lerp(features, self.momentum))
        # All rows of an image write the same: which of them a device writes last is not defined.
        positions = torch.arange(len(indices), device=indices.device)
        last = ((indices[:, None] == indices) * positions).amax(dim=1)
        self.features[indices] = moved[last]

    def _load_from_state_dict(self, state_dict, prefix, *args):
        saved = state_dict.get(f"{prefix}features", self.features)
        if saved.shape != self.features.shape:
            *_, error_msgs = args
            error_msgs.append(
                f"its memory holds {saved.shape[0]} images x {saved.shape[1]} features and this run's "
                f"{' x '.join(map(str, self.features.shape))}. A run resumes with the dataset that it began with; to "
                "train on another one, start from the weights with --model_name_or_path"
            )
        else:
            super()._load_from_state_dict(state_dict, prefix, *args)
