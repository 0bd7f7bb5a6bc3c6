"""CAE's configuration."""

from typing import ClassVar, Literal

from transformers.models.beit.configuration_beit import BeitConfig

from ...field_types import InnerShare, NonNegativeFloat, NonNegativeInt, PositiveInt, Probability
from ...modules.target_config import MaskedTargetConfig


class CAEConfig(MaskedTargetConfig):
    r"""Configuration of [`CAEModel`]. The defaults are MMSelfSup's ViT-B/16 on ImageNet at 224 pixels.

    Args:
        backbone_config (`dict` or `BeitConfig`, *optional*):
            A BEiT with a position table: a ViT with layer scale, and biases of queries and values only. Fields that a
            `dict` leaves out are those of CAE's ViT-B/16.
        pooling (`"cls"` or `"mean"`, *optional*, defaults to `"mean"`):
            `pooler_output`: the mean of the patch tokens, or the class token.
        mask_kind, mask_ratio, mask_cell_size (*optional*, default to `"blockwise"`, 75 / 196 and 32):
            The masks, see [`MaskedPatchConfig`]: rectangles, 75 of 196 patches. The authors mask 98.
        regressor_num_hidden_layers (`int`, *optional*, defaults to 4): Depth of the latent regressor.
        decoder_num_hidden_layers (`int`, *optional*, defaults to 4): Depth of the decoder.
        neck_num_attention_heads (`int`, *optional*): Attention heads of both; by default the backbone's.
        neck_intermediate_size (`int`, *optional*): Width of their MLPs; by default the backbone's.
        neck_layer_scale_init_value (`float`, *optional*, defaults to 0.1): Where their layer scale starts; 0 for none.
        cross_attention_bias (`bool`, *optional*, defaults to `True`):
            Whether the regressor's queries and values have biases.
        alignment_weight (`float`, *optional*, defaults to 2.0):
            Weight of the distance between regressed and encoded latent representations.
        teacher_momentum (`float`, *optional*, defaults to 0.0):
            Momentum of the encoder that these are encoded with; with 0 it is the encoder itself.
        target_type (`str`, *optional*, defaults to `"dalle"`): Tokens of DALL-E; see [`MaskedTargetConfig`].
        target_name_or_path (`str`, *optional*, defaults to `"facebook/flava-image-codebook"`): DALL-E's encoder.
    """

    model_type = "cae"
    paper: ClassVar[str] = "Context Autoencoder for Self-Supervised Representation Learning, arXiv 2202.03026"
    backbone_types: ClassVar[tuple[str, ...]] = ("beit",)

    pooling: Literal["cls", "mean"] = "mean"
    mask_kind: Literal["random", "aligned", "blockwise"] = "blockwise"
    mask_ratio: InnerShare = 75 / 196
    regressor_num_hidden_layers: PositiveInt = 4
    decoder_num_hidden_layers: NonNegativeInt = 4
    neck_num_attention_heads: PositiveInt | None = None
    neck_intermediate_size: PositiveInt | None = None
    neck_layer_scale_init_value: NonNegativeFloat = 0.1
    cross_attention_bias: bool = True
    alignment_weight: NonNegativeFloat = 2.0
    teacher_momentum: Probability = 0.0
    target_type: str = "dalle"
    target_name_or_path: str | None = "facebook/flava-image-codebook"

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        backbone = self.backbone_config
        needed = {
            "use_absolute_position_embeddings": True,
            "use_relative_position_bias": False,
            "use_shared_relative_position_bias": False,
            "use_mask_token": False,
            "use_mean_pooling": False,
        }
        wrong = [f"{name} {value}" for name, value in needed.items() if getattr(backbone, name) != value]
        if wrong:
            raise ValueError(
                "CAE's encoder has a table of fixed positions, no other positions, no mask token, and a norm after its "
                f"last layer: its backbone_config needs {', '.join(wrong)}"
            )
        if self.neck_num_attention_heads is None:
            self.neck_num_attention_heads = backbone.num_attention_heads
        if self.neck_intermediate_size is None:
            self.neck_intermediate_size = backbone.intermediate_size
        for heads in (backbone.num_attention_heads, self.neck_num_attention_heads):
            if backbone.hidden_size % 4 != 0 or backbone.hidden_size % heads != 0:
                raise ValueError(
                    "hidden_size must be a multiple of 4, for the sine-cosine position embeddings, and of the numbers "
                    f"of attention heads; got {backbone.hidden_size} and {heads} heads"
                )

    @classmethod
    def default_backbone_config(cls) -> BeitConfig:
        fields = cls.default_backbone_fields()
        del fields["model_type"]
        return BeitConfig(**fields)

    @classmethod
    def default_backbone_fields(cls) -> dict:
        return {
            "model_type": "beit",
            "use_absolute_position_embeddings": True,
            "use_mean_pooling": False,
            "layer_norm_eps": 1e-6,
            "drop_path_rate": 0.0,
        }

    def neck_config(self) -> BeitConfig:
        """The layers of regressor and decoder, as a BEiT's."""
        return BeitConfig(
            hidden_size=self.backbone_config.hidden_size,
            num_attention_heads=self.neck_num_attention_heads,
            intermediate_size=self.neck_intermediate_size,
            layer_scale_init_value=self.neck_layer_scale_init_value,
            layer_norm_eps=self.backbone_config.layer_norm_eps,
        )
