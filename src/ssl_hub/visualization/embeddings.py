"""Pictures of where images lie in the space of their features."""

import importlib.util
import os
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patches import Rectangle
from PIL import Image, ImageOps
from torch import Tensor

from ..evaluation.features import check_features

_DPI = 100
# Points that the two methods take: with fewer, a neighbourhood is not defined.
_MIN_POINTS = 5
_MAP_INCHES = 9.0
_THUMBNAIL_PIXELS = 34
# Of a picture of neighbours, in pixels: two lines of title above an image.
_CELL_WIDTH, _CELL_HEIGHT, _THUMBNAIL_SIDE = 130, 170, 120
# Cells of the map along a side; one thumbnail a cell at most, so that none covers another.
_MAP_CELLS = 18


def project_embeddings(features: Tensor, method: str = "tsne", seed: int = 0) -> np.ndarray:
    """Places features in the plane so that neighbours stay neighbours.

    Args:
        features: `(N, D)`; each is divided by its L2 norm first, as nearest neighbours are found by cosine similarity.
        method: "tsne" (van der Maaten and Hinton, 2008; perplexity 30, or a third of N if that is less), or "umap"
            (arXiv 1802.03426) if the package umap-learn is installed.
        seed: of the method's random draws.

    Returns:
        Points `(N, 2)`.

    Raises:
        ValueError: an unknown method, or umap-learn is missing; fewer than five features; features that are not finite.
    """
    check_map_method(method)
    check_features("given", features)
    if len(features) < _MIN_POINTS:
        raise ValueError(f"a map needs at least {_MIN_POINTS} images; got {len(features)}")
    from sklearn.preprocessing import normalize  # scikit-learn takes a second to import

    vectors = normalize(features.float().cpu().numpy())
    if method == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(features) - 1) / 3)
        return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(vectors)
    from umap import UMAP

    return UMAP(n_neighbors=min(15, len(features) - 1), metric="cosine", random_state=seed).fit_transform(vectors)


def check_map_method(method: str) -> None:
    """Raises `ValueError` unless [`project_embeddings`] can take this method here."""
    if method not in ("tsne", "umap"):
        raise ValueError(f"a map is made by 'tsne' or 'umap'; got {method!r}")
    if method == "umap" and importlib.util.find_spec("umap") is None:
        raise ValueError("a map by 'umap' needs the package umap-learn: pip install umap-learn, or take 'tsne'")


def plot_embedding_map(
    points: np.ndarray,
    path: str | os.PathLike,
    *,
    labels: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    images: Sequence[Image.Image] | None = None,
    title: str = "",
) -> None:
    """Writes a PNG with a dot for each image, coloured by class, and thumbnails of some, framed in their class's colour.

    Args:
        points: `(N, 2)`, such as [`project_embeddings`] gives.
        path: the file to write.
        labels: `(N,)`, class indices.
        class_names: by class index, for the legend.
        images: N images, whose thumbnails are drawn where there is room for them.

    Raises:
        ValueError: sizes that do not fit.
    """
    if points.ndim != 2 or points.shape[1] != 2 or len(points) == 0:
        raise ValueError(f"The points have the shape {points.shape}, expected (N, 2) with N >= 1.")
    for name, values in (("labels", labels), ("images", images)):
        if values is not None and len(values) != len(points):
            raise ValueError(f"There are {len(points)} points and {len(values)} {name}.")
    figure = Figure(figsize=(_MAP_INCHES + (2 if labels is not None else 0), _MAP_INCHES), layout="constrained")
    axes = figure.add_subplot()
    classes = np.zeros(len(points), dtype=int) if labels is None else np.asarray(labels)
    colors = dict(zip(present := np.unique(classes).tolist(), _colors(len(present)), strict=True))
    for label in present:
        name = str(label) if class_names is None else class_names[label]
        axes.scatter(*points[classes == label].T, s=14, color=colors[label], label=name, linewidths=0, alpha=0.85)
    if images is not None:
        for index in _spread(points):
            thumbnail = np.asarray(ImageOps.fit(images[index], (_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS)))
            frame = {"edgecolor": colors[classes[index]], "linewidth": 1.8, "facecolor": "none"}
            box = AnnotationBbox(OffsetImage(thumbnail, zoom=72 / _DPI), points[index], pad=0.05, bboxprops=frame)
            axes.add_artist(box)
    if labels is not None:
        # Of many classes no legend could be read.
        if len(present) <= 30:
            figure.legend(loc="outside right center", frameon=False, markerscale=2)
        axes.set_xlabel(f"{len(points)} images of {len(present)} classes")
    axes.set(title=title, xticks=[], yticks=[])
    axes.margins(0.05)
    figure.savefig(path, format="png", dpi=_DPI)


