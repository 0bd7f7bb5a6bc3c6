"""CAE: Context Autoencoder for Self-Supervised Representation Learning (arXiv 2202.03026).

A ViT encodes the visible patches, a regressor predicts from them how it would encode the removed ones, and a decoder
makes visual tokens of that. In the order of the computation: encoder, regressor and decoder, loss, model.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.beit.modeling_beit import (
    BeitAttention,
    BeitEmbeddings,
    BeitLayer,
    BeitMLP,
    BeitModel,
    BeitPreTrainedModel,
    eager_attention_forward,
)
from transformers.utils.output_capturing import capture_outputs

from ...lifecycle import Progress
from ...modeling_masked_image import MaskedTargetModel
from ...modeling_outputs import SSLLossOutput
from ...modeling_utils import SSLForImageClassification
from ...modules.backbones import PlainCheckpointMixin, explain_failure
from ...modules.losses import in_float32, target_loss
from ...modules.masking import take_patches
from ...modules.teachers import MomentumTeacher
from ...modules.vit import init_sincos_positions
from .configuration_cae import CAEConfig


def _mark_attentions(model: nn.Module) -> None:
    """Notes on the linear layers of a self-attention that they count as one matrix when they are initialised.

    `_init_weights` has to do its work on the modules that own the tensors: when a checkpoint lacks some, transformers
    passes over modules without tensors of their own, such as an attention.
    """
    for module in model.modules():
        if isinstance(module, BeitAttention):
            for projection in (module.q_proj, module.k_proj, module.v_proj):
                projection.fan_out = 3 * projection.out_features


@torch.no_grad()
def _init_cae_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        bound = math.sqrt(6 / (module.in_features + getattr(module, "fan_out", module.out_features)))
        init.uniform_(module.weight, -bound, bound)
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        init.trunc_normal_(module.weight, std=0.02)
        init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        init.ones_(module.weight)
        init.zeros_(module.bias)
    elif isinstance(module, CAEEmbeddings):
        init.trunc_normal_(module.cls_token, std=0.02)
        init_sincos_positions(module)


class CAEEmbeddings(BeitEmbeddings):
    """BEiT's embeddings with positions that are not trained, and patches that can be dropped."""

    def __init__(self, config):
        super().__init__(config)
        # A buffer under the same name: the checkpoint stays a BEiT's, and loading one cannot make the table trainable.
        shape = self.position_embeddings.shape
        del self.position_embeddings
        self.register_buffer("position_embeddings", torch.zeros(shape))

    def patch_positions(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Positions `(1, num_patches, hidden_size)` of the patches of these images, interpolated to their size."""
        height, width = pixel_values.shape[-2:]
        num_patches = (height // self.patch_size) * (width // self.patch_size)
        tokens = self.position_embeddings.new_empty(1, 1 + num_patches, self.position_embeddings.shape[-1])
        return self.interpolate_pos_encoding(tokens, height, width)[:, 1:]

    def forward(self, pixel_values: torch.Tensor, visible_patches: torch.Tensor | None = None) -> torch.Tensor:
        embeddings = super().forward(pixel_values)
        if visible_patches is None:
            return embeddings
        return torch.cat([embeddings[:, :1], take_patches(embeddings[:, 1:], visible_patches)], dim=1)


class CAEEncoder(PlainCheckpointMixin, BeitModel):
    """A BEiT with fixed positions that computes nothing for dropped patches. Its checkpoint is a plain `BeitModel`'s."""

    def __init__(self, config):
        super().__init__(config, add_pooling_layer=False)
        self.embeddings = CAEEmbeddings(config)
        self.post_init()

    def post_init(self):
        _mark_attentions(self)  # the constructor of BeitModel initialises already
        super().post_init()

    def _init_weights(self, module):
        if isinstance(module, BeitLayer):
            super()._init_weights(module)  # layer scale
        else:
            _init_cae_weights(module)

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: torch.Tensor, visible_patches: torch.Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """Encodes images.

        Args:
            pixel_values: `(B, C, H, W)`; positions are interpolated to an `H` and `W` other than `config.image_size`.
            visible_patches: indices `(B, V)` of the patches to keep; all by default. Dropped ones cost nothing.

        Returns:
            `last_hidden_state` `(B, 1 + V, hidden_size)`, the class token first.
        """
        height, width = pixel_values.shape[-2:]
        patch_size = self.config.patch_size
        if height % patch_size != 0 or width % patch_size != 0:
            raise ValueError(
                f"the patch size {patch_size} must divide the height and width of the images; got {height} x {width}. "
                "Resize or crop them, as the model's image processor does."
            )
        pixel_values = pixel_values.to(self.embeddings.patch_embeddings.projection.weight.dtype)
        hidden_states = self.embeddings(pixel_values, visible_patches)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        return BaseModelOutputWithPooling(last_hidden_state=self.layernorm(hidden_states))


class CrossAttention(nn.Module):
    """Attention of some tokens to others, whose keys have no bias."""

    def __init__(self, config, bias: bool):
        super().__init__()
        self.config = config
        self.is_causal = False
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        queries, keys, values = (
            projection(tokens).unflatten(2, (-1, self.head_dim)).transpose(1, 2)
            for projection, tokens in ((self.q_proj, queries), (self.k_proj, keys), (self.v_proj, values))
        )
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attended, _ = attend(self, queries, keys, values, None, scaling=self.head_dim**-0.5)
        return self.o_proj(attended.flatten(2))


class RegressorLayer(GradientCheckpointingLayer):
    """The tokens of the removed patches look at all tokens."""

    def __init__(self, config, cross_attention_bias: bool):
        super().__init__()
        self.layernorm_query, self.layernorm_key, self.layernorm_value, self.layernorm_after = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) for _ in range(4)
        )
        self.attention = CrossAttention(config, cross_attention_bias)
        self.mlp = BeitMLP(config)
        self.layer_scale_init_value = config.layer_scale_init_value
        for name in ("lambda_1", "lambda_2"):
            scale = torch.ones(config.hidden_size)
            if self.layer_scale_init_value > 0:
                self.register_parameter(name, nn.Parameter(scale))
            else:
                # One, and not trained; MMSelfSup's checkpoints have it nevertheless.
                self.register_buffer(name, scale)

    def forward(
        self,
        tokens: torch.Tensor,
        context: torch.Tensor,
        token_positions: torch.Tensor,
        context_positions: torch.Tensor,
    ) -> torch.Tensor:
        """Updates `tokens` `(B, M, D)`, which are at `token_positions` `(B, M, D)`, from `context` `(B, L, D)`."""
        attended = self.attention(
            self.layernorm_query(tokens + token_positions),
            self.layernorm_key(context + context_positions),
            self.layernorm_value(context),
        )
        tokens = self.layernorm_after(tokens + self.lambda_1 * attended)
        return tokens + self.lambda_2 * self.mlp(tokens)  # the residual starts from the normalised tokens


