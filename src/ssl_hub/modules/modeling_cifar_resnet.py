"""The ResNet for images of about 32 pixels, as in the CIFAR-10 experiments of SimCLR (arXiv 2002.05709, appendix B.9)."""

import torch
from torch import nn
from transformers.models.resnet.modeling_resnet import ResNetConvLayer, ResNetModel

from .configuration_cifar_resnet import CifarResNetConfig


class CifarResNetEmbeddings(nn.Module):
    """A 3x3 convolution of stride 1, and no max-pooling."""

    def __init__(self, config: CifarResNetConfig):
        super().__init__()
        self.embedder = ResNetConvLayer(
            config.num_channels, config.embedding_size, kernel_size=3, stride=1, activation=config.hidden_act
        )

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.embedder(pixel_values)


class CifarResNetModel(ResNetModel):
    """A `ResNetModel` whose first layer keeps the resolution: a ResNet-18 makes 4 x 4 positions of 32 x 32 pixels.

    No model of transformers or timm can be configured to this, so its checkpoint needs `import ssl_hub` to be loaded.
    """

    config_class = CifarResNetConfig

    def __init__(self, config: CifarResNetConfig):
        super().__init__(config)
        self.embedder = CifarResNetEmbeddings(config)
        self.post_init()
