"""How a run goes, for those who watch it: a verdict at every evaluation, pictures, and a page for a browser."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path

import datasets
import torch
from transformers import BaseImageProcessor

from ..data.images import UnreadableImageError
from ..data.loading import ViewDataset, build_eval_loader
from ..data.processing import Normalize
from ..evaluation.evaluators import accuracy_levels
from ..evaluation.features import evaluation_mode
from ..hub.pages import metric_rows, render_page
from ..modeling_outputs import ReconstructionOutput
from ..modeling_utils import SSLModel
from ..printing import printable
from ..visualization.curves import plot_training_curves
from ..visualization.reconstruction import plot_reconstruction
from .run_evaluation import RunEvaluation
from .run_log import RunLog
from .timing import ACTIVITIES, describe_time, explain_wait, format_seconds, waits_long
from .verdict import Verdict, evaluations_of, judge

logger = logging.getLogger(__name__)

# The pictures of a run by file, in the order of the page.
_PICTURES = {
    "curves.png": "Curves",
    "neighbors.png": "Nearest neighbours by cosine similarity, of the last evaluation",
    "reconstruction.png": "Reconstructions",
}
# Drawing takes this share of a run's time at most, and a page is this many seconds old at most, but for the share.
_MAX_SHARE, _MAX_AGE = 0.05, 60.0
_USUAL_COST = 1.0  # seconds, of drawing for the first time
_REFRESH_SECONDS = 20
# A wait for images is looked into after this many seconds of steps: workers have to start, and files to be cached.
_SETTLED_SECONDS = 30.0
_TIMED_IMAGES = 16
_SHOWN_EVALUATIONS = 6
_COLORS = ("#1a7f37", "#cf222e", "#8250df", "#0969da", "#bf8700")


class RunReport:
    """`report.html` in a run's folder, its pictures, and what is said about how the run goes.

    On the main process only. Drawing counts as evaluation, and is skipped where evaluations follow so closely that it would
    take more than a twentieth of the run's time. A picture or page that cannot be made is a warning, no end of the run.

    Args:
        model: the algorithm.
        dataset: of the training images, as views.
        total_steps: of the run.
        settings: for the reader.
    """

    def __init__(
        self,
        log: RunLog,
        run_evaluation: RunEvaluation,
        model: SSLModel,
        image_processor: BaseImageProcessor,
        dataset: ViewDataset,
        num_workers: int,
        total_steps: int,
        settings: dict[str, object],
    ):
        self.log, self.run_evaluation, self.model, self.image_processor = log, run_evaluation, model, image_processor
        self.dataset, self.num_workers, self.total_steps, self.settings = dataset, num_workers, total_steps, settings
        self.is_main, self.output_dir = log.accelerator.is_main_process, log.output_dir
        self.verdict: Verdict | None = None
        self.advice: str | None = None  # against a wait for images
        self.reconstructs = True  # until the model shows that it does not
        self.is_stale = False  # whether the features have changed since the pictures were drawn
        self.first_step = 0
        self.drawn_at: float | None = None
        self.cost = _USUAL_COST

    @property
    def has_reconstruction(self) -> bool:
        return (self.output_dir / "reconstruction.png").exists()

    @property
    def step(self) -> int:
        return self.log.bar.n  # what the bar shows

    def begin(self) -> None:
        """Writes the first page, of a run that begins or resumes."""
        self.first_step, self.drawn_at = self.step, time.perf_counter()
        if self.is_main:
            if self.step > 0:
                self._judge()
            self._write_page("running")

    @contextmanager
    def noting_failure(self) -> Iterator[None]:
        """Leaves the page of a run that fails as that of a run that failed."""
        try:
            yield
        except Exception as error:
            if self.drawn_at is not None:  # the run had begun
                self.end(f"ended by an error: {printable(error)}")
            raise

    def evaluated(self) -> None:
        """Says how the run goes, by its last evaluation."""
        self.is_stale = True
        if not self.is_main or self.step == 0:
            return
        self._judge()
        if self.verdict.is_bad:
            logger.warning(self.verdict.sentence)
        else:
            self.log.say(self.verdict.sentence)
        self._refresh()

    def logged(self) -> None:
        """Notes that a line was logged."""
        if not self.is_main:
            return
        if self.advice is None and self.log.run_time.training > _SETTLED_SECONDS:
            self._look_into_the_wait()
        if self.is_stale or time.perf_counter() - self.drawn_at > _MAX_AGE:
            self._refresh()

    def end(self, state: str) -> None:
        """Draws what the run leaves, and says so on the page."""
        if self.is_main:
            with self.log.timed("evaluation"):
                self._draw()
            self._write_page(state)

    def _judge(self) -> None:
        self.verdict = judge(self.log.records(), held_out=self.run_evaluation.has_split)

    def _refresh(self) -> None:
        if time.perf_counter() - self.drawn_at < self.cost / _MAX_SHARE:
            return
        with self.log.timed("evaluation"):
            start = time.perf_counter()
            self._draw()
            self._write_page("running")
            self.drawn_at = time.perf_counter()
            self.cost = self.drawn_at - start

    # Pictures

    def _draw(self) -> None:
        if any("loss" in record for record in self.log.records()):
            self._guarded(self.output_dir / "curves.png", partial(plot_training_curves, self.log.metrics_path))
        if not self.is_stale:
            return
        if self.run_evaluation.neighbors is not None:
            self._guarded(self.output_dir / "neighbors.png", self.run_evaluation.neighbors)
        if self.reconstructs:
            self._guarded(self.output_dir / "reconstruction.png", self._draw_reconstruction)
        self.is_stale = False

    def _guarded(self, path: Path, write: Callable[[Path], object]) -> None:
        try:
            write(path)
        except Exception as error:  # a picture is no reason to end a run, whatever is wrong with it
            logger.warning("%s could not be written: %s: %s", path, type(error).__name__, printable(error))

    def _draw_reconstruction(self, path: Path) -> None:
        """Draws eight images if the algorithm reconstructs images."""
        dataset = self.run_evaluation.eval_dataset
        dataset = self.run_evaluation.train_dataset if dataset is None else dataset
        if isinstance(dataset, datasets.IterableDataset):
            return
        with evaluation_mode(self.model):
            torch.manual_seed(0)  # the same masks each time; the random state is put back
            loader = build_eval_loader(dataset, self.image_processor, batch_size=min(8, len(dataset)))
            batches = (batch["pixel_values"] for batch in loader)
            pixel_values = next(batch for batch in batches if len(batch)).to(self.model.device)
            try:
                outputs = self.model(pixel_values, mode="predict")
            except NotImplementedError:  # a custom algorithm may do without
                outputs = None
        self.reconstructs = (
            isinstance(outputs, ReconstructionOutput) and outputs.reconstruction is not None
        )  # no tokens
        if self.reconstructs:
            config = self.model.config
            normalize = Normalize(config.image_mean, config.image_std).to(self.model.device)
            originals = normalize.denormalize(pixel_values)
            plot_reconstruction(originals, outputs.masked_image, outputs.reconstruction, path, outputs.mask)

    # Where the time goes

    def _look_into_the_wait(self) -> None:
        watch = self.log.run_time
        waited = watch.seconds["data_wait"]
        if not waits_long(waited / watch.training):
            return
        with self.log.timed("evaluation"):
            try:
                costs = self.dataset.time_parts(_TIMED_IMAGES)
            except UnreadableImageError:
                return
        rate = self.log.run_images / self.log.accelerator.num_processes / (watch.training - waited)
        self.advice = explain_wait(waited / watch.training, *costs, rate, self.num_workers)
        self.log.say(self.advice)

    # The page

    def _write_page(self, state: str) -> None:
        self._guarded(self.output_dir / "report.html", partial(self._render_page, state))

    def _render_page(self, state: str, path: Path) -> None:
        watch, device = self.log.run_time, self.log.accelerator.device
        records = self.log.records()
        evaluations = evaluations_of(records)
        shown = evaluations if len(evaluations) <= _SHOWN_EVALUATIONS else evaluations[:1] + evaluations[-5:]
        levels = accuracy_levels(records)
        rows = metric_rows(evaluations, list(levels.values()))
        for row in rows:
            row["cells"] = [cell for cell, each in zip(row["cells"], evaluations, strict=True) if each in shown]
        shares = watch.shares()
        titles = ["training", *ACTIVITIES.values()]
        parts = zip(titles, [1 - sum(shares.values()), *shares.values()], _COLORS, strict=True)
        steps, recipe = self.step - self.first_step, self.output_dir / "recipe.yaml"
        remaining = watch.total / steps * (self.total_steps - self.step) if steps and state == "running" else None
        text = render_page(
            "run_report.html",
            name=self.output_dir.resolve().name,
            state=state,
            refresh_seconds=_REFRESH_SECONDS if state == "running" else None,
            step=self.step,
            total_steps=self.total_steps,
            remaining=remaining and format_seconds(remaining),
            written_at=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z"),
            verdict=self.verdict,
            notes=[*self.run_evaluation.notes, *([self.advice] if self.advice else [])],
            evaluations=[f"step {each['step']}" for each in shown],
            levels=levels.keys(),
            rows=rows,
            pictures={title: file for name, title in _PICTURES.items() if (file := self.output_dir / name).exists()},
            time=describe_time(watch, self.log.run_images, device),
            time_parts=[{"title": title, "share": share, "color": color} for title, share, color in parts],
            settings=self.settings,
            recipe=recipe.read_text() if recipe.exists() else "",
            unreadable=sorted(self.log.unreadable),
        )
        # Whole at any time: a browser may read it now.
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
