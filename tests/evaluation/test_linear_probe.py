import pytest
import torch

from ssl_hub.evaluation.linear_probe import linear_probe_accuracy


def features_and_labels(seed, count=120):
    """Two classes that only the second of two dimensions tells apart, ten thousand times smaller than the first."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count,), generator=generator)
    noise = torch.randn(count, generator=generator)
    return torch.stack([noise, 1e-4 * (labels - 0.5)], dim=1), labels


def test_separable_classes_are_found_whatever_their_scale():
    assert linear_probe_accuracy(*features_and_labels(0), *features_and_labels(1)) == 1.0


def test_features_that_say_nothing_give_chance():
    (train, train_labels), (test, test_labels) = features_and_labels(0), features_and_labels(1)
    train[:, 1], test[:, 1] = 0, 0
    assert 0.3 < linear_probe_accuracy(train, train_labels, test, test_labels) < 0.7


def test_bad_input():
    train, labels = features_and_labels(0)
    with pytest.raises(ValueError, match="classes"):
        linear_probe_accuracy(train, labels * 0, train, labels)
    with pytest.raises(ValueError, match="test features hold NaN"):
        linear_probe_accuracy(train, labels, train / 0, labels)
    with pytest.raises(ValueError, match="features"):
        linear_probe_accuracy(train, labels, train[:, :1], labels)
