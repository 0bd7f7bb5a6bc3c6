"""The pictures of one model on one dataset that a report shows, each where the model and the images allow it."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import datasets
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import BaseImageProcessor

from ..data.datasets import is_remote
from ..data.images import decode_image
from ..data.processing import Normalize
from ..evaluation.base import LabelledFeatures
from ..model_loading import image_statistics
from .embeddings import plot_embedding_map, plot_neighbors, project_embeddings
from .patches import class_attention, patch_components, plot_attention, plot_patch_components

logger = logging.getLogger(__name__)

_MAX_MAPPED_IMAGES = 1000
_NUM_QUERIES = 8
_NUM_NEIGHBORS = 8


class RowImages(Sequence):
    """Images of some rows of a dataset, each decoded when it is asked for."""

    def __init__(self, dataset: datasets.Dataset, rows: Sequence[int]):
        self.dataset, self.rows, self.remote = dataset, rows, is_remote(dataset)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Image.Image:
        return decode_image(self.dataset[self.rows[index]]["image"], remote=self.remote)


def draw_feature_pictures(
    features: LabelledFeatures,
    images: Sequence[Image.Image],
    prefix: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    map_method: str = "tsne",
) -> dict[str, Path]:
    """Draws a map of the images, and the nearest neighbours of some.

    Args:
        features: of N images.
        images: the N images.
        prefix: the beginning of the files' paths.
        class_names: by class index.
        map_method: see [`project_embeddings`].

    Returns:
        The PNG files by caption. A picture that N does not allow is left out, with a warning.
    """
    drawn = {}
    count = len(features.features)
    some = torch.linspace(0, count - 1, min(count, _MAX_MAPPED_IMAGES)).long()
    try:
        points = project_embeddings(features.features[some], map_method)
    except ValueError as error:
        logger.warning("no map of the images: %s", error)
    else:
        path = Path(f"{prefix}-map.png")
        plot_embedding_map(
            points,
            path,
            labels=None if features.labels is None else features.labels[some].tolist(),
            class_names=class_names,
            images=[images[index] for index in some.tolist()],
        )
        drawn[f"Map of {len(some)} images ({'t-SNE' if map_method == 'tsne' else 'UMAP'})"] = path
    if count > 1:
        path = Path(f"{prefix}-neighbors.png")
        draw_neighbors(find_neighbors(features), features.labels, images, path, class_names)
        drawn["Nearest neighbours by cosine similarity"] = path
    else:
        logger.warning("no picture of neighbours: there is a single image")
    return drawn


def draw_patch_pictures(
    model: nn.Module,
    image_processor: BaseImageProcessor,
    images: Sequence[Image.Image],
    prefix: str | Path,
) -> dict[str, Path]:
    """Draws the attention of the class token and the components of the patches' features.

    Args:
        model, image_processor: what `load_feature_model` returned.
        images: a handful.
        prefix: the beginning of the files' paths.

    Returns:
        The PNG files by caption. A picture that the model does not allow is left out, with a warning.
    """
    pixel_values = image_processor(list(images), return_tensors="pt")["pixel_values"]
    try:
        shown = Normalize(*image_statistics(image_processor)).denormalize(pixel_values)
    except ValueError as error:
        logger.warning("no pictures of patches: %s", error)
        return {}
    pixel_values = pixel_values.to(next(model.parameters()).device)
    drawn = {}
    try:
        path = Path(f"{prefix}-attention.png")
        plot_attention(shown, class_attention(model, pixel_values), path)
        drawn["Attention of the class token in the last layer"] = path
    except ValueError as error:
        logger.warning("no picture of attention: %s", error)
    try:
        path = Path(f"{prefix}-patches.png")
        plot_patch_components(shown, patch_components(model, pixel_values), path)
        drawn["First three principal components of the patches' features"] = path
    except ValueError as error:
        logger.warning("no picture of patches: %s", error)
    return drawn


def choose_examples(labels: Tensor | None, count: int, num_examples: int = _NUM_QUERIES) -> list[int]:
    """The first image of each class, of as many classes as there are examples; without labels, images from all over.

    Args:
        labels: `(count,)`.
    """
    if labels is None:
        return torch.linspace(0, count - 1, min(count, num_examples)).long().tolist()
    classes = labels.unique()
    chosen = classes[torch.linspace(0, len(classes) - 1, min(len(classes), num_examples)).long()]
    return [int((labels == label).nonzero()[0]) for label in chosen]


class Neighbors(NamedTuple):
    """Of some images, by row of the features, the rows nearest to each and their cosine similarities."""

    queries: list[int]
    nearest: list[list[int]]
    similarities: list[list[float]]


def find_neighbors(features: LabelledFeatures) -> Neighbors:
    """The nearest neighbours of the examples that [`choose_examples`] takes among two images or more."""
    vectors = features.features
    queries = choose_examples(features.labels, len(vectors))
    # Without a normalised copy of all features.
    similarities = (normalize(vectors[queries]) @ vectors.T) / vectors.norm(dim=1).clamp(min=1e-12)
    similarities[torch.arange(len(queries)), queries] = -torch.inf  # an image is no neighbour of its own
    nearest = similarities.topk(min(_NUM_NEIGHBORS, len(vectors) - 1))
    return Neighbors(queries, nearest.indices.tolist(), nearest.values.tolist())


def draw_neighbors(
    neighbors: Neighbors,
    labels: Tensor | None,
    images: Sequence[Image.Image],
    path: str | Path,
    class_names: Sequence[str] | None = None,
) -> None:
    """Draws what [`find_neighbors`] found, with the classes of the images where they have one."""

    def title(text: str, index: int) -> str:
        if labels is None:
            return text
        label = int(labels[index])
        return f"{text}\n{label if class_names is None else class_names[label]}"

    rows = list(zip(*neighbors, strict=True))
    plot_neighbors(
        [images[query] for query in neighbors.queries],
        [[images[index] for index in found] for found in neighbors.nearest],
        path,
        query_titles=[title("query", query) for query in neighbors.queries],
        titles=[
            [title(f"{value:.3f}", index) for index, value in zip(found, values, strict=True)]
            for _, found, values in rows
        ],
        correct=None
        if labels is None
        else [[bool(labels[index] == labels[query]) for index in found] for query, found, _ in rows],
    )
