import numpy as np
import pytest
import torch

from ssl_hub.evaluation import knn
from ssl_hub.evaluation.knn import knn_accuracy, knn_classify


def features_and_labels(seed, count, noise=1.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    centers = torch.eye(3, 8) * 4
    return centers[labels] + noise * torch.randn(count, 8, generator=generator), labels


def naive_scores(train, train_labels, test, num_classes, k, temperature):
    """The protocol of Wu et al., one image at a time in float64; a row is scaled to sum to one."""
    train, train_labels, test = (tensor.double().numpy() for tensor in (train, train_labels, test))
    scores = np.zeros((len(test), num_classes))
    for i, image in enumerate(test):
        similarities = [np.dot(image / np.linalg.norm(image), other / np.linalg.norm(other)) for other in train]
        for j in np.argsort(similarities)[::-1][:k]:
            scores[i, int(train_labels[j])] += np.exp(similarities[j] / temperature)
    return scores / scores.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.07), (40, 1.0)])
def test_scores_equal_a_naive_loop(monkeypatch, k, temperature, on_gpu):
    if on_gpu:  # what is done there, here
        monkeypatch.setattr(knn, "_search_on_cpu", knn._search_on_gpu)
        monkeypatch.setattr(knn, "_MAX_SIMILARITIES", 7 * 4)
    # Chunks of 7 of the 40 train features and of 11 of the 30 test features.
    monkeypatch.setattr(knn, "_MAX_ENTRIES_ON_CPU", (8 * 11, 8 * 7))
    train, train_labels = features_and_labels(0, 40, noise=3.0)
    test, test_labels = features_and_labels(1, 30, noise=3.0)
    scores = knn_classify(train, train_labels, test, num_classes=4, k=k, temperature=temperature)
    expected = naive_scores(train, train_labels, test, 4, k, temperature)
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-4, atol=1e-6)
    accuracy = knn_accuracy(train, train_labels, test, test_labels, k=k, temperature=temperature)
    assert accuracy == pytest.approx((expected.argmax(axis=1) == test_labels.numpy()).mean())
    assert 0.4 < accuracy < 1  # neither chance nor trivial: the comparison can tell right from wrong


def test_no_more_than_a_chunk_is_held(monkeypatch, tmp_path):
    """Of a bank that is memory-mapped, and could be larger than memory."""
    train, train_labels = features_and_labels(0, 400, noise=3.0)
    test, test_labels = features_and_labels(1, 30, noise=3.0)
    expected = knn.knn_accuracies(train, train_labels, test, test_labels, ks=[1, 90])
    (tmp_path / "bank").write_bytes(train.numpy().tobytes())
    mapped = torch.from_file(str(tmp_path / "bank"), size=train.numel()).view_as(train)
    sizes = []
    normalize = knn.normalize
    monkeypatch.setattr(knn, "_MAX_ENTRIES_ON_CPU", (8 * 60, 8 * 60))
    monkeypatch.setattr(knn, "normalize", lambda features: sizes.append(len(features)) or normalize(features))
    assert knn.knn_accuracies(mapped, train_labels, test, test_labels, ks=[1, 90]) == expected
    assert max(sizes) == 60 and sum(sizes) == 430


def test_one_near_neighbour_outvotes_two_far_ones():
    train = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    train_labels = torch.tensor([0, 1, 1])
    test = torch.tensor([[5.0, 4.0]])  # length does not matter
    assert knn_classify(train, train_labels, test, 2, k=3, temperature=0.07).argmax() == 0
    assert knn_classify(train, train_labels, test, 2, k=3, temperature=10.0).argmax() == 1


def test_small_temperature_does_not_overflow():
    train, train_labels = features_and_labels(0, 40)
    assert knn_classify(train, train_labels, train, 3, k=10, temperature=1e-3).isfinite().all()


def test_a_class_without_train_images_is_never_right():
    train, train_labels = features_and_labels(0, 40, noise=0.1)
    test, test_labels = features_and_labels(1, 30, noise=0.1)
    assert knn_accuracy(train, train_labels, test, test_labels) == 1.0
    assert knn_accuracy(train, train_labels, test, test_labels + 3) == 0.0


def test_bad_input():
    train, train_labels = features_and_labels(0, 40)
    test, test_labels = features_and_labels(1, 30)
    with pytest.raises(ValueError, match="k=41 neighbours of 40"):
        knn_accuracy(train, train_labels, test, test_labels, k=41)
    with pytest.raises(ValueError, match="k=0"):
        knn_accuracy(train, train_labels, test, test_labels, k=0)
    with pytest.raises(ValueError, match="temperature=0"):
        knn_accuracy(train, train_labels, test, test_labels, temperature=0)
    with pytest.raises(ValueError, match="8 dimensions, test features 7"):
        knn_accuracy(train, train_labels, test[:, :7], test_labels)
    with pytest.raises(ValueError, match=r"train features have the shape \(0, 8\)"):
        knn_accuracy(train[:0], train_labels[:0], test, test_labels)
    with pytest.raises(ValueError, match="30 of 30 test features"):
        knn_accuracy(train, train_labels, test * float("nan"), test_labels)
    with pytest.raises(ValueError, match="num_classes=2"):
        knn_classify(train, train_labels, test, num_classes=2)
