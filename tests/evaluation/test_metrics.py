import socket
import subprocess
import sys

import evaluate
import numpy as np
import pytest
import torch
from scipy.linalg import eigh
from sklearn import metrics as sklearn_metrics
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize
from sklearn.svm import LinearSVC

from ssl_hub.evaluation import metrics
from ssl_hub.evaluation.base import LabelledFeatures
from ssl_hub.evaluation.class_scores import average_precision, topk_accuracy
from ssl_hub.evaluation.clustering import ClusteringEvaluator, adjusted_rand_index, clustering_accuracy
from ssl_hub.evaluation.evaluators import build_evaluators
from ssl_hub.evaluation.knn import knn_accuracies, knn_accuracy
from ssl_hub.evaluation.retrieval import retrieval_scores
from ssl_hub.evaluation.spectrum import alignment, alpha_req, lidar, uniformity
from ssl_hub.evaluation.svm import (
    MultiLabelFeatures,
    low_shot_mean_average_precision,
    svm_mean_average_precision,
)
from ssl_hub.modules.clustering import normalized_mutual_information


def clouds(num_images=120, num_classes=4, dimensions=8, noise=0.4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(num_classes, dimensions, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(num_images) % num_classes
    return centers[labels] + noise * torch.randn(num_images, dimensions, generator=generator), labels


# By formula


def test_alignment_and_uniformity_are_their_formulas():
    (x, _), (y, _) = clouds(20), clouds(20, seed=1)
    u, v = (torch.nn.functional.normalize(z.double()) for z in (x, y))
    assert alignment(x, y) == pytest.approx((u - v).norm(dim=1).square().mean().item(), rel=1e-12)
    assert alignment(x, 3 * x) == pytest.approx(0, abs=1e-12)
    expected = torch.pdist(u).square().mul(-2).exp().mean().log().item()
    assert uniformity(x.double()) == pytest.approx(expected, rel=1e-9)
    assert uniformity(x) == pytest.approx(expected, rel=1e-5)
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0, abs=1e-5)


def test_uniformity_in_chunks(monkeypatch):
    x = clouds(50)[0].double()
    whole = uniformity(x)
    monkeypatch.setattr("ssl_hub.evaluation.spectrum._MAX_ENTRIES", 60)
    assert uniformity(x) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_alpha_of_eigenvalues_that_fall_by_a_power(alpha):
    basis, _ = torch.linalg.qr(torch.randn(200, 60, dtype=torch.double, generator=torch.Generator().manual_seed(0)))
    centred = basis - basis.mean(dim=0)
    basis, _ = torch.linalg.qr(centred)
    features = basis * torch.arange(1, 61) ** (-alpha / 2)
    features = features - features.mean(dim=0)
    assert alpha_req(features) == pytest.approx(alpha, abs=1e-6)


def test_lidar_counts_the_directions_that_tell_images_apart():
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(400, 1, 10, dtype=torch.double)
    images[..., :3] = 5 * torch.randn(400, 1, 3, dtype=torch.double, generator=generator)
    views = images + 0.1 * torch.randn(400, 6, 10, dtype=torch.double, generator=generator)
    assert lidar(views) == pytest.approx(3, abs=0.05)
    # the noise of one direction within images hides what is there between them
    views[..., 0] += 50 * torch.randn(400, 6, dtype=torch.double, generator=generator)
    assert lidar(views) == pytest.approx(2, abs=0.05)


# Against scikit-learn


def test_knn_agrees_with_scikit_learn_for_every_k_and_temperature():
    (x, y), (test_x, test_y) = clouds(200, noise=1.5), clouds(80, noise=1.5, seed=1)
    accuracies = knn_accuracies(x, y, test_x, test_y, ks=[1, 5, 20], temperatures=[0.07, 1.0])
    for (k, temperature), accuracy in accuracies.items():
        theirs = KNeighborsClassifier(
            k, weights=lambda d, t=temperature: np.exp((1 - d) / t), metric="cosine", algorithm="brute"
        )
        theirs.fit(normalize(x.numpy()), y.numpy())
        assert accuracy == pytest.approx(theirs.score(normalize(test_x.numpy()), test_y.numpy()), abs=1e-6)
        assert accuracy == knn_accuracy(x, y, test_x, test_y, k, temperature)


def test_clusterings_agree_with_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    clusters, labels = (torch.randint(n, (60,), generator=generator) for n in (5, 3))
    assert adjusted_rand_index(clusters, labels) == sklearn_metrics.adjusted_rand_score(labels, clusters)
    swapped = torch.tensor([2, 0, 1])[labels]
    assert clustering_accuracy(swapped, labels) == 1
    assert clustering_accuracy(torch.zeros(6, dtype=torch.long), torch.tensor([0, 0, 1, 1, 2, 2])) == pytest.approx(
        1 / 3
    )


def test_average_precision():
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])
    targets = torch.tensor([1, 0, 1, 1, 0])
    expected = sklearn_metrics.average_precision_score(targets, scores)
    assert average_precision(scores, targets, "none") == pytest.approx(expected)
    # precision 1 up to a recall of 1/3, then 3/4 at best up to 1
    assert average_precision(scores, targets, "all") == pytest.approx(1 / 3 + 2 / 3 * 3 / 4)
    assert average_precision(scores, targets, "eleven") == pytest.approx((4 + 7 * 3 / 4) / 11)


