"""Which checkpoint of a run is the best one by a metric of its evaluation."""

import logging
import math
from pathlib import Path

import torch

from ..distributed import broadcast_
from ..evaluation.evaluators import METRICS

logger = logging.getLogger(__name__)


class BestCheckpoint:
    """Remembers the best evaluation so far.

    Args:
        metric: by name; None to keep no best one.
        device: that processes communicate on.

    Attributes:
        found: metric, value and step of the best evaluation; None before there is one.
    """

    def __init__(self, metric: str | None, device: torch.device):
        self.metric, self.device = metric, device
        self.found: dict | None = None

    @property
    def step(self) -> int | None:
        return None if self.found is None else self.found["step"]

    def note(self, step: int, evaluation: dict[str, float]) -> bool:
        """Whether an evaluation is the best one so far, so that its checkpoint is to be saved."""
        if self.metric not in evaluation:
            return False
        # As the first process found it, lest rounding divides them.
        value = torch.tensor(evaluation[self.metric], dtype=torch.double, device=self.device)
        value, goodness = broadcast_(value).item(), METRICS[self.metric].goodness
        if not math.isfinite(value) or (self.found and goodness(value) <= goodness(self.found["value"])):
            return False
        self.found = {"metric": self.metric, "value": value, "step": step}
        return True

    def resume(self, found: dict | None, output_dir: Path) -> None:
        """Takes what `found` was, unless it is by another metric or its checkpoint is gone."""
        if found is None or found["metric"] != self.metric:
            return
        if (output_dir / f"checkpoint-{found['step']}").is_dir():
            self.found = found
        else:
            logger.warning(
                "checkpoint-%d, the best one by %s, is no longer in %s: the best one from here on is kept",
                *(found["step"], self.metric, output_dir),
            )

    def __str__(self) -> str:
        metric = METRICS[self.metric]
        return f"the best {metric.title}, {metric.format(self.found['value'])}, is that of checkpoint-{self.step}"
