import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from transformers import AutoModel, ResNetConfig, ViTConfig, ViTModel

from ssl_hub.data.datasets import load_image_dataset
from ssl_hub.data.processing import build_image_processor
from ssl_hub.evaluation.base import LabelledFeatures
from ssl_hub.evaluation.feature_models import BackboneFeatures
from ssl_hub.visualization.embeddings import plot_embedding_map, plot_neighbors, project_embeddings
from ssl_hub.visualization.model_pictures import (
    RowImages,
    choose_examples,
    draw_feature_pictures,
    draw_patch_pictures,
)
from ssl_hub.visualization.patches import class_attention, patch_components, plot_attention, plot_patch_components
from ssl_hub.visualization.results import plot_comparison, plot_confusion_matrix

PROCESSOR = build_image_processor(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture
def figure(monkeypatch):
    """The last figure that was saved."""
    saved = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (saved.append(self), savefig(self, *args, **kw)))
    return lambda: saved[-1]


def clusters(count=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    return LabelledFeatures(torch.eye(4, 8)[labels] + 0.1 * torch.randn(count, 8, generator=generator), labels)


def vit():
    config = ViTConfig(
        image_size=32, patch_size=8, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=32
    )
    return BackboneFeatures(ViTModel(config)).eval()


def test_map_keeps_neighbours():
    features, labels = clusters()
    points = torch.from_numpy(project_embeddings(features))
    assert points.shape == (40, 2)
    nearest = torch.cdist(points, points).fill_diagonal_(torch.inf).argmin(dim=1)
    assert (labels[nearest] == labels).all()


def test_map_draws_every_image_once(tmp_path, figure):
    features, labels = clusters()
    points = project_embeddings(features)
    images = [Image.new("RGB", (20, 30), (i, 0, 0)) for i in range(40)]
    names = ["a", "b", "$c_", "d"]
    plot_embedding_map(points, tmp_path / "map.png", labels=labels.tolist(), class_names=names, images=images)
    axes = figure().axes[0]
    assert sum(len(collection.get_offsets()) for collection in axes.collections) == 40
    assert [collection.get_label() for collection in axes.collections] == names
    assert len(axes.artists) > 4  # thumbnails
    plot_embedding_map(points, tmp_path / "map.png")
    assert len(figure().axes[0].collections) == 1 and Image.open(tmp_path / "map.png").width > 500


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: project_embeddings(torch.randn(4, 3)), "a map needs at least 5 images; got 4"),
        (lambda: project_embeddings(torch.full((9, 3), torch.nan)), "hold NaN or infinity"),
        (lambda: project_embeddings(torch.randn(9, 3), "pca"), "a map is made by 'tsne' or 'umap'; got 'pca'"),
        (lambda: plot_embedding_map(np.zeros((3, 3)), "x.png"), r"The points have the shape \(3, 3\)"),
        (lambda: plot_embedding_map(np.zeros((3, 2)), "x.png", labels=[0]), "3 points and 1 labels"),
        (lambda: plot_neighbors([], [], "x.png"), "0 queries and 0 rows"),
        (lambda: plot_neighbors([1], [[2, 3]], "x.png", titles=[["a"]]), "titles must have a row for each query"),
        (
            lambda: plot_confusion_matrix(torch.zeros(2), torch.zeros(3), "x.png"),
            r"labels \(2,\) and predictions \(3,\)",
        ),
        (lambda: plot_comparison({"a": {}}, "x.png"), "there is no result to draw"),
        (lambda: plot_attention(torch.zeros(2, 3, 8, 8), torch.zeros(1, 2, 2, 2), "x.png"), "for 2 images"),
        (lambda: plot_patch_components(torch.zeros(2, 3, 8, 8), torch.zeros(2, 2, 2, 1), "x.png"), "colours have"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_umap_is_asked_for_by_its_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install umap-learn, or take 'tsne'"):
        project_embeddings(torch.randn(9, 3), "umap")


def test_attention_is_that_of_the_class_token():
    model, pixel_values = vit(), torch.randn(2, 3, 32, 32)
    attention = class_attention(model, pixel_values)
    assert attention.shape == (2, 3, 4, 4)
    backbone = model.backbone
    inputs = backbone(pixel_values, output_hidden_states=True).hidden_states[-2]
    layer = backbone.layers[-1]
    normed = layer.layernorm_before(inputs)
    names = dict(layer.attention.named_modules())
    query, key = (
        next(module for name, module in names.items() if name.split(".")[-1] in options)(normed)
        for options in (("query", "q_proj"), ("key", "k_proj"))
    )
    query, key = (tensor.unflatten(2, (3, 8)).transpose(1, 2) for tensor in (query, key))
    expected = (query @ key.transpose(2, 3) / 8**0.5).softmax(dim=-1)[:, :, 0, 1:]
    torch.testing.assert_close(attention.flatten(2), expected.detach())


def test_components_tell_patches_apart():
    model = vit()
    images = torch.randn(2, 3, 32, 32)
    images[:, :, :16] = 3.0  # all patches of the upper half are alike, but for their positions
    with torch.no_grad():
        model.backbone.embeddings.position_embeddings.zero_()
    colors = patch_components(model, images)
    assert colors.shape == (2, 4, 4, 3) and colors.min() >= 0 and colors.max() <= 1
    upper, lower = colors[:, :2].flatten(1, 2), colors[:, 2:].flatten(1, 2)
    torch.testing.assert_close(upper, upper[:, :1].expand_as(upper))
    assert (lower - upper).abs().mean() > 0.1


def test_pictures_of_a_model(tmp_path, figure):
    digits = load_image_dataset("digits", "test").select(range(30))
    images = RowImages(digits, list(range(30)))
    features = LabelledFeatures(torch.randn(30, 6), torch.tensor(digits["label"]))
    drawn = draw_feature_pictures(features, images, tmp_path / "digits", class_names=digits.features["label"].names)
    assert list(drawn) == ["Map of 30 images (t-SNE)", "Nearest neighbours by cosine similarity"]
    titles = [text.get_text() for text in figure().axes[0].texts]
    assert [title for title in titles if title.startswith("query")] == [f"query\n{i}" for i in (0, 1, 2, 3, 5, 6, 7, 9)]
    drawn |= draw_patch_pictures(vit(), PROCESSOR, [images[0], images[1]], tmp_path / "digits")
    assert len(drawn) == 4
    for path in drawn.values():
        assert np.asarray(Image.open(path).convert("L")).std() > 5


def test_what_a_model_or_the_images_do_not_allow_is_left_out(tmp_path, caplog):
    images = [Image.new("RGB", (32, 32))] * 2
    resnet = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    model = BackboneFeatures(AutoModel.from_config(resnet)).eval()
    drawn = draw_patch_pictures(model, PROCESSOR, images, tmp_path / "resnet")
    assert list(drawn) == ["First three principal components of the patches' features"]
    assert "'resnet' has no class token" in caplog.text
    drawn = draw_feature_pictures(LabelledFeatures(torch.randn(2, 4), None), images, tmp_path / "two")
    assert list(drawn) == ["Nearest neighbours by cosine similarity"]
    assert "a map needs at least 5 images; got 2" in caplog.text
    assert draw_feature_pictures(LabelledFeatures(torch.randn(1, 4), None), images[:1], tmp_path / "one") == {}


def test_examples():
    assert choose_examples(torch.tensor([3, 3, 1, 0, 1]), 5) == [3, 2, 0]
    assert choose_examples(None, 100, 3) == [0, 49, 99]
    assert choose_examples(torch.arange(100), 100, 3) == [0, 49, 99]


def test_confusion_matrix(tmp_path, figure):
    labels, predictions = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 0, 1, 1, 1])
    plot_confusion_matrix(labels, predictions, tmp_path / "confusion.png", class_names=["cat", "dog", "$none_"])
    axes = figure().axes[0]
    assert axes.images[0].get_array().round(decimals=2).tolist() == [[0.67, 0.33, 0], [0, 1, 0], [0, 0, 0]]
    assert [text.get_text() for text in axes.texts] == ["67", "33", "100"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "dog", "$none_"]


def test_comparison(tmp_path, figure):
    results = {"first": {"knn_accuracy": 0.5, "rankme": 7.0}, "a $very_ long name, " * 5: {"knn_accuracy": 0.25}}
    plot_comparison(results, tmp_path / "comparison.png", chance={"knn_accuracy": 0.1})
    knn, rank = figure().axes
    assert [bar.get_width() for bar in knn.patches] == [50, 25] and knn.lines[0].get_xdata()[0] == 10
    assert rank.get_title() == "RankMe (effective rank) ↑" and rank.patches[0].get_width() == 7
