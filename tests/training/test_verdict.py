"""What is said of runs by their logs."""

import pytest

from ssl_hub.training.verdict import judge


def history(losses, *evaluations, per_interval=10, rate=lambda step: 0.1):
    """Ten lines of loss an interval, and an evaluation at the end of each; the first is of step 0."""
    records = [{"step": 0, **evaluations[0]}, {"step": 0, "chance_accuracy": 0.1, "pixel_knn_accuracy": 0.28}]
    for number, evaluation in enumerate(evaluations[1:]):
        for step in range(number * per_interval + 1, (number + 1) * per_interval + 1):
            records.append({"step": step, "loss": losses(step), "learning_rate": rate(step)})
        records.append({"step": step, **evaluation})
    return records


def features(knn=None, std=0.4, rank=40.0, **others):
    return ({} if knn is None else {"knn_accuracy": knn}) | {"embedding_std": std, "rankme": rank} | others


def scatter(step):
    """From -0.5 to 0.5, without a trend."""
    return step * 7 % 11 / 10 - 0.5


def falling(step):
    return 7 - 0.03 * step + 0.05 * scatter(step)


def flat(step):
    return 7 + 0.05 * scatter(step)


def rising(step):
    return 7 + 0.05 * step + 0.05 * scatter(step)


def noisy(step):
    return 7 + 3 * (step * 5 % 7 / 6 - 0.5) + 2 * (step % 10 > 7)


START = features(0.25, 0.1, 9.0)
GAINS = (START, features(0.3), features(0.34), features(0.37))
PLATEAU = (START, features(0.3), features(0.302), features(0.299))


@pytest.mark.parametrize(
    ("losses", "evaluations", "state", "words"),
    [
        (falling, GAINS[:1], "unclear", "too early to say"),
        (falling, GAINS[:2], "learning", "kNN accuracy 25.0 -> 30.0 (chance 10.0, kNN of pixels 28.0)"),
        (falling, GAINS, "learning", "since step 10 kNN accuracy 30.0 -> 37.0"),
        (flat, GAINS, "learning", "kNN accuracy"),  # as with BYOL, whose loss is no measure
        (rising, GAINS, "learning", "kNN accuracy"),  # as with MoCo, whose queue fills
        (falling, PLATEAU, "learning", "loss 6.6"),
        # BatchNorm's statistics alone change the features of step 0.
        (flat, GAINS[:2], "stalled", "the loss does not fall, since step 0"),
        (flat, PLATEAU, "stalled", "the loss does not fall and the accuracy does not rise"),
        (rising, PLATEAU, "stalled", "the loss rises and the accuracy does not rise"),
        (flat, (START, features(0.3), features(0.26), features(0.25)), "stalled", "and the accuracy falls"),
        (noisy, PLATEAU, "unclear", "the loss scatters as much as it changes"),
        # As MAE goes at first.
        (falling, (START, features(0.25), features(0.24), features(0.22)), "unclear", "falls and the accuracy, too"),
        (falling, (START, features(0.4), features(0.3), features(0.29)), "overfitting", "kNN accuracy 40.0 -> 29.0"),
        (falling, (START, features(0.4), features(0.41), features(0.29)), "unclear", "hard to say"),  # once
        (flat, (START, features(0.4), features(0.3), features(0.29)), "stalled", "the accuracy falls"),
        (falling, (features(), features(), features()), "learning", "RankMe 40 -> 40"),
        (flat, (features(), features(), features()), "stalled", "nothing changes"),
        (flat, (features(), features(rank=30.0), features()), "unclear", "hard to say without labels"),
        (rising, (features(), features(), features()), "unclear", "without labels: the loss rises"),
        (falling, (START, features(0.3, 0.004, 1.2)), "collapsed", "all images get nearly the same vector"),
        (falling, (features(), features(std=0.0, rank=0.0)), "collapsed", "effective rank 0.0"),
        (falling, (features(), features(), features(rank=3.0)), "collapsed", "few directions"),
        (falling, ({"online_probe_accuracy": 0.1}, {"online_probe_accuracy": 0.4}), "learning", "online probe"),
        # LiDAR falls in runs that go well, and alignment rises; both at once are overfitting.
        *(
            (falling, tuple(features(lidar=x, alignment=y) for x, y in zip(lidar, alignment, strict=True)), state, word)
            for lidar, alignment, state, word in [
                ((20.0, 60.0, 45.0, 44.0), (0.1, 0.3, 0.3, 0.29), "learning", "LiDAR 60 -> 44"),
                ((20.0, 60.0, 62.0, 64.0), (0.1, 0.3, 0.4, 0.5), "learning", "LiDAR 60 -> 64"),
                ((20.0, 60.0, 45.0, 44.0), (0.1, 0.3, 0.4, 0.4), "overfitting", "held-out images LiDAR 60 -> 44"),
            ]
        ),
    ],
)
def test_the_verdict(losses, evaluations, state, words):
    verdict = judge(history(losses, *evaluations))
    assert (verdict.state, words in verdict.sentence) == (state, True), verdict
    assert verdict.is_bad == (state in ("stalled", "collapsed", "overfitting"))
    assert verdict.sentence.startswith({"unclear": ("too early", "hard")}.get(state, state))


def test_training_images_show_no_overfitting():
    views = [features(lidar=x, alignment=1 / x) for x in (20.0, 60.0, 45.0, 44.0)]
    assert judge(history(falling, *views)).state == "overfitting"
    assert judge(history(falling, *views), held_out=False).state == "learning"


@pytest.mark.parametrize(
    ("losses", "rate", "words"),
    [
        (flat, lambda step: 1e-9, "Try another learning rate (1e-09)"),
        (flat, lambda step: 0.1 if step < 20 else 0.001, "The learning rate has come down to its end"),
        (lambda step: max(falling(step), 6.7), lambda step: 0.1, "It has learned before (loss 6.8"),
    ],
)
def test_what_to_do_about_a_stalled_run(losses, rate, words):
    assert words in judge(history(losses, *PLATEAU, rate=rate)).sentence


def test_few_lines_take_a_clear_change():
    evaluations = GAINS[0], features(0.31)
    for losses, state in ((lambda step: 7 - 0.05 * step, "unclear"), (lambda step: 7 - 0.5 * step, "learning")):
        assert judge(history(losses, *evaluations, per_interval=3)).state == state
    assert judge([{"step": 5, **features(0.3)}]).state == "unclear"  # a run that resumed in another folder
    assert judge([]).state == "unclear"
