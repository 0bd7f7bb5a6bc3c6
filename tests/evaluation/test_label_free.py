import math

import pytest
import torch

from ssl_hub.evaluation.base import LabelledFeatures
from ssl_hub.evaluation.label_free import LabelFreeEvaluator, describe_collapse, embedding_std, rankme


def test_embedding_std_of_known_features():
    axes = torch.cat([torch.eye(6), -torch.eye(6)])
    assert embedding_std(axes) == pytest.approx(1, abs=1e-6)
    assert embedding_std(axes * torch.rand(12, 1).add(0.1)) == pytest.approx(
        1, abs=1e-6
    )  # directions count, not lengths
    assert embedding_std(torch.tensor([[1.0, 2.0, 3.0]]).repeat(5, 1)) == pytest.approx(0, abs=1e-6)
    # Two opposite points in two dimensions: standard deviations 1 and 0.
    assert embedding_std(torch.tensor([[2.0, 0.0], [-1.0, 0.0]])) == pytest.approx(math.sqrt(2) / 2, abs=1e-6)
    generator = torch.Generator().manual_seed(0)
    assert embedding_std(torch.randn(2000, 64, generator=generator)) == pytest.approx(1, abs=0.02)


def test_rankme_of_known_features():
    assert rankme(torch.eye(6)) == pytest.approx(6, rel=1e-4)
    assert rankme(torch.arange(1.0, 9.0)[:, None] * torch.ones(1, 5)) == pytest.approx(1, abs=1e-3)
    # Singular values 3 and 1, so p = (3/4, 1/4).
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert rankme(torch.tensor([[0.0, 3.0], [1.0, 0.0], [0.0, 0.0]])) == pytest.approx(math.exp(entropy), rel=1e-4)
    assert rankme(torch.zeros(4, 3)) == 0


@pytest.mark.parametrize("shape", [(50, 20), (20, 50), (9000, 4)])
def test_rankme_is_that_of_the_singular_values(shape):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(shape, generator=generator) * torch.logspace(0, -5, shape[1])
    p = torch.linalg.svdvals(features.double())
    p = p / p.sum() + 1e-7
    assert rankme(features) == pytest.approx(math.exp(-(p * p.log()).sum()), rel=1e-6)


@pytest.mark.parametrize("metric", [embedding_std, rankme])
def test_bad_input(metric):
    with pytest.raises(ValueError, match="NaN"):
        metric(torch.full((3, 2), float("nan")))
    with pytest.raises(ValueError, match=r"\(0, 2\)"):
        metric(torch.ones(0, 2))


def test_a_collapse_is_described_and_health_is_not():
    assert describe_collapse({"embedding_std": 0.1, "rankme": 5.0}) is None
    assert describe_collapse({"knn_accuracy": 0.0}) is None
    text = describe_collapse({"embedding_std": 0.004, "rankme": 1.2})
    assert "embedding_std 0.0040 of 1" in text and "effective rank 1.2" in text


@pytest.mark.parametrize(("count", "is_collapse"), [(9, True), (1, False)])
def test_a_collapse_is_found_in_what_the_evaluator_logs_of_two_images_or_more(count, is_collapse):
    features = LabelledFeatures(torch.ones(count, 4) + 1e-4 * torch.rand(count, 4), None)
    metrics = LabelFreeEvaluator().evaluate(features, None)
    assert (describe_collapse(metrics) is not None) == is_collapse
