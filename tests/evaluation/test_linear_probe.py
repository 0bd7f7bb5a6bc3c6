import pytest
import torch

from ssl_hub.evaluation.linear_probe import linear_probe_accuracy, sweep_linear_probes


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
    with pytest.raises(ValueError, match="are of one class"):
        linear_probe_accuracy(train, labels * 0, train, labels)
    with pytest.raises(ValueError, match="test features hold NaN"):
        linear_probe_accuracy(train, labels, train / 0, labels)
    with pytest.raises(ValueError, match="features"):
        linear_probe_accuracy(train, labels, train[:, :1], labels)


def digits():
    """Pixels of scikit-learn's digits, with the noise that keeps pixels that are always black from having no scale."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    features = torch.tensor(scans.data).float() + torch.randn(
        scans.data.shape, generator=torch.Generator().manual_seed(0)
    )
    labels = torch.tensor(scans.target)
    return (features[:1000], labels[:1000]), (features[1000:], labels[1000:])


def test_a_sweep_finds_what_scikit_learn_finds():
    train, test = digits()
    found = sweep_linear_probes(*train, *test, [0.001, 0.01, 0.1, 1.0, 1e6], epochs=30)
    assert found.test_accuracy == pytest.approx(linear_probe_accuracy(*train, *test), abs=0.01)
    assert found.learning_rate in (0.01, 0.1, 1.0) and list(found.validation_accuracies) == [0.001, 0.01, 0.1, 1.0, 1e6]
    assert (found.predictions == test[1]).float().mean().item() == found.test_accuracy
    # Each learning rate is trained as if it were alone.
    alone = sweep_linear_probes(*train, *test, [0.1], epochs=30)
    assert alone.validation_accuracies[0.1] == found.validation_accuracies[0.1]


def test_a_sweep_never_chooses_by_the_test_set():
    train, (features, labels) = digits()
    first = sweep_linear_probes(*train, features, labels, [0.01, 0.1, 1.0], epochs=5)
    second = sweep_linear_probes(*train, features, labels.flip(0), [0.01, 0.1, 1.0], epochs=5)
    assert first.learning_rate == second.learning_rate and torch.equal(first.predictions, second.predictions)


def test_a_sweep_with_few_images():
    features, labels = torch.randn(5, 3), torch.tensor([0, 0, 1, 1, 2])
    assert sweep_linear_probes(features, labels, features, labels, [0.1], epochs=2).predictions.shape == (5,)
    with pytest.raises(ValueError, match="single training image"):
        sweep_linear_probes(features[:3], torch.arange(3), features, labels, [0.1])
    with pytest.raises(ValueError, match="of one class"):
        sweep_linear_probes(features, labels * 0, features, labels, [0.1])
    with pytest.raises(ValueError, match="learning_rates must be positive"):
        sweep_linear_probes(features, labels, features, labels, [])
    constant = torch.cat([features, torch.full((5, 1), 0.1)], dim=1)
    assert sweep_linear_probes(constant, labels, constant, labels, [0.1], epochs=2).validation_accuracies
