"""MAE: Masked Autoencoders Are Scalable Vision Learners (arXiv 2111.06377).

Three quarters of an image's patches are dropped, a ViT encodes the rest, and a light transformer reconstructs the
pixels of the dropped ones. In the order of the computation: encoder, decoder, loss, and the model that holds them.
"""

import math

import torch
from torch import nn
from transformers import initialization as init
from transformers.models.vit.modeling_vit import ViTAttention, ViTLayer, ViTMLP, ViTPreTrainedModel

from ...modeling_masked_image import MaskedTargetModel
from ...modeling_outputs import PatchPredictionOutput, ReconstructionOutput, SSLLossOutput
from ...modeling_utils import SSLForImageClassification
from ...modules.backbones import explain_failure
from ...modules.losses import reconstruction_loss, target_loss, to_float32
from ...modules.masking import patchify, take_patches, unpatchify
from ...modules.position_embeddings import resize_position_table
from ...modules.vit import FixedPositionViTEmbeddings, FixedPositionViTModel, init_sincos_positions
from .configuration_mae import MAEConfig


def _mark_linear_layers(model: nn.Module) -> None:
    """Notes on each linear layer what sets its initialisation apart.

    `_init_weights` has to do its work on the modules that own the tensors: when a checkpoint lacks some, transformers
    passes over modules without tensors of their own, such as an attention.
    """
    for module in model.modules():
        if isinstance(module, ViTAttention):
            for projection in (module.q_proj, module.k_proj, module.v_proj):
                projection.fan_out = 3 * projection.out_features
        elif isinstance(module, ViTMLP):
            module.fc1.bias_std = module.fc2.bias_std = 1e-6


