"""Whether a run goes well, in plain words, from what it has logged."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..evaluation.evaluators import METRICS, accuracy_levels
from ..evaluation.label_free import describe_collapse

# The thresholds were tried on short runs on 2,000 to 5,000 images of CIFAR-10, evaluated on 1,000: SimCLR and SimSiam that learn,
# SimCLR at a rate of 1e-9, SimCLR with a weight decay of 5, and MAE. What was said of them is in docs/troubleshooting.md.
#
# The same images are evaluated each time; accuracies of runs that neither gain nor lose wavered by one or two points.
_ACCURACY_GAIN, _ACCURACY_LOSS = 0.01, 0.02
# RankMe, LiDAR and spread waver by 5 to 10 % between evaluations.
_FEATURE_CHANGE = 0.1
# A loss falls or rises where its lines have a trend by Kendall's test at this level, and it changes by this share. Four lines
# cannot reach the level; they take a larger share, as at a rate of 1e-9 three lines differed by 3 %. A change that is as
# large without a trend is scatter, of which nothing can be said.
_TREND_LEVEL, _LEAST_CHANGE, _FEWEST_LINES, _LARGE_CHANGE = 0.05, 0.003, 5, 0.05
# A loss that has no trend in so many lines since the start will not soon have one.
_ENOUGH_LINES = 8
# What a held-out accuracy has to lose from its best, twice in a row, in points and as a share. A MAE lost four points before it
# gained any.
_OVERFITTING_LOSS, _OVERFITTING_SHARE = 0.05, 0.1
# What a held-out LiDAR has to lose so, while views of an image move apart by so much. Either alone is seen in runs that go
# well: SimSiam's LiDAR fell by 17 % while kNN held, and alignment rises where features spread at first.
_LIDAR_LOSS, _ALIGNMENT_RISE = 0.15, 0.1
# Features on few directions: an effective rank below both this and this share of what it was. MAE's fell to a half.
_FEW_DIRECTIONS, _RANK_SHARE = 8.0, 0.2
# Below this share of its peak a learning rate changes little any more.
_LOW_RATE = 0.1


@dataclass(frozen=True)
class Verdict:
    """How a run goes.

    Args:
        state: in a word; "unclear" where it is too early to say, or there is nothing to tell it by.
        sentence: the same with what was seen and, where something is wrong, what to do.
    """

    state: Literal["learning", "stalled", "collapsed", "overfitting", "unclear"]
    sentence: str

    @property
    def is_bad(self) -> bool:
        return self.state in ("stalled", "collapsed", "overfitting")


@dataclass(frozen=True)
class _Loss:
    """The training loss between two steps: its level before and after, and whether there is more than scatter."""

    before: float
    after: float
    trend: Literal["falls", "rises", "flat", "unclear"]
    lines: int


def judge(records: Sequence[Mapping], held_out: bool = True) -> Verdict:
    """Says how a run goes, by its last evaluation and those before.

    Features are compared over the last two intervals between evaluations. Step 0 is left out as soon as there are others:
    a network's BatchNorm has no statistics yet, so that its features change without any learning.

    Without labels a falling loss and features that keep their spread are all that can be said; what the features are good for
    shows in an accuracy only.

    Args:
        records: the lines of `metrics.jsonl`.
        held_out: whether the images of the evaluation are none of those that the run trains on. Otherwise overfitting
            cannot be seen.
    """
    evaluations = evaluations_of(records)
    if len(evaluations) == 0 or evaluations[-1]["step"] == 0:
        return Verdict("unclear", "too early to say: there is no evaluation after the first step yet")
    now = evaluations[-1]
    collapse = _collapse(evaluations)
    if collapse is not None:
        return Verdict("collapsed", f"collapsed: {collapse}")
    if len(evaluations) == 1:
        return Verdict("unclear", "too early to say: there is no earlier evaluation to compare with")

    since = evaluations[-3] if len(evaluations) > 2 and evaluations[-3]["step"] > 0 else evaluations[-2]
    loss = _loss_between(records, since["step"], now["step"])
    if held_out and (worse := _overfitting(records, evaluations)) is not None:
        return Verdict("overfitting", f"overfitting: {worse}")

    seen = f"since step {since['step']} {_describe(since, now, loss, records)}"
    if loss is None:
        return Verdict("unclear", f"too early to say: {seen}")
    changes = [now[name] - since[name] for name in _accuracies(now) if name in since]
    gains = any(change > _ACCURACY_GAIN for change in changes)
    loses = bool(changes) and all(change < -_ACCURACY_LOSS for change in changes)
    is_first = since["step"] == 0  # whose features change by BatchNorm's statistics alone
    if loss.trend == "flat" and is_first:
        if loss.lines < _ENOUGH_LINES:
            return Verdict("unclear", f"too early to say: {seen}")
        return Verdict("stalled", f"stalled: the loss does not fall, {seen}. {_advice(records, now)}")
    if loss.trend == "unclear" and (is_first or not gains):
        return Verdict("unclear", f"hard to say: the loss scatters as much as it changes, {seen}")
    if gains or (loss.trend == "falls" and not loses):
        return Verdict("learning", f"learning: {seen}")
    if loss.trend == "falls":
        return Verdict("unclear", f"hard to say: the loss falls and the accuracy, too, {seen}")
    goes = "the loss rises" if loss.trend == "rises" else "the loss does not fall"
    if changes:
        does = "falls" if loses else "does not rise"
        return Verdict("stalled", f"stalled: {goes} and the accuracy {does}, {seen}. {_advice(records, now)}")
    if loss.trend == "flat" and not _features_change(since, now):
        return Verdict("stalled", f"stalled: nothing changes, {seen}. {_advice(records, now)}")
    return Verdict("unclear", f"hard to say without labels: {goes} and the features change, {seen}")


def evaluations_of(records: Sequence[Mapping]) -> list[dict]:
    """The metrics of each evaluation, by step."""
    found: dict[int, dict] = {}
    for record in records:
        if metrics := {name: record[name] for name in METRICS if record.get(name) is not None}:
            found.setdefault(record["step"], {"step": record["step"]}).update(metrics)
    return [found[step] for step in sorted(found)]


def _accuracies(evaluation: Mapping) -> list[str]:
    return [name for name in METRICS if METRICS[name].hub_type == "accuracy" and name in evaluation]


def _loss_between(records: Sequence[Mapping], start: int, stop: int) -> _Loss | None:
    """From the line at the start on, or else the first one, to the stop; None for fewer than two lines."""
    lines = {record["step"]: record["loss"] for record in records if "loss" in record and record["step"] <= stop}
    first = max((step for step in lines if step <= start), default=-1)
    losses = [lines[step] for step in sorted(lines) if step >= first]
    if len(losses) < 2:
        return None
    count = max(1, len(losses) // 4)
    before, after = statistics.fmean(losses[:count]), statistics.fmean(losses[-count:])
    size = abs(after - before) / max(abs(before), abs(after), 1e-12)
    if len(losses) < _FEWEST_LINES:
        is_trend = size > _LARGE_CHANGE
    else:
        from scipy.stats import kendalltau  # it takes a while to import

        is_trend = size > _LEAST_CHANGE and kendalltau(range(len(losses)), losses).pvalue < _TREND_LEVEL
    trend = "unclear" if size > _LARGE_CHANGE else "flat"
    if is_trend:
        trend = "falls" if after < before else "rises"
    return _Loss(before, after, trend, len(losses))


def _collapse(evaluations: Sequence[Mapping]) -> str | None:
    now = evaluations[-1]
    if collapse := describe_collapse(now):
        return collapse
    ranks = [each["rankme"] for each in evaluations if "rankme" in each]
    if "rankme" in now and now["rankme"] < min(_FEW_DIRECTIONS, _RANK_SHARE * max(ranks)):
        return (
            f"the features keep to few directions: the effective rank (RankMe) has fallen from {max(ranks):.1f} to "
            f"{now['rankme']:.1f}. A lower learning rate, a larger batch or stronger views help."
        )
    return None


def _overfitting(records: Sequence[Mapping], evaluations: Sequence[Mapping]) -> str | None:
    """What held-out images lost while the training loss fell; None if they did not, twice in a row."""
    now, trained = evaluations[-1], [each for each in evaluations if each["step"] > 0]
    names = _accuracies(now) or [name for name in ("lidar",) if "alignment" in now and name in now]
    found = []
    for name in names:
        known = [each for each in trained if name in each]
        if len(known) < 3:
            return None
        best = max(known[:-2], key=lambda each: each[name])
        if not all(_is_much_worse(name, best, each) for each in known[-2:]):
            return None
        loss = _loss_between(records, best["step"], now["step"])
        if loss is None or loss.trend != "falls":
            return None
        found.append(f"{_value(name, best, now)} since step {best['step']}")
    if not found:
        return None
    return (
        f"on held-out images {', '.join(found)}, while the training loss falls ({loss.before:.4g} -> {loss.after:.4g}). "
        "Take the best checkpoint (--keep_best), more images, stronger views, more weight decay or fewer epochs."
    )


def _is_much_worse(name: str, best: Mapping, now: Mapping) -> bool:
    loss = best[name] - now[name]
    if name == "lidar":
        rises = now.get("alignment", 0.0) > best.get("alignment", math.inf) * (1 + _ALIGNMENT_RISE)
        return loss > _LIDAR_LOSS * best[name] and rises
    return loss > max(_OVERFITTING_LOSS, _OVERFITTING_SHARE * best[name])


def _features_change(since: Mapping, now: Mapping) -> bool:
    return any(
        abs(now[name] - since[name]) > _FEATURE_CHANGE * abs(since[name])
        for name in ("embedding_std", "rankme", "lidar")
        if name in since and name in now
    )


def _describe(since: Mapping, now: Mapping, loss: _Loss | None, records: Sequence[Mapping]) -> str:
    levels = {label: next(iter(known.values())) for label, known in accuracy_levels(records).items()}
    parts = [_value(name, since, now) for name in _accuracies(now)]
    if parts and levels:
        parts[0] += f" ({', '.join(f'{label} {100 * value:.1f}' for label, value in levels.items())})"
    parts += [_value(name, since, now) for name in ("rankme", "embedding_std", "lidar") if name in now]
    if loss is not None:
        parts.append(f"loss {loss.before:.4g} -> {loss.after:.4g}")
    return ", ".join(parts) or "nothing was measured"


def _value(name: str, since: Mapping, now: Mapping) -> str:
    metric = METRICS[name]
    title = metric.title.partition(" (")[0]
    if name not in since:
        return f"{title} {_number(metric.percent, now[name])}"
    return f"{title} {_number(metric.percent, since[name])} -> {_number(metric.percent, now[name])}"


def _number(percent: bool, value: float) -> str:
    return f"{100 * value:.1f}" if percent else f"{value:.3g}"


def _advice(records: Sequence[Mapping], now: Mapping) -> str:
    rates = [
        record["learning_rate"] for record in records if "learning_rate" in record and record["step"] <= now["step"]
    ]
    if rates and rates[-1] < _LOW_RATE * max(rates):
        return "The learning rate has come down to its end, so little more will change: this is what such a run learns."
    whole = _loss_between(records, 0, now["step"])
    if whole is not None and whole.trend == "falls":
        return (
            f"It has learned before (loss {whole.before:.4g} -> {whole.after:.4g} since the start): a lower learning rate, "
            "or a schedule that comes down sooner, may bring more."
        )
    rate = f" ({rates[-1]:.2g})" if rates else ""
    return (
        f"Try another learning rate{rate}, ten times as high or as low, and look at what the views leave of an image."
    )
