"""SimMIM: A Simple Framework for Masked Image Modeling (arXiv 2111.09886).

Most of an image's patches are replaced by a mask token, an ordinary Swin or ViT encodes all of them, and one linear
layer predicts the pixels of those that were masked. In the order of the computation: encoders, decoder, loss, and the
model that holds them.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.models.swin.modeling_swin import (
    SwinEmbeddings,
    SwinEncoder,
    SwinModel,
    SwinRelativePositionBias,
)
from transformers.models.vit.modeling_vit import ViTEmbeddings, ViTModel

from ...modeling_masked_image import MaskedPatchModel
from ...modeling_outputs import ReconstructionOutput, SSLLossOutput
from ...modeling_utils import SSLForImageClassification
from ...modules.backbones import PlainCheckpointMixin, explain_failure
from ...modules.losses import reconstruction_loss
from ...modules.masking import pixel_mask
from .configuration_simmim import SimMIMConfig


@torch.no_grad()
def _init_simmim_weights(module: nn.Module) -> None:
    """Where the authors' initialisation differs from transformers', which has zeros for token and tables."""
    if isinstance(module, SwinEmbeddings | ViTEmbeddings):
        for parameter in (module.mask_token, module.position_embeddings):
            if parameter is not None:
                init.trunc_normal_(parameter, std=0.02)
    elif isinstance(module, SwinRelativePositionBias):
        init.trunc_normal_(module.relative_position_bias_table, std=0.02)
    elif isinstance(module, nn.Conv2d):  # as torch does it
        init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        bound = 1 / math.sqrt(module.weight[0].numel())
        init.uniform_(module.bias, -bound, bound)


class SimMIMSwinEncoder(SwinEncoder):
    def _init_weights(self, module):
        super()._init_weights(module)
        _init_simmim_weights(module)


class SimMIMSwinModel(PlainCheckpointMixin, SwinModel):
    """A `SwinModel` whose features depend on nothing but its input, with the same checkpoint.

    transformers' model turns off the shift of windows that are as large as their feature map for good, also for larger
    images that come later, and fails where windows are larger. Here such a map is padded to the window's size. After
    `save_pretrained`, `SwinModel` computes the same for images of `config.image_size`: when it is called with
    `always_partition=True` if this has `pad_small_maps`, and without otherwise.

    Args:
        config: a `SwinConfig`.
        pad_small_maps: see [`SimMIMConfig`].
        use_mask_token: whether there is a mask token.
    """

    def __init__(self, config, pad_small_maps: bool = False, use_mask_token: bool = True):
        super().__init__(config, use_mask_token=use_mask_token)
        self.pad_small_maps = pad_small_maps
        self.encoder = SimMIMSwinEncoder(config, self.embeddings.patch_grid)  # it initialises itself
        self.post_init()

    def _init_weights(self, module):
        super()._init_weights(module)
        _init_simmim_weights(module)

    def forward(self, pixel_values, bool_masked_pos=None, interpolate_pos_encoding=False, **kwargs):
        smallest_side = math.ceil(min(pixel_values.shape[-2:]) / self.config.patch_size)
        for stage in self.encoder.layers:
            is_shifted = self.pad_small_maps or smallest_side > self.config.window_size
            for block in stage.blocks[1::2]:
                block.shift_size = self.config.window_size // 2 if is_shifted else 0
            smallest_side = math.ceil(smallest_side / 2)
        return super().forward(
            pixel_values,
            bool_masked_pos=bool_masked_pos,
            interpolate_pos_encoding=interpolate_pos_encoding,
            always_partition=True,
            **kwargs,
        )


class SimMIMViTModel(PlainCheckpointMixin, ViTModel):
    """A `ViTModel`, with learned positions, whose mask token starts as the authors' does."""

    def __init__(self, config, use_mask_token: bool = True):
        super().__init__(config, add_pooling_layer=False, use_mask_token=use_mask_token)

    def _init_weights(self, module):
        super()._init_weights(module)
        _init_simmim_weights(module)


def _build_backbone(config: SimMIMConfig, use_mask_token: bool = True) -> PreTrainedModel:
    if config.backbone_config.model_type == "swin":
        return SimMIMSwinModel(config.backbone_config, config.pad_small_maps, use_mask_token)
    return SimMIMViTModel(config.backbone_config, use_mask_token)


