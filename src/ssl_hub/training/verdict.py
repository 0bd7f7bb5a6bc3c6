"""Whether a run goes well, in plain words, from what it has logged."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..evaluation.evaluators import METRICS, accuracy_levels
from ..evaluation.label_free import describe_collapse

# All of these were tried on runs that are known to go well or badly; the table is in docs/troubleshooting.md.
#
# The same images are evaluated each time. On 1,000 of them the accuracy of a healthy run wavers by about a point.
_ACCURACY_CHANGE = 0.01
# A healthy run's RankMe, LiDAR and spread waver by 5 to 10 % between evaluations.
_FEATURE_CHANGE = 0.1
# A loss has changed when that is this share of it, and this many times what its scatter from line to line explains. Where
# there are too few lines to tell the scatter it takes a larger share: in a run at a rate of 1e-9 three lines differed by 3 %.
_LOSS_CHANGE, _LOSS_SCATTERS, _CLEAR_LOSS_CHANGE = 0.003, 2.5, 0.05
_RECENT_LINES = 60  # that tell the scatter
# A loss that has not left its level in so many lines since the start will not soon.
_MIN_LINES = 8
# What a held-out accuracy, in points or as a share, or a held-out LiDAR has to lose from its best, twice in a row. In a
# healthy run LiDAR falls by 5 % while kNN rises.
_ACCURACY_LOSS, _ACCURACY_LOSS_SHARE, _LIDAR_LOSS = 0.02, 0.05, 0.15
# Features on few directions: an effective rank below both this and this share of what it was.
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
class _Change:
    """Of the training loss between two steps: its level before and after, and whether there is more than scatter."""

    before: float
    after: float
    is_change: bool
    lines: int

    @property
    def falls(self) -> bool:
        return self.is_change and self.after < self.before


def judge(records: Sequence[Mapping], held_out: bool = True) -> Verdict:
    """Says how a run goes, by its last evaluation and those before.

    Features are compared over the last two intervals between evaluations. Step 0 is left out as soon as there are others:
    a network's BatchNorm has no statistics yet, so that its features change without any learning.

    Without labels a falling loss, features that keep their spread, and a LiDAR that holds are all that can be said; what the
    features are good for shows in an accuracy only.

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
    loss = _loss_change(records, since["step"], now["step"])
    if held_out and (worse := _overfitting(records, evaluations)) is not None:
        return Verdict("overfitting", f"overfitting: {worse}")

    seen = f"since step {since['step']} {_describe(since, now, loss, records)}"
    accuracies = [now[name] - since[name] for name in _accuracies(now) if name in since]
    improves = any(change > _ACCURACY_CHANGE for change in accuracies)
    worsens = accuracies and all(change < -_ACCURACY_LOSS for change in accuracies)
    moves = loss is not None and loss.is_change
    if (improves and (moves or since["step"] > 0)) or (loss is not None and loss.falls and not worsens):
        return Verdict("learning", f"learning: {seen}")
    if loss is None or (since["step"] == 0 and not moves and loss.lines < _MIN_LINES):
        return Verdict("unclear", f"too early to say: {seen}")
    if not worsens and not moves and (since["step"] == 0 or not _features_change(since, now)):
        return Verdict("stalled", f"stalled: nothing changes, {seen}. {_advice(records, now)}")
    if accuracies:
        why = "the accuracy falls" if worsens else "the loss rises and the accuracy does not"
        return Verdict("stalled", f"stalled: {why}, {seen}. {_advice(records, now)}")
    why = "the loss does not fall" if not moves else "the loss rises"
    return Verdict("unclear", f"hard to say without labels: {why} and the features change, {seen}")


def evaluations_of(records: Sequence[Mapping]) -> list[dict]:
    """The metrics of each evaluation, by step."""
    found: dict[int, dict] = {}
    for record in records:
        if metrics := {name: record[name] for name in METRICS if record.get(name) is not None}:
            found.setdefault(record["step"], {"step": record["step"]}).update(metrics)
    return [found[step] for step in sorted(found)]


def _accuracies(evaluation: Mapping) -> list[str]:
    return [name for name in METRICS if METRICS[name].hub_type == "accuracy" and name in evaluation]


def _loss_change(records: Sequence[Mapping], start: int, stop: int) -> _Change | None:
    """From the line at the start on, or else the first one, to the stop; None for fewer than two lines."""
    lines = {record["step"]: record["loss"] for record in records if "loss" in record and record["step"] <= stop}
    earlier = [step for step in lines if step <= start]
    first = max(earlier) if earlier else -1
    losses = [lines[step] for step in sorted(lines) if step >= first]
    if len(losses) < 2:
        return None
    count = max(1, len(losses) // 4)
    before, after = statistics.fmean(losses[:count]), statistics.fmean(losses[-count:])
    scatter = _scatter([lines[step] for step in sorted(lines)][-_RECENT_LINES:])
    if scatter is None:
        needed = _CLEAR_LOSS_CHANGE * abs(before)
    else:
        needed = max(_LOSS_CHANGE * abs(before), _LOSS_SCATTERS * scatter * (2 / count) ** 0.5)
    return _Change(before, after, abs(after - before) > needed, len(losses))


def _scatter(values: Sequence[float]) -> float | None:
    """The standard deviation of values about a smooth curve, from their second differences; None for fewer than five."""
    bends = [abs(a - 2 * b + c) for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    # The second difference of independent values has six times their variance; 0.6745 is the median of a normal |x|.
    return statistics.median(bends) / (0.6745 * math.sqrt(6)) if len(bends) > 2 else None


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
    names = _accuracies(now) or [name for name in ("lidar",) if name in now]
    found = []
    for name in names:
        known = [each for each in trained if name in each]
        if len(known) < 3:
            return None
        best = max(known[:-2], key=lambda each: each[name])
        if name == "lidar":
            limit = best[name] * (1 - _LIDAR_LOSS)
        else:
            limit = best[name] - max(_ACCURACY_LOSS, _ACCURACY_LOSS_SHARE * best[name])
        loss = _loss_change(records, best["step"], now["step"])
        if max(each[name] for each in known[-2:]) > limit or loss is None or not loss.falls:
            return None
        found.append(f"{_value(name, best, now)} since step {best['step']}")
    if not found:
        return None
    return (
        f"on held-out images {', '.join(found)}, while the training loss falls ({loss.before:.4g} -> {loss.after:.4g}). "
        "Take the best checkpoint (--keep_best), more images, stronger views, more weight decay or fewer epochs."
    )


def _features_change(since: Mapping, now: Mapping) -> bool:
    return any(
        abs(now[name] - since[name]) > _FEATURE_CHANGE * abs(since[name])
        for name in ("embedding_std", "rankme", "lidar")
        if name in since and name in now
    )


def _describe(since: Mapping, now: Mapping, loss: _Change | None, records: Sequence[Mapping]) -> str:
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
    whole = _loss_change(records, 0, now["step"])
    if whole is not None and whole.falls:
        return (
            f"It has learned before (loss {whole.before:.4g} -> {whole.after:.4g} since the start): a lower learning rate, "
            "or a schedule that comes down sooner, may bring more."
        )
    rate = f" ({rates[-1]:.2g})" if rates else ""
    return (
        f"Try another learning rate{rate}, ten times as high or as low, and look at what the views leave of an image."
    )