@torch.no_grad()
def _init_mae_weights(module: nn.Module) -> None:
    """The paper's initialisation: Xavier uniform, with q, k and v taken as one matrix and the patch projection as a
    linear layer."""
    if isinstance(module, nn.Linear):
        bound = math.sqrt(6 / (module.in_features + getattr(module, "fan_out", module.out_features)))
        init.uniform_(module.weight, -bound, bound)
        if module.bias is not None:
            init.normal_(module.bias, std=getattr(module, "bias_std", 0.0))
    elif isinstance(module, nn.Conv2d):
        fan_in, fan_out = module.weight[0].numel(), module.out_channels
        bound = math.sqrt(6 / (fan_in + fan_out))
        init.uniform_(module.weight, -bound, bound)
        init.uniform_(module.bias, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
    elif isinstance(module, nn.LayerNorm):
        init.ones_(module.weight)
        init.zeros_(module.bias)
    elif isinstance(module, FixedPositionViTEmbeddings | MAEDecoder):
        is_encoder = isinstance(module, FixedPositionViTEmbeddings)
        init.normal_(module.cls_token if is_encoder else module.mask_token, std=0.02)
        init_sincos_positions(module)


class MAEViTModel(FixedPositionViTModel):
    """The encoder: a ViT with fixed positions that computes nothing for dropped patches."""

    def post_init(self):
        _mark_linear_layers(self)  # the constructor of ViTModel initialises already
        super().post_init()

    def _init_weights(self, module):
        _init_mae_weights(module)


class MAEDecoder(ViTPreTrainedModel):
    """Predicts the pixels of every patch, or another target, from the encoded visible patches.

    Args:
        config: the decoder's layers as a ViT's, see `MAEConfig.decoder_config`.
        encoder_hidden_size: width of the encoder's tokens.
        size: values that are predicted of a patch.
    """

    def __init__(self, config, encoder_hidden_size: int, size: int):
        super().__init__(config)
        num_patches = (config.image_size // config.patch_size) ** 2
        self.embed = nn.Linear(encoder_hidden_size, config.hidden_size)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.register_buffer("position_embeddings", torch.zeros(1, 1 + num_patches, config.hidden_size))
        self.layers = nn.ModuleList([ViTLayer(config) for _ in range(config.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.predict_pixels = nn.Linear(config.hidden_size, size)
        _mark_linear_layers(self)
        self.post_init()

    def _init_weights(self, module):
        _init_mae_weights(module)

    def forward(
        self, hidden_states: torch.Tensor, visible_patches: torch.Tensor, grid_size: tuple[int, int]
    ) -> torch.Tensor:
        """Decodes.

        Args:
            hidden_states: the encoder's `(B, 1 + V, encoder_hidden_size)`.
            visible_patches: indices `(B, V)` of its patches.
            grid_size: rows and columns of all patches, to which the positions are interpolated.

        Returns:
            `torch.Tensor`: pixels `(B, num_patches, patch_size**2 * C)`, or `(B, num_patches, size)` of another target.
        """
        hidden_states = self.embed(hidden_states)
        batch_size, _, width = hidden_states.shape
        patches = self.mask_token.to(hidden_states.dtype).expand(batch_size, math.prod(grid_size), -1)
        patches = patches.scatter(1, visible_patches[..., None].expand(-1, -1, width), hidden_states[:, 1:])
        hidden_states = torch.cat([hidden_states[:, :1], patches], dim=1)
        hidden_states = hidden_states + resize_position_table(self.position_embeddings, grid_size)
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return self.predict_pixels(self.layernorm(hidden_states))[:, 1:]


class MAEHead(nn.Module):
    """The masked mean squared error between predicted and true patches."""

    def __init__(self, patch_size: int, norm_pix_loss: bool):
        super().__init__()
        self.patch_size = patch_size
        self.norm_pix_loss = norm_pix_loss

    def patch_statistics(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation `(B, num_patches, 1)` by which the target is normalised."""
        if not self.norm_pix_loss:
            return patches.new_zeros(()), patches.new_ones(())
        return patches.mean(dim=-1, keepdim=True), (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()

    def forward(self, prediction: torch.Tensor, pixel_values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Computes the loss, in float32 at least: the variance of a patch underflows in half precision.

        Args:
            prediction: `(B, num_patches, patch_size**2 * C)`.
            pixel_values: the normalised images `(B, C, H, W)`.
            mask: `(B, num_patches)`, `True` (or 1) where a patch counts.
        """
        target = patchify(to_float32(pixel_values), self.patch_size)
        mean, std = self.patch_statistics(target)
        return reconstruction_loss(prediction, (target - mean) / std, mask[..., None], power=2)


class MAEModel(MaskedTargetModel):
    """MAE (arXiv 2111.06377): `backbone` encodes the visible patches, `neck` decodes all of them, `head` is the loss."""

    config_class = MAEConfig

    def __init__(self, config: MAEConfig):
        super().__init__(config)
        with explain_failure(config.backbone_config):
            self.backbone = MAEViTModel(config.backbone_config)
        decoder_config = config.decoder_config()
        decoder_config._attn_implementation = config._attn_implementation
        self.neck = MAEDecoder(decoder_config, config.backbone_config.hidden_size, self.target_generator.size)
        self.head = MAEHead(config.backbone_config.patch_size, config.norm_pix_loss)
        self.post_init()

    def loss(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        target_pixel_values: torch.Tensor | None = None,
    ) -> SSLLossOutput:
        """`mode="loss"`: the reconstruction error of the removed patches.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised images. Positions are interpolated to a size other than that of the backbone's configuration.
            bool_masked_pos (`torch.BoolTensor` of shape `(batch_size, num_patches)`, *optional*):
                `True` where a patch is removed, as many in every image (as `config` says, if the model is compiled);
                drawn as `config` says when not given.
            target_pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, target_height, target_width)`, *optional*):
                For targets that a network makes: the same crops as it takes them. Made from `pixel_values` when not
                given.
        """
        prediction, mask, masked_patches = self._reconstruct_patches(pixel_values, bool_masked_pos)
        if self.config.target_type == "pixels":
            loss = self.head(prediction, pixel_values, mask)
        else:
            target = self.masked_targets(pixel_values, target_pixel_values, masked_patches)
            loss = target_loss(take_patches(prediction, masked_patches), target)
        return SSLLossOutput(loss=loss, losses={"reconstruction": loss.detach()})

    @torch.no_grad()
    def predict(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        target_pixel_values: torch.Tensor | None = None,
    ) -> ReconstructionOutput | PatchPredictionOutput:
        """`mode="predict"`: the reconstruction in pixels, or what is predicted of the removed patches if that is
        something else. Takes what `mode="loss"` takes.

        With `norm_pix_loss` the model predicts normalised patches; mean and variance come from the image itself.
        """
        prediction, mask, masked_patches = self._reconstruct_patches(pixel_values, bool_masked_pos)
        if self.config.target_type != "pixels":
            target = self.masked_targets(pixel_values, target_pixel_values, masked_patches)
            prediction = take_patches(prediction, masked_patches)
            return self.prediction_output(pixel_values, prediction, target, mask, masked_patches)
        mean, std = self.head.patch_statistics(patchify(to_float32(pixel_values), self.config.patch_size))
        patches = to_float32(prediction) * std + mean
        pixels = unpatchify(patches, self.config.patch_size, self.config.num_channels, self.grid_size(pixel_values))
        return self.reconstruction_output(pixel_values, pixels, mask)

    def _reconstruct_patches(self, pixel_values, bool_masked_pos):
        mask, visible_patches, masked_patches = self.split_patches(pixel_values, bool_masked_pos)
        latent = self.backbone(pixel_values, visible_patches=visible_patches).last_hidden_state
        return self.neck(latent, visible_patches, self.grid_size(pixel_values)), mask, masked_patches


class MAEForImageClassification(SSLForImageClassification):
    """MAE's encoder with a linear classifier on its pooled features (`config.pooling`)."""

    config_class = MAEConfig

    def build_backbone(self, config: MAEConfig) -> MAEViTModel:
        return MAEViTModel(config.backbone_config)
