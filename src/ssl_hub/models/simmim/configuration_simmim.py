"""SimMIM's configuration."""

from typing import ClassVar, Literal

from transformers.models.swin.configuration_swin import SwinConfig

from ...configuration_utils import MaskedPatchConfig
from ...field_types import InnerShare

# Swin-B with windows of 6 for 192 pixels. The authors pretrain without stochastic depth, transformers' default has 0.1.
SWIN_BASE = {
    "model_type": "swin",
    "image_size": 192,
    "patch_size": 4,
    "embed_dim": 128,
    "depths": [2, 2, 18, 2],
    "num_heads": [4, 8, 16, 32],
    "window_size": 6,
    "drop_path_rate": 0.0,
}


class SimMIMConfig(MaskedPatchConfig):
    r"""Configuration of [`SimMIMModel`]. The defaults are the paper's Swin-B on ImageNet at 192 pixels.

    Args:
        backbone_config (`dict`, `SwinConfig` or `ViTConfig`, *optional*):
            A Swin, or a ViT (`model_type: vit`). Fields that a Swin's `dict` leaves out are those of Swin-B with windows
            of 6 at 192 pixels and no stochastic depth.
        pooling (`"cls"` or `"mean"`, *optional*, defaults to `"mean"`):
            What `pooler_output` is for a ViT. A Swin has no class token and gives the mean of its last map.
        mask_kind, mask_ratio, mask_cell_size (*optional*, default to `"aligned"`, 0.6 and 32):
            The masks, see [`MaskedPatchConfig`]: six tenths of the cells of 32 pixels, rounded up.
        pad_small_maps (`bool`, *optional*, defaults to `False`):
            For a Swin, whether a feature map smaller than the window is padded to the window's size, and windows as
            large as the map are shifted too. MMSelfSup's Swin-L, with windows of 12, is pretrained this way.
    """

    model_type = "simmim"
    paper: ClassVar[str] = "SimMIM: A Simple Framework for Masked Image Modeling, arXiv 2111.09886"

    backbone_types: ClassVar[tuple[str, ...]] = ("swin", "vit")

    pooling: Literal["cls", "mean"] = "mean"
    mask_kind: Literal["random", "aligned", "blockwise"] = "aligned"
    mask_ratio: InnerShare = 0.6
    pad_small_maps: bool = False

    def __post_init__(self, **kwargs):
        if isinstance(self.backbone_config, dict) and self.backbone_config.get("model_type", "swin") == "swin":
            self.backbone_config = {**SWIN_BASE, **self.backbone_config}
        super().__post_init__(**kwargs)
        backbone = self.backbone_config
        if self.image_size % self.encoder_stride != 0:
            raise ValueError(
                f"image_size must be a multiple of {self.encoder_stride}, the stride of the backbone's last feature map; "
                f"got {self.image_size}"
            )
        if backbone.model_type == "swin":
            smallest_map = self.image_size // self.encoder_stride
            if backbone.window_size > smallest_map and not self.pad_small_maps:
                raise ValueError(
                    f"windows of {backbone.window_size} are larger than the last feature map, {smallest_map} x "
                    f"{smallest_map}: make backbone_config.window_size at most {smallest_map}, or set pad_small_maps"
                )
        elif self.pad_small_maps:
            raise ValueError("pad_small_maps is for a Swin; a ViT has no windows")
        backbone.encoder_stride = self.encoder_stride

    @classmethod
    def default_backbone_config(cls) -> SwinConfig:
        return SwinConfig(**SWIN_BASE)

    @classmethod
    def default_backbone_fields(cls) -> dict:
        return {"model_type": "swin"}

    def attention_sizes(self) -> list[tuple[int, int]]:
        backbone = self.backbone_config
        if backbone.model_type != "swin":
            return super().attention_sizes()
        if backbone.window_size < 1:
            raise ValueError(f"window_size of a Swin must be at least 1, got {backbone.window_size}")
        if not 0 < len(backbone.depths) == len(backbone.num_heads):
            raise ValueError(
                f"depths and num_heads of a Swin need a number for each stage; got {backbone.depths} and "
                f"{backbone.num_heads}"
            )
        return [(backbone.embed_dim * 2**stage, heads) for stage, heads in enumerate(backbone.num_heads)]

    @property
    def backbone_note(self) -> str:
        note = "Call it with `always_partition=True`: its windows are larger than its smallest feature maps."
        return note if self.pad_small_maps else ""

    @property
    def encoder_stride(self) -> int:
        """Pixels between the positions of the backbone's last feature map."""
        backbone = self.backbone_config
        return backbone.patch_size * 2 ** (len(backbone.depths) - 1 if backbone.model_type == "swin" else 0)
