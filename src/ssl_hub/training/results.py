"""What a finished run leaves behind for its readers: the model to share, pictures, the card."""

from pathlib import Path

import torch
from transformers import BaseImageProcessor

from ..data.loading import build_eval_loader
from ..data.processing import Normalize
from ..hub.model_card import build_model_card
from ..hub.publishing import save_for_sharing
from ..modeling_outputs import ReconstructionOutput
from ..modeling_utils import SSLModel
from ..visualization.curves import plot_training_curves
from ..visualization.reconstruction import plot_reconstruction


def write_results(
    model: SSLModel,
    image_processor: BaseImageProcessor,
    output_dir: Path,
    *,
    records: list[dict],
    picture_dataset=None,
    **card,
) -> None:
    """Writes the model, `curves.png`, `reconstruction.png` if the algorithm reconstructs images, and the card.

    Args:
        records: the lines of `metrics.jsonl`.
        picture_dataset: its first images are the picture's; None for no picture.
        card: for `build_model_card`.
    """
    save_for_sharing(model, image_processor, output_dir)
    plot_training_curves(output_dir / "metrics.jsonl", output_dir / "curves.png")
    has_reconstruction = picture_dataset is not None and _plot_reconstruction(
        model, image_processor, picture_dataset, output_dir / "reconstruction.png"
    )
    build_model_card(model.config, metrics=records, has_reconstruction=has_reconstruction, **card).save(
        output_dir / "README.md"
    )


def _plot_reconstruction(model: SSLModel, image_processor: BaseImageProcessor, dataset, path: Path) -> bool:
    """Draws eight images if the algorithm reconstructs images."""
    loader = build_eval_loader(dataset, image_processor, batch_size=min(8, len(dataset)))
    batches = (batch["pixel_values"] for batch in loader)
    pixel_values = next(batch for batch in batches if len(batch)).to(model.device)
    model.eval()
    with torch.no_grad():
        try:
            outputs = model(pixel_values, mode="predict")
        except NotImplementedError:  # a custom algorithm may do without
            return False
        finally:
            model.train()
    if not isinstance(outputs, ReconstructionOutput):
        return False
    normalize = Normalize(model.config.image_mean, model.config.image_std).to(model.device)
    plot_reconstruction(
        normalize.denormalize(pixel_values), outputs.masked_image, outputs.reconstruction, path, outputs.mask
    )
    return True
