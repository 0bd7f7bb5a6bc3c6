"""What a run tells: metrics.jsonl, trackers, progress bar, skipped images, and the step at which a loss went wrong."""

import json
import logging
import math
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from .checkpointing import CheckpointWriter, checkpoint_step, cut_metrics
from .timing import Stopwatch, peak_memory

logger = logging.getLogger(__name__)

# Between two losses that the progress bar asks the device for.
_BAR_SECONDS = 3.0


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite."""


def build_trackers(report_to: str) -> list[str] | None:
    return None if report_to == "none" else report_to.split(",")


def check_trackers(accelerator: Accelerator, report_to: str) -> None:
    """Accelerate leaves a tracker out without a word when its package is missing."""
    missing = set(build_trackers(report_to) or ()) - {"all"} - {str(tracker) for tracker in accelerator.log_with}
    if missing:
        names = " ".join(sorted(missing))
        raise ValueError(f"--report_to {report_to}: install what is missing (pip install {names}) or leave it out")


class RunLog:
    """The log of one run. A line holds the means of the loss terms since the last one.

    Args:
        output_dir: gets `metrics.jsonl`.
        checkpoints: of the run, the last of which errors name.
    """

    def __init__(self, output_dir: Path, accelerator: Accelerator, checkpoints: CheckpointWriter):
        self.output_dir, self.accelerator, self.checkpoints = output_dir, accelerator, checkpoints
        self.metrics_path = output_dir / "metrics.jsonl"
        self.unreadable: set[str] = set()
        self.sums: dict[str, torch.Tensor] = {}  # of the loss terms since the last line
        self.last_step = 0  # of the last line
        # The first step whose loss was not finite, or infinity, and the loss terms there.
        self.first_bad = torch.tensor([math.inf], dtype=torch.double, device=accelerator.device)
        self.term_names: list[str] = []
        self.bar: tqdm | None = None
        self.shown: dict[str, str] = {}  # beside the bar
        self.shown_at = -math.inf  # when that changed
        self.run_time, self.run_images = Stopwatch(accelerator.device), 0  # since this process began
        self.line_time, self.line_images = Stopwatch(accelerator.device), 0  # since the last line

    def start(self, step: int, total_steps: int, settings: dict) -> None:
        """Begins at a step: drops what a killed run logged after it.

        Args:
            settings: for the trackers.
        """
        if self.accelerator.is_main_process:
            cut_metrics(self.metrics_path, step)
        self.accelerator.init_trackers("ssl_hub", config=settings)
        self.bar = tqdm(
            total=total_steps,
            initial=step,
            desc="pretraining",
            disable=not self.accelerator.is_main_process,
            mininterval=0.1 if sys.stderr.isatty() else 30,  # seconds; in a log file every update is a line
        )
        self.run_time.restart()
        self.line_time.restart()

    def add_terms(self, step: int, terms: dict[str, torch.Tensor], share: float) -> None:
        """Counts the loss terms of a forward pass in `step` by their share of that step."""
        # Looked at when a line is written: asking at every step would make the device wait for the host.
        fine = torch.isfinite(terms["loss"]) | torch.isfinite(self.first_bad[0])
        here = torch.stack([torch.full_like(terms["loss"], step), *terms.values()])
        self.first_bad, self.term_names = torch.where(fine, self.first_bad, here), list(terms)
        for name, term in terms.items():
            self.add(name, term * share)

    def add(self, name: str, value: torch.Tensor) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + value

    def add_images(self, count: int) -> None:
        self.run_images += count
        self.line_images += count

    @contextmanager
    def timed(self, activity: str) -> Iterator[None]:
        """Counts what happens within as one of `ACTIVITIES`."""
        with self.run_time.timed(activity), self.line_time.timed(activity):
            yield

    def update_bar(self, step: int) -> None:
        """Moves the bar by a step. It shows the mean loss since the last line, every few seconds and from the first step on.

        Asking at every step would make the device wait for the host.
        """
        self.bar.update()
        if not self.bar.disable and time.perf_counter() - self.shown_at > max(_BAR_SECONDS, self.bar.mininterval):
            self._show(loss=f"{self.sums['loss'].item() / (step - self.last_step):.4f}")

    def _show(self, **values: str) -> None:
        self.shown |= values
        self.shown_at = time.perf_counter()
        self.bar.set_postfix(self.shown)

    def write_interval(self, step: int, learning_rate: float, epoch: float) -> None:
        """Writes the line of the steps since the last one."""
        self.check_finite()
        steps = step - self.last_step
        metrics = {name: value / steps for name, value in self._mean_sums().items()}
        metrics["learning_rate"] = learning_rate
        metrics["epoch"] = epoch
        metrics["images_per_second"] = self.line_images / self.line_time.training
        metrics |= {f"{name}_share": share for name, share in self.line_time.shares().items()}
        metrics["peak_memory_mib"] = peak_memory(self.accelerator.device)
        self.write(step, metrics)
        self._show(
            loss=f"{metrics['loss']:.4f}",
            lr=f"{learning_rate:.1e}",
            images_per_s=f"{metrics['images_per_second']:.0f}",
            waiting=f"{metrics['data_wait_share']:.0%}",
            MiB=f"{metrics['peak_memory_mib']:.0f}",
        )
        self.sums, self.last_step = {}, step
        self.line_images = 0
        self.line_time.restart()

    def write(self, step: int, metrics: dict) -> None:
        self.accelerator.log(metrics, step=step)
        if self.accelerator.is_main_process:
            with self.metrics_path.open("a") as file:
                file.write(json.dumps({"step": step, **metrics}) + "\n")

    def say(self, text: str) -> None:
        """A line on the terminal of the main process, above the progress bar."""
        if self.accelerator.is_main_process:
            tqdm.write(text)

    def note_unreadable(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.unreadable:
                self.unreadable.add(name)
                logger.warning("skipped an image that cannot be read (%d so far): %s", len(self.unreadable), name)

    def records(self) -> list[dict]:
        """The lines that were written; none yet where a run resumes from another one's folder."""
        if not self.metrics_path.exists():
            return []
        return [json.loads(line) for line in self.metrics_path.read_text().splitlines()]

    def state(self) -> dict:
        """What a resumed run continues with, the same on every process."""
        self.unreadable = set(gather_object(sorted(self.unreadable)))
        return {"sums": self._mean_sums(), "last_step": self.last_step, "unreadable": sorted(self.unreadable)}

    def load_state(self, state: dict) -> None:
        device = self.accelerator.device
        self.sums = {
            name: torch.tensor(value, dtype=torch.double, device=device) for name, value in state["sums"].items()
        }
        self.last_step, self.unreadable = state["last_step"], set(state["unreadable"])

    def check_finite(self) -> None:
        """Raises `NonFiniteLossError` if any process has seen a loss that is not finite."""
        # A process may see its first bad loss a step after another one, from the weights that this one made bad.
        found = self.accelerator.gather(self.first_bad[None])
        bad_step, *values = found[found[:, 0].argmin()].tolist()
        if math.isfinite(bad_step):
            terms = ", ".join(f"{name} {value:.6g}" for name, value in zip(self.term_names, values, strict=True))
            self.raise_non_finite(f"the loss was not finite at step {int(bad_step)}: {terms}", int(bad_step) - 1)

    def raise_non_finite(self, what: str, bad_step: int) -> NoReturn:
        """Raises `NonFiniteLossError`.

        Args:
            what: the first half of the sentence.
            bad_step: the step that made the weights bad; a checkpoint of it is no good, though its values are finite.
        """
        raise NonFiniteLossError(
            f"{what}. {self.how_to_resume(bad_step)} "
            "Usual causes: too high a learning rate or too short a warm-up, fp16 where bf16 or no mixed precision is "
            "needed, no max_grad_norm: a resumed run takes them from its command line."
        )

    def how_to_resume(self, before: float = math.inf) -> str:
        """Names the last checkpoint of a step `before` this one."""
        good = [path for path in self.checkpoints.whole_checkpoints() if checkpoint_step(path) < before]
        if not good:
            return "There is no good checkpoint yet: begin anew with another --output_dir."
        return f"The last good checkpoint is {good[-1]}. Resume from it with --resume_from_checkpoint {good[-1]}."

    def _mean_sums(self) -> dict[str, float]:
        """The sums, averaged over the processes."""
        if not self.sums:
            return {}
        values = self.accelerator.reduce(torch.stack(list(self.sums.values())), reduction="mean")
        return dict(zip(self.sums, values.tolist(), strict=True))