def plot_neighbors(
    queries: Sequence[Image.Image],
    neighbors: Sequence[Sequence[Image.Image]],
    path: str | os.PathLike,
    *,
    query_titles: Sequence[str] | None = None,
    titles: Sequence[Sequence[str]] | None = None,
    correct: Sequence[Sequence[bool]] | None = None,
) -> None:
    """Writes a PNG with a row for each query: the query, and its neighbours from the nearest on.

    Args:
        queries: images.
        neighbors: for each query the images that are near to it.
        path: the file to write.
        query_titles: above the queries.
        titles: above the neighbours, such as similarities; of the shape of `neighbors`.
        correct: whether a neighbour is of the query's class: its frame is green or red.

    Raises:
        ValueError: no query, or lists whose lengths do not fit.
    """
    for name, values in (("neighbors", neighbors), ("titles", titles), ("correct", correct)):
        if values is not None and [len(row) for row in values] != [len(row) for row in neighbors]:
            raise ValueError(f"{name} must have a row for each query, and an entry for each of its neighbours.")
    if len(queries) == 0 or len(neighbors) != len(queries):
        raise ValueError(f"There are {len(queries)} queries and {len(neighbors)} rows of neighbours: one row a query.")
    # On one canvas: a panel for each image would take seconds to draw.
    columns = 1 + max(len(row) for row in neighbors)
    size = (_CELL_WIDTH * columns, _CELL_HEIGHT * len(queries))
    canvas = Image.new("RGB", size, "white")
    figure = Figure(figsize=(size[0] / _DPI, size[1] / _DPI))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()

    def show(row: int, column: int, image: Image.Image, title: str, color: str) -> None:
        left, top = _CELL_WIDTH * column + 5, _CELL_HEIGHT * (row + 1) - _THUMBNAIL_SIDE - 5
        canvas.paste(ImageOps.fit(image, (_THUMBNAIL_SIDE, _THUMBNAIL_SIDE)), (left, top))
        frame = Rectangle((left, top), _THUMBNAIL_SIDE, _THUMBNAIL_SIDE, fill=False, edgecolor=color, linewidth=2.5)
        axes.add_patch(frame)
        # Titles are names of the user's: a dollar sign is no formula.
        place = {"ha": "center", "va": "bottom", "parse_math": False}
        axes.text(left + _THUMBNAIL_SIDE / 2, top - 4, title, fontsize=8, **place)

    for row, (query, found) in enumerate(zip(queries, neighbors, strict=True)):
        show(row, 0, query, "query" if query_titles is None else query_titles[row], "black")
        for column, image in enumerate(found):
            color = "none" if correct is None else ("tab:green" if correct[row][column] else "tab:red")
            show(row, 1 + column, image, "" if titles is None else titles[row][column], color)
    axes.imshow(canvas, extent=(0, size[0], size[1], 0), aspect="auto")
    figure.savefig(path, format="png", dpi=_DPI)


def _colors(count: int) -> list[tuple]:
    if count <= 10:
        return [matplotlib.colormaps["tab10"](i) for i in range(count)]
    if count <= 20:
        return [matplotlib.colormaps["tab20"](i) for i in range(count)]
    return [matplotlib.colormaps["hsv"](i / count) for i in range(count)]


def _spread(points: np.ndarray) -> list[int]:
    """Points of which no two are near: in each cell of a grid over the map, the one that is nearest to its centre."""
    low, high = points.min(axis=0), points.max(axis=0)
    places = (points - low) / np.maximum(high - low, 1e-12) * _MAP_CELLS
    cells = np.minimum(places.astype(int), _MAP_CELLS - 1)
    nearest: dict[tuple, int] = {}
    for index in np.argsort(np.linalg.norm(places - cells - 0.5, axis=1)):
        nearest.setdefault(tuple(cells[index].tolist()), int(index))
    # Points at the edges of neighbouring cells can still be near.
    chosen: list[int] = []
    for index in nearest.values():
        if all(np.abs(places[index] - places[other]).max() > 0.8 for other in chosen):
            chosen.append(index)
    return chosen
