"""Projectors and predictors that several algorithms share. They take pooled features `(B, D)`."""

from typing import Literal

import torch
from torch import nn

from ..configuration_utils import ProjectorConfig


class NonLinearNeck(nn.Module):
    """Linear layers `fc0`, `fc1`, ... with BatchNorm `bn0`, `bn1`, ... after them and ReLU in between.

    Args:
        bias: whether the linear layers before the last one have a bias.
        last_bias: whether the last one has.
        last_batchnorm: whether BatchNorm follows the last one.
        last_batchnorm_affine: whether that BatchNorm has weight and bias.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        num_layers: int = 2,
        *,
        bias: bool = False,
        last_bias: bool = False,
        last_batchnorm: bool = True,
        last_batchnorm_affine: bool = True,
    ):
        super().__init__()
        self.num_layers = num_layers
        sizes = [input_size] + [hidden_size] * (num_layers - 1) + [output_size]
        for index in range(num_layers):
            last = index == num_layers - 1
            self.add_module(f"fc{index}", nn.Linear(*sizes[index : index + 2], bias=last_bias if last else bias))
            if not last or last_batchnorm:
                affine = last_batchnorm_affine if last else True
                self.add_module(f"bn{index}", nn.BatchNorm1d(sizes[index + 1], affine=affine))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        for index in range(self.num_layers):
            if index > 0:
                features = features.relu()
            features = self.get_submodule(f"fc{index}")(features)
            if hasattr(self, f"bn{index}"):
                features = self.get_submodule(f"bn{index}")(features)
        return features


def build_nonlinear_neck(
    config: ProjectorConfig, role: Literal["projection", "predictor"], input_size: int
) -> NonLinearNeck:
    """The projector or the predictor that the fields `projection_...` or `predictor_...` describe.

    Args:
        config: for a predictor, a `PredictorConfig`.
    """
    options = ("num_layers", "bias", "last_bias", "last_batchnorm", "last_batchnorm_affine")
    return NonLinearNeck(
        input_size,
        getattr(config, f"{role}_hidden_size"),
        config.projection_size,
        **{option: getattr(config, f"{role}_{option}") for option in options},
    )
