"""Checkpoints of transformers' own pretraining models, `ViTMAEForPreTraining` and those for masked-image modelling."""

from pathlib import Path

from transformers import AutoConfig, AutoModelForMaskedImageModeling, AutoModelForPreTraining, PreTrainedModel

from ..pretrained import load_pretrained
from ..printing import name_some
from .renaming import Layout, under

LAYOUTS = [
    Layout(
        "transformers",
        "mae",
        [
            ("vit.*", "backbone.*"),
            *under(
                "decoder.",
                "neck.",
                [
                    ("decoder_embed.", "embed."),
                    ("mask_token", "mask_token"),
                    ("decoder_pos_embed", "position_embeddings"),
                    ("decoder_layers.{}.*", "layers.{}.*"),
                    ("decoder_norm.", "layernorm."),
                    ("decoder_pred.", "predict_pixels."),
                ],
            ),
        ],
    ),
    *(
        Layout(
            "transformers",
            "simmim",
            [
                # Not all at once: on the way back a ViT is to have no place in a Swin's.
                *((f"{backbone}.{part}.*", f"backbone.{part}.*") for part in ("embeddings", layers, "layernorm")),
                ("decoder.0.", "neck.predict_pixels."),
            ],
        )
        for backbone, layers in (("swin", "encoder"), ("vit", "layers"))
    ),
]


def load_model(name_or_path: str | Path) -> PreTrainedModel:
    """A model in a folder or on the Hub. transformers has to load it: its files of older versions, and those for older
    versions, have other names.

    Raises:
        OSError: there is no such model.
        ValueError: the model is damaged, none of those for pretraining, or lacks a part.
    """
    config = load_pretrained(AutoConfig, name_or_path)
    auto_class = AutoModelForPreTraining if config.model_type == "vit_mae" else AutoModelForMaskedImageModeling
    model, info = load_pretrained(auto_class, name_or_path, output_loading_info=True)
    if info["missing_keys"]:
        raise ValueError(f"{name_or_path} lacks {name_some(sorted(info['missing_keys']))} of a {type(model).__name__}")
    return model
