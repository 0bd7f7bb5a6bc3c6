"""BEiT v2's configuration."""

from typing import ClassVar

from ...field_types import PositiveInt
from ..beitv1.configuration_beitv1 import BEiTV1Config


class BEiTV2Config(BEiTV1Config):
    r"""Configuration of [`BEiTV2Model`]. The defaults are the paper's ViT-B/16 on ImageNet at 224 pixels.

    Args:
        backbone_config, pooling, mask_kind, mask_ratio, mask_cell_size: see [`BEiTV1Config`].
        target_type (`str`, *optional*, defaults to `"vqkd"`): Tokens of VQ-KD; see [`MaskedTargetConfig`].
        target_name_or_path (`str`, *optional*):
            Folder of the tokenizer, which has no repository on the Hub: `ssl_hub.conversion.microsoft.convert_tokenizer`
            makes it of the authors' file.
        early_layer (`int`, *optional*, defaults to 9):
            The layer whose patches the neck sees beside the class token of the last layer.
        neck_num_hidden_layers (`int`, *optional*, defaults to 2): Layers of the neck.
    """

    model_type = "beitv2"
    paper: ClassVar[str] = "BEiT v2: Masked Image Modeling with Vector-Quantized Visual Tokenizers, arXiv 2208.06366"

    target_type: str = "vqkd"
    target_name_or_path: str | None = None
    early_layer: PositiveInt = 9
    neck_num_hidden_layers: PositiveInt = 2

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        depth = self.backbone_config.num_hidden_layers
        if self.early_layer >= depth:
            raise ValueError(f"early_layer must be below the {depth} layers of the backbone; got {self.early_layer}")
