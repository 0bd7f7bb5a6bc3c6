"""What a finished run leaves behind for its readers: the model to share, pictures, the card."""

from pathlib import Path

from transformers import BaseImageProcessor

from ..hub.model_card import build_model_card
from ..hub.publishing import save_for_sharing
from ..modeling_utils import SSLModel
from .run_report import RunReport


def write_results(
    model: SSLModel,
    image_processor: BaseImageProcessor,
    output_dir: Path,
    *,
    records: list[dict],
    report: RunReport,
    **card,
) -> None:
    """Writes the model, the last state of the report with its pictures, and the card.

    Args:
        records: the lines of `metrics.jsonl`.
        card: for `build_model_card`.
    """
    with report.log.timed("saving"):
        save_for_sharing(model, image_processor, output_dir)
    report.end("finished")
    build_model_card(model.config, metrics=records, has_reconstruction=report.has_reconstruction, **card).save(
        output_dir / "README.md"
    )
