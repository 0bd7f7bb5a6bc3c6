"""What a training loop tells a model about its run, and what the model tells the loop.

Whatever changes over a run (a teacher's momentum, temperatures, frozen prototypes) is a function of `Progress`, not a
counter that is saved: a resumed run needs no memory of it.
"""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Args:
        step: optimizer steps that are done.
        total_steps: optimizer steps of the whole run.
        steps_per_epoch: optimizer steps of one pass over the dataset; None for a stream, whose length is not known.
    """

    step: int
    total_steps: int
    steps_per_epoch: int | None = None

    @property
    def share(self) -> float:
        """The share of the run that is done, in [0, 1]."""
        return self.step / self.total_steps

    @property
    def epoch(self) -> float:
        """Passes over the dataset that are done, with a fraction."""
        if self.steps_per_epoch is None:
            raise ValueError(
                "this algorithm changes something at an epoch of its own, and a streamed dataset has no known epochs: "
                "load it without streaming, or set the epoch in the model's configuration to 0"
            )
        return self.step / self.steps_per_epoch


@dataclass(frozen=True)
class ParameterRule:
    """Settings of the optimizer for the parameters whose name a pattern matches.

    Args:
        pattern: a regular expression, searched for in the parameter's name.
        lr_scale: factor of the learning rate.
        weight_decay_scale: factor of the weight decay. By default biases, norms, tokens and position tables have none
            and all others the whole.
        momentum: of SGD and LARS (AdamW: the first beta), instead of the run's.
        constant_lr: whether the schedule leaves the learning rate alone.
        frozen_epochs: epochs at the beginning in which the parameters stay as they are.
    """

    pattern: str
    lr_scale: float = 1.0
    weight_decay_scale: float | None = None
    momentum: float | None = None
    constant_lr: bool = False
    frozen_epochs: float = 0.0


@dataclass
class FeatureTable:
    """Features of a whole dataset, the same on every process.

    Args:
        features (`torch.FloatTensor` of shape `(N, D)`): row i is image i of the dataset; zero where it is not known.
        known (`torch.BoolTensor` of shape `(N,)`): `False` where the image could not be read.
    """

    features: torch.Tensor
    known: torch.Tensor


def cosine_ramp(start: float, end: float, share: float) -> float:
    """From `start` to `end` along half a cosine, as `share` goes from 0 to 1."""
    return end - (end - start) * (math.cos(math.pi * share) + 1.0) / 2.0
