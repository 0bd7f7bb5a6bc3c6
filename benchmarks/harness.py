"""What the benchmarks share: sides in turn, medians with quartiles, a process of its own, and results as JSON.

`results/TABLE.json` holds a table's rows, how they were made, on which hardware and with which versions. A row compares
ours with a peer: `ratio` is ours / peer, below 1 is quicker or smaller. `target` is what `ratio`, or `ours`, should be at most.
"""

import argparse
import datetime
import gc
import json
import multiprocessing
import os
import platform
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    *("torch", "torchvision", "transformers", "accelerate", "datasets", "timm", "opencv-python-headless", "pillow"),
    *("faiss-cpu", "lightly"),
)


def argument_parser(description: str, rounds: int) -> argparse.ArgumentParser:
    """With `--rounds`, how often the sides are measured."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="how often each side is measured")
    return parser


def use_one_thread() -> None:
    """In this process and in those that it starts, if torch is not imported yet."""
    os.environ["OMP_NUM_THREADS"] = "1"


def in_turn(sides: dict[str, Callable[[], float]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """What each side measured in every round, one right after the other; each round begins with the next side."""
    values: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(-warm_up, rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            value = sides[name]()
            if number >= 0:
                values[name].append(value)
    return values


def cpu_seconds(run: Callable[[], object]) -> float:
    """Of all threads of this process. Unlike the clock's they hardly depend on what else a machine does."""
    start = time.process_time()
    run()
    return time.process_time() - start


def command_cpu_seconds(command: list[str], **options) -> float:
    """Of a process and of those that it started and waited for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **options)  # noqa: S603
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def peak_memory() -> float:
    """The most memory that this process has held, in MiB; on Linux. `ru_maxrss` would count what its parent held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**10


def added_memory(run: Callable[[], object]) -> float:
    """MiB by which the most memory exceeds that held before: for a process of its own, see `apart`."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
    before = peak_memory()
    run()
    return peak_memory() - before


def apart(function: Callable, *args):
    """What a function of a module returns in a new process, which keeps no memory and no imports of another run."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def summary(values: list[float]) -> dict[str, float]:
    """Median and quartiles, to four digits."""
    low, high = min(values), max(values)
    if len(values) > 3:
        low, _, high = statistics.quantiles(values, method="inclusive")
    numbers = {"median": statistics.median(values), "low": low, "high": high}
    return {name: float(f"{value:.4g}") for name, value in numbers.items()}


def row(
    name: str,
    unit: str,
    ours: list[float],
    peer: list[float] | None = None,
    peer_name: str | None = None,
    *,
    target: float | None = None,
    target_of: str = "ratio",
) -> dict:
    """A line of a table.

    Args:
        ours, peer: what was measured, round by round.
        target: what the median ratio, or the median of ours, should be at most.
    """
    result = {"name": name, "unit": unit, "ours": summary(ours)}
    if peer is not None:
        ratios = [a / b for a, b in zip(ours, peer, strict=True)]
        result |= {"peer_name": peer_name, "peer": summary(peer), "ratio": summary(ratios), "rounds": len(ratios)}
    if target is not None:
        result |= {"target": target, "target_of": target_of}
    print(describe(result), flush=True)
    return result


def describe(result: dict) -> str:
    """A row in a line."""
    parts = [f"{result['name']:44} {result['ours']['median']:10.4g} {result['unit']}"]
    if "peer" in result:
        ratio = result["ratio"]
        parts.append(f"{result['peer']['median']:10.4g} {result['peer_name']}")
        parts.append(f"ratio {ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})")
    return "  ".join(parts)


def save(table: str, about: str, rows: list[dict]) -> None:
    """Writes `results/TABLE.json`.

    Args:
        about: the docstring of the benchmark: a title, its command, and how it measures.
    """
    title, *paragraphs = [part.strip() for part in about.strip().split("\n\n")]
    notes = [" ".join(part.split()) for part in paragraphs if not part.startswith(("python ", "pip "))]
    result = {
        "title": title.removesuffix("."),
        "about": "\n\n".join(notes),
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(),
        "versions": versions(),
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{table}.json").write_text(json.dumps(result, indent=1) + "\n")


def hardware() -> dict[str, object]:
    found: dict[str, object] = {"processor": _processor(), "cores": os.cpu_count()}
    if hasattr(os, "sysconf"):
        found["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    import torch

    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def versions() -> dict[str, str]:
    """Of Python, of ssl_hub's sources, and of the packages that are installed of those compared."""
    found = {"python": platform.python_version(), "ssl_hub": _commit()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    """The last commit that changed the sources, or the version of the package."""
    if shutil.which("git"):
        command = ["git", "log", "-1", "--format=%h", "--", "src"]
        done = subprocess.run(command, cwd=RESULTS.parents[1], capture_output=True, text=True)  # noqa: S603
        if done.returncode == 0 and done.stdout:
            return f"commit {done.stdout.strip()}"
    import ssl_hub

    return ssl_hub.__version__