class SimMIMNeck(nn.Module):
    """Predicts all pixels from a feature map with one linear layer."""

    def __init__(self, hidden_size: int, encoder_stride: int, num_channels: int):
        super().__init__()
        self.encoder_stride = encoder_stride
        self.predict_pixels = nn.Conv2d(hidden_size, encoder_stride**2 * num_channels, kernel_size=1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """From features `(B, D, h, w)` to pixels `(B, C, h * encoder_stride, w * encoder_stride)`."""
        return F.pixel_shuffle(self.predict_pixels(features), self.encoder_stride)


class SimMIMHead(nn.Module):
    """The mean absolute error of the masked pixels."""

    def __init__(self, patch_size: int):
        super().__init__()
        self.patch_size = patch_size

    def forward(self, prediction: torch.Tensor, pixel_values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Computes the loss, in float32 whatever the input.

        Args:
            prediction, pixel_values: normalised pixels `(B, C, H, W)`.
            mask: `(B, num_patches)`, `True` (or 1) where a patch counts.
        """
        rows, columns = (size // self.patch_size for size in pixel_values.shape[-2:])
        mask = pixel_mask(mask, (rows, columns), self.patch_size)
        return reconstruction_loss(prediction, pixel_values, mask, power=1, eps=1e-5)


class SimMIMModel(MaskedPatchModel):
    """SimMIM (arXiv 2111.09886): `backbone` encodes all patches, `neck` predicts all pixels, `head` is the loss."""

    config_class = SimMIMConfig

    def __init__(self, config: SimMIMConfig):
        super().__init__(config)
        with explain_failure(config.backbone_config):
            self.backbone = _build_backbone(config)
        self.neck = SimMIMNeck(config.backbone_config.hidden_size, config.encoder_stride, config.num_channels)
        self.head = SimMIMHead(config.patch_size)
        self.post_init()

    def loss(self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None = None) -> SSLLossOutput:
        """`mode="loss"`: the reconstruction error of the masked patches.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised images, of any size that the encoder's stride divides.
            bool_masked_pos (`torch.BoolTensor` of shape `(batch_size, num_patches)`, *optional*):
                `True` where a patch is masked, patches row by row; drawn as `config` says when not given.
        """
        prediction, mask = self._reconstruct(pixel_values, bool_masked_pos)
        loss = self.head(prediction, pixel_values, mask)
        return SSLLossOutput(loss=loss, losses={"reconstruction": loss.detach()})

    @torch.no_grad()
    def predict(self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None = None) -> ReconstructionOutput:
        """`mode="predict"`: the reconstruction in pixels. Takes what `mode="loss"` takes."""
        prediction, mask = self._reconstruct(pixel_values, bool_masked_pos)
        return self.reconstruction_output(pixel_values, prediction, mask)

    def _reconstruct(self, pixel_values, bool_masked_pos):
        """Normalised pixels `(B, C, H, W)`, and the mask."""
        mask, stride = self.patch_mask(pixel_values, bool_masked_pos), self.config.encoder_stride
        rows, columns = (size // stride for size in pixel_values.shape[-2:])
        if pixel_values.shape[-2:] != (rows * stride, columns * stride):
            raise ValueError(
                f"height and width of the images must be multiples of {stride}, the stride of the backbone's last feature "
                f"map; got {pixel_values.shape[-2]} x {pixel_values.shape[-1]}"
            )
        images = pixel_values.to(self.backbone.dtype)
        tokens = self.backbone(images, bool_masked_pos=mask, interpolate_pos_encoding=True).last_hidden_state
        patches = tokens[:, -rows * columns :]  # a ViT's class token comes first
        return self.neck(patches.transpose(1, 2).unflatten(2, (rows, columns))), mask


class SimMIMForImageClassification(SSLForImageClassification):
    """SimMIM's encoder, without its mask token, with a linear classifier on its pooled features."""

    config_class = SimMIMConfig
    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012 - transformers' name and type
        *SSLForImageClassification._keys_to_ignore_on_load_unexpected,
        r"^backbone\.embeddings\.mask_token$",
    ]

    def build_backbone(self, config: SimMIMConfig) -> PreTrainedModel:
        return _build_backbone(config, use_mask_token=False)