class CAENeck(BeitPreTrainedModel):
    """The latent regressor and the decoder.

    Args:
        config: the layers as a BEiT's, see `CAEConfig.neck_config`.
        num_regressor_layers, num_decoder_layers: depths.
        size: values that are predicted of a patch.
        cross_attention_bias: whether the regressor's queries and values have biases.
    """

    def __init__(
        self, config, num_regressor_layers: int, num_decoder_layers: int, size: int, cross_attention_bias: bool = True
    ):
        super().__init__(config)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.regressor = nn.ModuleList(
            RegressorLayer(config, cross_attention_bias) for _ in range(num_regressor_layers)
        )
        self.regressor_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.ModuleList(BeitLayer(config) for _ in range(num_decoder_layers))
        self.decoder_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.predict_targets = nn.Linear(config.hidden_size, size)
        _mark_attentions(self)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        if module is self.predict_targets:
            init.trunc_normal_(module.weight, std=0.02)
            init.zeros_(module.bias)
        elif module is self:
            init.trunc_normal_(self.mask_token, std=0.02)
        elif isinstance(module, RegressorLayer):
            init.constant_(module.lambda_1, module.layer_scale_init_value or 1.0)
            init.constant_(module.lambda_2, module.layer_scale_init_value or 1.0)
        elif isinstance(module, BeitLayer):
            super()._init_weights(module)
        else:
            _init_cae_weights(module)

    def forward(
        self, visible: torch.Tensor, visible_positions: torch.Tensor, masked_positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predicts what is at the removed patches.

        Args:
            visible: the encoder's tokens `(B, V, D)` of the visible patches, without the class token.
            visible_positions, masked_positions: position embeddings `(B, V, D)` and `(B, M, D)`.

        Returns:
            Predictions `(B, M, size)`, and the latent representations `(B, M, D)` that they are made of.
        """
        positions = torch.cat([visible_positions, masked_positions], dim=1)
        latent = self.mask_token.to(visible.dtype).expand(masked_positions.shape)
        for layer in self.regressor:
            latent = layer(latent, torch.cat([visible, latent], dim=1), masked_positions, positions)
        latent = self.regressor_layernorm(latent)
        hidden_states = latent + masked_positions
        for layer in self.decoder:
            hidden_states = layer(hidden_states)
        return self.predict_targets(self.decoder_layernorm(hidden_states)), latent


@in_float32
def alignment_loss(latent: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The mean squared distance of regressed and encoded latent representations, which get no gradient."""
    return F.mse_loss(latent, target.detach())


class CAEModel(MaskedTargetModel):
    """CAE (arXiv 2202.03026): `backbone` encodes the visible patches, `teacher` the removed ones; `neck` is the latent
    regressor and the decoder."""

    config_class = CAEConfig

    def __init__(self, config: CAEConfig):
        super().__init__(config)
        with explain_failure(config.backbone_config):
            self.backbone = CAEEncoder(config.backbone_config)
        neck_config = config.neck_config()
        neck_config._attn_implementation = config._attn_implementation
        self.neck = CAENeck(
            neck_config,
            config.regressor_num_hidden_layers,
            config.decoder_num_hidden_layers,
            self.target_generator.size,
            config.cross_attention_bias,
        )
        self.teacher = MomentumTeacher(backbone=self.backbone)
        self.post_init()

    def loss(
        self,
        pixel_values: torch.Tensor,
        *,
        bool_masked_pos: torch.Tensor | None = None,
        target_pixel_values: torch.Tensor | None = None,
    ) -> SSLLossOutput:
        """`mode="loss"`: the error of the predicted targets, and the distance to the teacher's representations.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised images.
            bool_masked_pos (`torch.BoolTensor` of shape `(batch_size, num_patches)`, *optional*):
                `True` where a patch is removed, as many in every image (as `config` says, if the model is compiled);
                drawn as `config` says when not given.
            target_pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, target_height, target_width)`, *optional*):
                The same crops, of the size and normalised as the target generator takes them. Made from `pixel_values`
                when not given.
        """
        _, masked_patches, prediction, latent = self._predict_patches(pixel_values, bool_masked_pos)
        with torch.no_grad():
            encoded = self.teacher.backbone(pixel_values, masked_patches).last_hidden_state[:, 1:]
        target = self.masked_targets(pixel_values, target_pixel_values, masked_patches)
        main = target_loss(prediction, target)
        alignment = self.config.alignment_weight * alignment_loss(latent, encoded)
        return SSLLossOutput(loss=main + alignment, losses={"main": main.detach(), "alignment": alignment.detach()})

    def end_step(self, progress: Progress) -> None:
        # In the authors' code the teacher takes over the weights that the step started from: it is a step older.
        self.teacher.follow(self, self.config.teacher_momentum)

    def _predict_patches(self, pixel_values, bool_masked_pos):
        mask, visible_patches, masked_patches = self.split_patches(pixel_values, bool_masked_pos)
        visible = self.backbone(pixel_values, visible_patches).last_hidden_state[:, 1:]
        positions = self.backbone.embeddings.patch_positions(pixel_values).expand(len(pixel_values), -1, -1)
        visible_positions, masked_positions = (take_patches(positions, i) for i in (visible_patches, masked_patches))
        prediction, latent = self.neck(visible, visible_positions, masked_positions)
        return mask, masked_patches, prediction, latent


class CAEForImageClassification(SSLForImageClassification):
    """CAE's encoder with a linear classifier on its pooled features (`config.pooling`)."""

    config_class = CAEConfig

    def build_backbone(self, config: CAEConfig) -> CAEEncoder:
        return CAEEncoder(config.backbone_config)