def test_retrieval():
    x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.6, 0.8], [0.1, 1.0]])
    scores = retrieval_scores(x, torch.tensor([0, 0, 1, 1, 2]), ks=(1, 2))
    # 0 and 1 find each other first, 2 and 3 second, behind 4; 4 is alone in its class and does not ask
    assert scores == pytest.approx({"mean_average_precision": 0.75, "recall_at_1": 0.5, "recall_at_2": 1.0})
    # Images that are all the same are found as by chance, whatever their order.
    collapsed = retrieval_scores(torch.eye(4)[:1].repeat(6, 1), torch.tensor([0, 0, 0, 1, 1, 1]))
    assert collapsed == pytest.approx({"mean_average_precision": 2 / 5, "recall_at_1": 0, "recall_at_5": 1})


def test_retrieval_agrees_with_scikit_learn(monkeypatch):
    monkeypatch.setattr("ssl_hub.evaluation.retrieval._MAX_SIMILARITIES", 400)  # chunks of a few rows
    x, y = clouds(60, noise=1.5)
    similarities = torch.nn.functional.normalize(x.double()) @ torch.nn.functional.normalize(x.double()).T
    expected = []
    for image in range(60):
        others = torch.arange(60) != image
        expected.append(sklearn_metrics.average_precision_score((y == y[image])[others], similarities[image, others]))
    found = retrieval_scores(x, y)["mean_average_precision"]
    assert 0.3 < found < 0.9
    assert found == pytest.approx(np.mean(expected), abs=1e-6)


@pytest.mark.parametrize("size", [30, 400])  # fewer than twice as many directions as the first rank needs, and all
def test_alpha_is_the_slope_of_a_weighted_regression(size):
    x = torch.randn(size, 130, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.arange(1.0, 131) ** -0.7)
    variances = PCA().fit(x.double().numpy()).explained_variance_
    ranks = np.arange(4, min(100, size - 1) + 1)
    line = LinearRegression().fit(np.log(ranks)[:, None], np.log(variances[ranks - 1]), sample_weight=1 / ranks)
    assert alpha_req(x) == pytest.approx(-line.coef_[0], rel=1e-6)


