"""RotationPred's configuration."""

from typing import ClassVar

from ...configuration_utils import SSLConfig


class RotationPredConfig(SSLConfig):
    r"""Configuration of [`RotationPredModel`]. The defaults are MMSelfSup's ResNet-50 on ImageNet."""

    model_type = "rotationpred"
    paper: ClassVar[str] = "Unsupervised Representation Learning by Predicting Image Rotations, arXiv 1803.07728"
