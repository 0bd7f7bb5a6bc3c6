"""Where the time of a run goes, and what keeps its device waiting for images."""

import math
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# What a run spends time on besides training, by the name that logs have as `NAME_share`.
ACTIVITIES = {
    "data_wait": "waiting for images",
    "preparation": "preparing epochs",
    "evaluation": "evaluation and pictures",
    "saving": "saving",
}
# What differs between two runs that are otherwise alike.
TIMINGS = ("images_per_second", *(f"{name}_share" for name in ACTIVITIES), "peak_memory_mib")

# The share of a run's time from which on a wait for images is worth a line: below it more workers gain little.
_LONG_WAIT = 0.12


class Stopwatch:
    """Time of this process since a start, by what it was spent on.

    On a GPU spans are timed by events on its queue: while the host waits for images, the GPU may still compute what was
    queued before, and only what it idles counts as waiting. Elsewhere they are timed by the clock.
    """

    def __init__(self, device: torch.device | None = None):
        self.uses_events = device is not None and device.type == "cuda"
        self.restart()

    def restart(self) -> None:
        self.started = time.perf_counter()
        self._seconds = dict.fromkeys(ACTIVITIES, 0.0)
        self._spans: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []  # that the GPU may not have passed yet

    @contextmanager
    def timed(self, activity: str) -> Iterator[None]:
        """Counts what happens within as one of `ACTIVITIES`; they do not nest."""
        start = self._mark()
        try:
            yield
        finally:
            end = self._mark()
            if self.uses_events:
                self._spans.append((activity, start, end))
            else:
                self._seconds[activity] += end - start

    def _mark(self):
        if not self.uses_events:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @property
    def seconds(self) -> dict[str, float]:
        """By `ACTIVITIES`; waits until the GPU has passed all spans."""
        for activity, start, end in self._spans:
            end.synchronize()
            self._seconds[activity] += start.elapsed_time(end) / 1000
        self._spans = []
        return self._seconds

    @property
    def total(self) -> float:
        return time.perf_counter() - self.started

    @property
    def training(self) -> float:
        """Seconds of the steps, waiting for their images included."""
        others = sum(seconds for name, seconds in self.seconds.items() if name != "data_wait")
        return self.total - others

    def shares(self) -> dict[str, float]:
        """Of the time since the start, by `ACTIVITIES`."""
        seconds = self.seconds  # first, as it may wait
        total = self.total
        return {name: value / total for name, value in seconds.items()}


def peak_memory(device: torch.device) -> float:
    """The most memory so far in MiB: of tensors on a GPU, or else of this process, without the workers of its loader."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def waits_long(share: float) -> bool:
    return share > _LONG_WAIT


def explain_wait(share: float, decoding: float, augmentation: float, images_per_second: float, num_workers: int) -> str:
    """Says what to blame for a wait for images, and what to change.

    Args:
        share: of the time of the steps that goes into waiting.
        decoding, augmentation: seconds an image on one core.
        images_per_second: that the device would take of this process if it never waited.
        num_workers: of the loader.
    """
    cores = max(1, count_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    needed = math.ceil(images_per_second * (decoding + augmentation))
    costs = (
        f"the device waits {share:.0%} of the time for images: decoding takes {1000 * decoding:.1f} ms and augmentation "
        f"{1000 * augmentation:.1f} ms an image on one {'worker' if num_workers else 'core'}"
    )
    if needed <= num_workers:
        return (
            f"{costs}, with which {num_workers} workers would keep up if they had a core each and the images at hand: look "
            f"at the storage, and at what else runs on the {cores} cores"
        )
    if needed < cores:
        return f"{costs}; --dataloader_num_workers {needed} would keep up"
    cheaper = (
        "--cache_images memory, or originals that are shrunk once, to about twice the size of the views"
        if decoding > augmentation
        else "--augment_on_device on a GPU, or smaller views with less blur and colour jitter"
    )
    workers = f"--dataloader_num_workers {cores - 1}, and " if cores - 1 > num_workers else ""
    return f"{costs}; it would take {needed} workers to keep up, and there are {cores} cores: {workers}{cheaper}, would help"


def describe_time(stopwatch: Stopwatch, images: int, device: torch.device) -> str:
    """What a run's time went into, in one line."""
    shares = stopwatch.shares()
    parts = [f"training {1 - sum(shares.values()):.1%}"]
    parts += [f"{ACTIVITIES[name]} {share:.1%}" for name, share in shares.items() if share > 0]
    return (
        f"{format_seconds(stopwatch.total)}, {images / stopwatch.training:.0f} images/s in training: {', '.join(parts)}; "
        f"peak memory {peak_memory(device):,.0f} MiB"
    )


def format_seconds(seconds: float) -> str:
    """Such as "3 h 05 min", "2 min 07 s" or "4.2 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def count_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