def test_lidar_is_its_formula():
    x = torch.randn(30, 5, 6, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    x = x + 2 * torch.randn(30, 1, 6, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    x = x.numpy()
    between = np.cov(x.mean(axis=1).T, bias=True)
    within = np.mean([np.cov(views.T, bias=True) for views in x], axis=0) + 1e-4 * np.eye(6)
    # The eigenvalues of the whitened scatter are those of the generalised problem.
    values = eigh(between, within, eigvals_only=True)
    p = values / values.sum() + 1e-7
    assert lidar(torch.from_numpy(x)) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-9)


def test_svm_finds_classes_that_a_line_separates():
    def images(num, seed):
        x, y = clouds(num, num_classes=3, noise=0.3, seed=seed)
        targets = torch.nn.functional.one_hot(y, 3)
        targets[0, 1] = -1
        return MultiLabelFeatures(x, targets)

    train, test = images(60, 0), images(30, 1)
    assert svm_mean_average_precision(train, test, costs=[0.1, 1.0]) > 0.95
    options = {"num_positives": 2, "num_samples": 2, "costs": [0.1, 1.0]}
    result = low_shot_mean_average_precision(train, test, **options)
    assert result.mean > 0.8 and 0 <= result.std < 0.2 and result.cost in (0.1, 1.0) and len(result.values) == 2
    assert low_shot_mean_average_precision(train, test, **options, select_on_test=True).mean >= result.mean
    with pytest.raises(ValueError, match="Class 1 needs train images that show it and train images that do not"):
        svm_mean_average_precision(MultiLabelFeatures(train.features[:2], train.targets[:2]), test)


def test_the_svm_is_the_published_protocol_of_scikit_learn():
    x, y = clouds(90, num_classes=3, noise=2.5)
    targets = torch.nn.functional.one_hot(y, 3)
    train, test = (MultiLabelFeatures(x[rows], targets[rows]) for rows in (slice(60), slice(60, 90)))
    train.targets[5, 0] = test.targets[4, 1] = -1
    costs, expected = [0.01, 1.0, 10.0], []
    scaled, test_scaled = (
        (z.double() / (z.double().norm(dim=1, keepdim=True) + 1e-5)).numpy() for z in (x[:60], x[60:])
    )
    for index in range(3):
        labels = np.where(train.targets[:, index] == 1, 1, -1)
        svms = [
            LinearSVC(C=cost, class_weight={1: 2, -1: 1}, dual=True, max_iter=2000, random_state=0) for cost in costs
        ]
        chosen = max(
            svms, key=lambda svm: cross_val_score(svm, scaled, labels, cv=3, scoring="average_precision").mean()
        )
        scores = chosen.fit(scaled, labels).decision_function(test_scaled)
        clear = test.targets[:, index].numpy() >= 0
        expected.append(sklearn_metrics.average_precision_score(test.targets[clear, index].numpy(), scores[clear]))
    value = svm_mean_average_precision(train, test, costs=costs, interpolation="none")
    assert 0.5 < value < 1
    assert value == pytest.approx(np.mean(expected), abs=1e-6)


# Metrics of `evaluate`, and evaluators


def test_every_metric_is_its_function_and_needs_no_network(monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("a metric wants to connect"))
    (x, y), (other, _) = clouds(40), clouds(40, seed=1)
    views = torch.stack([x, other], dim=1)
    scores = torch.rand(40, 4, generator=torch.Generator().manual_seed(0))
    predictions = scores.argmax(dim=1)
    inputs = {
        "embeddings": x,
        "other_embeddings": other,
        "views": views,
        "scores": scores,
        "references": y,
        "predictions": predictions,
        "confidences": scores[:, 0],
    }
    for name, (needed, function) in metrics._METRICS.items():
        options = {}
        if name == "knn_accuracy":
            options = {"train_embeddings": other, "train_references": y, "k": 3}
        given = {key: inputs[key] for key in needed}
        if name == "average_precision":
            given["references"] = (y == 0).long()
        expected = function(*given.values(), **options)
        computed = metrics.load_metric(name).compute(**{k: v.numpy() for k, v in given.items()}, **options)
        expected = expected if isinstance(expected, dict) else {name: expected}
        assert computed == pytest.approx(expected, rel=1e-5), name
    with pytest.raises(ValueError, match="there is no metric 'rankmi'; near it: rankme"):
        metrics.load_metric("rankmi")


def test_metrics_combine():
    x, _ = clouds(40)
    combined = evaluate.combine([metrics.load_metric("rankme"), metrics.load_metric("uniformity")])
    combined.add_batch(embeddings=x[:20].numpy())
    combined.add_batch(embeddings=x[20:].numpy())
    assert combined.compute().keys() == {"rankme", "uniformity"}


def test_topk_accuracy():
    scores = torch.tensor([[0.1, 0.9, 0.0], [0.5, 0.3, 0.2]])
    assert [topk_accuracy(scores, torch.tensor([1, 2]), k) for k in (1, 2, 3)] == [0.5, 0.5, 1.0]
    assert topk_accuracy(torch.zeros(2, 3), torch.tensor([0, 2])) == 0  # a model that cannot tell is not right by luck
    scores = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 6
    for k in (1, 2, 5):
        assert topk_accuracy(scores, labels, k) == pytest.approx(
            sklearn_metrics.top_k_accuracy_score(labels.numpy(), scores.numpy(), k=k)
        )


def test_evaluate_is_imported_by_its_users_only():
    code = "import sys, ssl_hub.training.trainer; assert 'evaluate' not in sys.modules"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


def test_evaluators():
    x, y = clouds(noise=0.05)
    specs = [{"type": "clustering"}, {"type": "retrieval"}, {"type": "spectrum"}]
    found = {}
    for evaluator in build_evaluators(specs):
        found |= evaluator.evaluate(LabelledFeatures(x, y), None)
    assert found["clustering_nmi"] == found["clustering_accuracy"] == pytest.approx(1)
    assert found["retrieval_map"] == found["retrieval_recall_at_1"] == pytest.approx(1)
    assert found.keys() == {name for evaluator in build_evaluators(specs) for name in evaluator.metrics}


def metric(name, **inputs):
    return metrics.load_metric(name).compute(**inputs)


def test_a_collapse_ends_no_run():
    x, y = clouds()
    for features, names in ((torch.ones_like(x), {"uniformity"}), (x[:1], set())):
        (evaluator,) = build_evaluators([{"type": "spectrum"}])
        assert evaluator.evaluate(LabelledFeatures(features, None), None).keys() == names
    (evaluator,) = build_evaluators([{"type": "clustering"}])
    found = evaluator.evaluate(LabelledFeatures(torch.ones_like(x), y), None)
    assert found == pytest.approx({"clustering_nmi": 0, "clustering_ari": 0, "clustering_accuracy": 0.25})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: alignment(x, x[1:]), "Two views need features of one shape"),
        (lambda x, y: uniformity(x[:1]), "pairs of images"),
        (lambda x, y: uniformity(x * float("nan")), "hold NaN or infinity"),
        (lambda x, y: alpha_req(torch.ones(9, 4)), "vary in 0 directions only"),
        (lambda x, y: lidar(x), "needs features .images, views, dimensions."),
        (lambda x, y: retrieval_scores(x[:4], y[:4]), "4 images of 4 classes: retrieval needs two classes or more"),
        (lambda x, y: retrieval_scores(x, y * 0), "120 images of 1 classes: retrieval needs two classes or more"),
        (lambda x, y: retrieval_scores(x, y, ks=(0, 1)), "recall at 0"),
        (lambda x, y: clustering_accuracy(y, y.float()), "integers of at least 0"),
        (lambda x, y: normalized_mutual_information(y, y[1:]), "two labellings need one entry an image"),
        (lambda x, y: average_precision(x[:, 0], y), r"are 1 or 0; got \[0, 1, 2, 3\]"),
        (lambda x, y: average_precision(x[:, 0], 1 - 2 * (y == 0).long()), r"are 1 or 0; got \[-1, 1\]"),
        (lambda x, y: average_precision(x[:, 0] / 0, y == 0), "needs finite scores"),
        (lambda x, y: topk_accuracy(x, y, 9), "k=9 of 8 classes"),
        (lambda x, y: topk_accuracy(x[:, :3], y), "A label is 3, but the scores are of 3 classes"),
        (lambda x, y: topk_accuracy(x * float("inf"), y), "hold NaN or infinity"),
        (
            lambda x, y: metric("rankme", embeddings=[[1.0, 2.0], [1.0]]),
            "embeddings must be numbers, as many for every",
        ),
        (
            lambda x, y: metric("nmi", predictions=[0, 1], references=[0, None]),
            "references must be numbers, .* missing",
        ),
        (
            lambda x, y: metric("retrieval", embeddings=x),
            "needs embeddings and references; compute.. got embeddings only",
        ),
        (
            lambda x, y: metric("knn_accuracy", embeddings=x, references=y),
            "needs train_embeddings and train_references",
        ),
        (lambda x, y: clustering_accuracy(y, y - 1), "integers of at least 0"),
        (lambda x, y: average_precision(x[:, 0], torch.zeros(120)), "No image is of the class"),
        (lambda x, y: average_precision(x[:, 0], y == 0, "ten"), "must be 'none', 'all' or 'eleven'; got 'ten'"),
        (lambda x, y: knn_accuracies(x, y, x, y, ks=[0, 3]), "k=0 neighbours"),
        (lambda x, y: knn_accuracies(x, y, x, y, ks=[]), "k=no neighbours"),
        (lambda x, y: ClusteringEvaluator(num_clusters=1), "must be at least 2"),
        (
            lambda x, y: ClusteringEvaluator().evaluate(LabelledFeatures(x, torch.zeros(120, dtype=torch.long)), None),
            "1 clusters of 120 images: .* needs two classes or more",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(*clouds())
