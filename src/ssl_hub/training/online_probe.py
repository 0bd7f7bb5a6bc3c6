"""A linear classifier that is trained beside a model, on what the model makes of the run's own batches."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from ..distributed import gather
from ..evaluation.features import evaluation_mode
from ..modeling_utils import SSLModel
from .checkpointing import load_optimizer_state, optimizer_state


class OnlineProbe:
    """Trains a linear classifier on detached features of the batches of a pretraining run.

    The features are those that an evaluation sees: pooled ones of a whole image, here of its first view, by the model in
    eval mode. That takes a forward pass of its own, without a gradient. What the backbone computes for the loss would do
    for some algorithms only: others turn, cut or mask the images first.

    The features of an image are centred and L2-normalised, so that one learning rate does for every backbone. Unlike
    BatchNorm that needs no statistics, which would follow the other images of the batch and of the other processes.

    The run is left alone. The classifier begins at zero, so it draws nothing; its gradient is computed apart from the
    model's; and its state is no part of the model.

    Args:
        labels: of the training images `(N,)`, class indices.
        num_classes: at least the largest label and one.
        learning_rate: of SGD with momentum 0.9.
        chunk_size: images a forward pass.
        device: where the batches are.
    """

    def __init__(
        self, labels: torch.Tensor, num_classes: int, learning_rate: float, chunk_size: int, device: torch.device
    ):
        self.labels, self.num_classes, self.learning_rate = labels.to(device), num_classes, learning_rate
        self.chunk_size, self.device = chunk_size, device
        self.classifier: nn.Linear | None = None  # until the width of the features is known

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Class scores `(N, num_classes)` of features `(N, D)`, on the CPU."""
        with torch.no_grad():
            return torch.cat([self._scores(rows.to(self.device)).cpu() for rows in features.split(self.chunk_size)])

    def observe(self, model: SSLModel, pixel_values: torch.Tensor | Sequence[torch.Tensor], indices, share: float):
        """Adds a batch to the gradient of the step that is under way.

        Args:
            pixel_values: normalised images `(B, C, H, W)`, or a list of views of which the first counts.
            indices: `(B,)`, the rows that they show.
            share: of the batch in the step.
        """
        images = pixel_values if isinstance(pixel_values, torch.Tensor) else pixel_values[0]
        with evaluation_mode(model):
            features = torch.cat([model(chunk).pooler_output for chunk in images.split(self.chunk_size)]).float()
        if self.classifier is None:
            self._begin(features.shape[1])
        loss = cross_entropy(self._scores(features), self.labels[indices])
        (loss * share).backward()

    def step(self) -> None:
        """Ends an optimizer step, with the mean of the gradients of all processes."""
        for parameter in self.classifier.parameters():
            parameter.grad = gather(parameter.grad[None]).mean(dim=0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state(self) -> dict[str, torch.Tensor]:
        """What a resumed run continues with."""
        if self.classifier is None:
            return {}
        return {**self.classifier.state_dict(), **optimizer_state(self.classifier, self.optimizer)}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Takes what `state` returned.

        Raises:
            ValueError: it is of another number of classes.
        """
        num_classes, width = state["weight"].shape
        if num_classes != self.num_classes:
            raise ValueError(
                f"the online probe in the checkpoint has {num_classes} classes and the images of this run "
                f"{self.num_classes}: leave the evaluation 'online_probe' out, or resume with the same labels"
            )
        self._begin(width)
        parameters = dict(self.classifier.named_parameters())
        self.classifier.load_state_dict({name: state[name] for name in parameters})
        load_optimizer_state(
            self.classifier, self.optimizer, {name: value for name, value in state.items() if name not in parameters}
        )

    def _begin(self, width: int) -> None:
        classifier = nn.utils.skip_init(nn.Linear, width, self.num_classes, device=self.device, dtype=torch.float32)
        with torch.no_grad():
            for parameter in classifier.parameters():
                parameter.zero_()
        self.classifier = classifier
        self.optimizer = torch.optim.SGD(classifier.parameters(), lr=self.learning_rate, momentum=0.9)

    def _scores(self, features: torch.Tensor) -> torch.Tensor:
        return self.classifier(normalize(features - features.mean(dim=1, keepdim=True)))
