import numpy as np
import pytest
import torch

from ssl_hub.modules import clustering
from ssl_hub.modules.clustering import (
    check_clusters,
    check_finite,
    cluster_means,
    cluster_sizes,
    cluster_weights,
    fit_whitening,
    kmeans,
    normalized_mutual_information,
    rebuild_small_clusters,
    split_largest,
    whiten,
)


def blobs(num_rows=60, num_blobs=3, dim=5):
    generator = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(num_blobs, dim, generator=generator)
    blob = torch.arange(num_rows) % num_blobs
    return centres[blob] + 0.1 * torch.randn(num_rows, dim, generator=generator), blob


def test_whitened_features_have_unit_variance_in_every_direction():
    features = torch.randn(500, 6).double() @ torch.randn(6, 6).double() + 3
    mean, projection = fit_whitening(features, 4)
    projected = (features - mean) @ projection
    assert torch.allclose(projected.T @ projected / 500, torch.eye(4).double(), atol=1e-9)
    whitened = whiten(features, mean, projection)
    assert torch.allclose(whitened.norm(dim=1), torch.ones(500).double())
    # the directions of largest variance, as scikit-learn finds them
    from sklearn.decomposition import PCA

    theirs = torch.from_numpy(PCA(4, whiten=True).fit_transform(features.numpy())).flip(1)
    assert torch.allclose(projected.abs(), theirs.abs() * (500 / 499) ** 0.5, atol=1e-6)


def test_directions_without_variance_are_left_out():
    features = torch.randn(20, 2) @ torch.randn(2, 6)
    _, projection = fit_whitening(features, 5)
    assert torch.isfinite(projection).all() and (projection.norm(dim=0) > 0).tolist() == [False] * 3 + [True] * 2
    collapsed = torch.ones(20, 6)
    assert not whiten(collapsed, *fit_whitening(collapsed, 5)).any()


def test_a_table_in_a_file_in_chunks(tmp_path, monkeypatch):
    features = blobs()[0].double()
    path = tmp_path / "features"
    np.asarray(features).tofile(path)
    mapped = torch.from_file(str(path), shared=True, size=features.numel(), dtype=torch.double).view(features.shape)
    whole = fit_whitening(features, 3)
    labels = torch.arange(60) % 4
    means = cluster_means(features, labels, torch.zeros(4, 5).double())
    monkeypatch.setattr(clustering, "CHUNK_SIZE", 7)
    chunked = fit_whitening(mapped, 3)
    assert torch.allclose(whiten(mapped, *chunked).abs(), whiten(features, *whole).abs(), rtol=1e-9)
    assert torch.allclose(cluster_means(mapped, labels, torch.zeros(4, 5).double()), means)
    check_finite(mapped)


def test_kmeans_finds_blobs():
    features, blob = blobs(num_blobs=2)
    labels, centroids = kmeans(features, 2, iterations=20, seed=1)
    assert normalized_mutual_information(labels, blob) == pytest.approx(1.0)
    assert torch.allclose(centroids, cluster_means(features, labels, centroids), atol=1e-4)
    again, _ = kmeans(features, 2, iterations=20, seed=1)
    assert torch.equal(labels, again)


@pytest.mark.parametrize(
    ("features", "num_clusters"),
    [
        (torch.ones(30, 4), 7),  # a collapsed network
        (torch.cat([torch.ones(28, 4), torch.randn(2, 4)]), 10),
        (torch.randn(6, 4), 6),
        (torch.zeros(6, 4), 6),
    ],
)
def test_no_cluster_is_empty(features, num_clusters):
    labels, centroids = kmeans(features, num_clusters, iterations=5, seed=0)
    assert (cluster_sizes(labels, num_clusters) > 0).all()
    assert torch.isfinite(centroids).all()


def test_an_empty_cluster_gets_a_half_of_the_largest():
    features, blob = blobs(num_blobs=2)
    labels, centroids = torch.zeros(60, dtype=torch.long), torch.zeros(2, 5)
    split_largest(features, labels, centroids, empty=1)
    assert normalized_mutual_information(labels, blob) == pytest.approx(1.0)
    assert torch.allclose(centroids, cluster_means(features, labels, centroids), atol=1e-5)


def test_small_clusters_are_dissolved():
    features = torch.nn.functional.normalize(blobs(num_blobs=3)[0], dim=1)
    labels = torch.arange(60) % 3
    centroids = cluster_means(features, labels, torch.zeros(5, 5))
    labels[:2], labels[5] = 3, -1  # a cluster of two, an empty one, and an image that has none
    rebuild_small_clusters(features, labels, centroids, min_size=4)
    sizes = cluster_sizes(labels, 5)
    assert labels[5] == -1 and sizes.sum() == 59 and (sizes > 0).all()
    unchanged = labels.clone()
    rebuild_small_clusters(features, labels, centroids, min_size=1)
    assert torch.equal(labels, unchanged)


def test_sizes_means_and_weights():
    labels = torch.tensor([0, 2, 2, -1])
    assert cluster_sizes(labels, 4).tolist() == [1, 0, 2, 0]
    features = torch.tensor([[1.0], [2.0], [4.0], [100.0]])
    centroids = torch.tensor([[9.0], [8.0], [7.0], [6.0]])
    assert cluster_means(features, labels, centroids).flatten().tolist() == [1.0, 8.0, 3.0, 6.0]
    assert torch.allclose(cluster_weights(torch.tensor([1, 4, 16]), 0.5), torch.tensor([4.0, 2.0, 1.0]) / 7)
    assert torch.allclose(cluster_weights(torch.tensor([1, 4]), 0.0), torch.tensor([0.5, 0.5]))


def test_mutual_information_of_what_both_label():
    first, second = torch.tensor([0, 0, 1, 1, -1, 2]), torch.tensor([5, 5, 3, 3, 9, -1])
    assert normalized_mutual_information(first, second) == pytest.approx(1.0)
    assert normalized_mutual_information(torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])) == pytest.approx(0.0)


def test_data_that_cannot_work():
    with pytest.raises(
        ValueError, match="5 clusters of at least an image each need 5 readable images, .* has 4: set num"
    ):
        check_clusters(4, 5)
    with pytest.raises(ValueError, match="features of 2 of 3 images hold NaN or infinity"):
        check_finite(torch.tensor([[1.0, float("nan")], [0.0, 1.0], [float("inf"), 0.0]]))
