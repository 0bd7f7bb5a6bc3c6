"""Runs the benchmarks, a process each, and writes README.md and a plot from their results.

pip install -r benchmarks/requirements.txt
python benchmarks/run.py [TABLE ...]
python benchmarks/run.py --render_only
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import harness

# In the order of the README; all but the last run when no table is named.
TABLES = ("views", "steps", "whole_run", "listing", "checkpoint", "startup", "knn", "online_probe", "gpu")
README = Path(__file__).parent / "README.md"
PLOT = harness.RESULTS / "ratios.png"
HEADER = """# Benchmarks

Written by `python benchmarks/run.py` from the JSON files in `results/`; what is wrong here is wrong there. A ratio is
ssl_hub / peer, below 1 is quicker or smaller. Numbers are medians, in brackets the quartiles of the ratios (of three rounds
or fewer, the smallest and the largest). A target is met if the median is at or below it; "within noise" says that the target lies between
the quartiles, "**missed**" that it does not.

    pip install -r benchmarks/requirements.txt
    python benchmarks/run.py

`reclustering.py` and `small_data.py` have no peer and print tables of their own, see `docs/`. `gpu.py` is for a machine with a
GPU and is run by its name.
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)}; all but gpu by default")
    parser.add_argument("--render_only", action="store_true", help="write README.md and the plot, run nothing")
    args = parser.parse_args()
    if unknown := set(args.tables) - set(TABLES):
        parser.error(f"there is no table {', '.join(sorted(unknown))}; the tables are {', '.join(TABLES)}")
    if not args.render_only:
        for table in args.tables or TABLES[:-1]:
            script = Path(__file__).parent / f"{table}.py"
            subprocess.run([sys.executable, script], check=True)  # noqa: S603
    results = load_results()
    README.write_text(render(results))
    plot(results)


def load_results() -> dict[str, dict]:
    paths = {table: harness.RESULTS / f"{table}.json" for table in TABLES}
    return {table: json.loads(path.read_text()) for table, path in paths.items() if path.exists()}


def render(results: dict[str, dict]) -> str:
    """README.md."""
    missed = [
        f"* {result['title']}: {row['name']}, {_number(_judged(row))} instead of {row['target']}"
        for result in results.values()
        for row in result["rows"]
        if verdict(row) == "**missed**"
    ]
    parts = [HEADER, f"![Ratios of time]({PLOT.parent.name}/{PLOT.name})\n", "## Targets that are missed\n"]
    parts.append("\n".join(missed or ["None."]) + "\n")
    parts += [_render_table(result) for result in results.values()]
    return "\n".join(parts)


def _render_table(result: dict) -> str:
    lines = [f"## {result['title']}", "", result["about"], "", f"    {result['command']}", ""]
    lines += ["| | ssl_hub | peer | ratio | target | |", "| --- | --- | --- | --- | --- | --- |"]
    for row in result["rows"]:
        unit = row["unit"]
        peer = f"{_number(row['peer']['median'])} {unit}, {row['peer_name']}" if "peer" in row else ""
        ratio = _with_quartiles(row["ratio"]) if "ratio" in row else ""
        target = ""
        if "target" in row:
            target = f"{row['target']}" if row["target_of"] == "ratio" else f"{row['target']} {unit}"
        cells = [row["name"], f"{_number(row['ours']['median'])} {unit}", peer, ratio, target, verdict(row)]
        lines.append(f"| {' | '.join(cells)} |")
    hardware, versions = (", ".join(f"{k} {v}" for k, v in result[name].items()) for name in ("hardware", "versions"))
    return "\n".join([*lines, "", f"{result['date']}; {hardware}; {versions}.", ""])


def verdict(row: dict) -> str:
    """Whether the target is met; empty without one."""
    if "target" not in row:
        return ""
    values = row[row["target_of"]]
    if values["median"] <= row["target"]:
        return "met"
    return "within noise" if values["low"] <= row["target"] else "**missed**"


def _judged(row: dict) -> float:
    return row[row["target_of"]]["median"]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _with_quartiles(values: dict) -> str:
    if values["low"] == values["high"]:
        return _number(values["median"])
    return f"{_number(values['median'])} ({_number(values['low'])} to {_number(values['high'])})"


def plot(results: dict[str, dict]) -> None:
    """Every ratio of time with its quartiles and its target."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [
        (f"{table}: {row['name']}", row)
        for table, result in results.items()
        for row in result["rows"]
        if "ratio" in row and row["unit"] in ("ms", "s")
    ][::-1]
    figure, axes = plt.subplots(figsize=(8, 1 + 0.19 * len(rows)))
    for y, (_, row) in enumerate(rows):
        ratio = row["ratio"]
        axes.plot([ratio["low"], ratio["high"]], [y, y], color="C0", linewidth=2)
        color = "C3" if verdict(row) == "**missed**" else "C0"
        axes.plot(ratio["median"], y, "o", color=color, markersize=4)
        if row.get("target_of") == "ratio":
            axes.plot(row["target"], y, "|", color="black", markersize=8)
    axes.axvline(1, color="gray", linewidth=0.8)
    axes.set_xscale("log")
    ticks = [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(rows)), [f"{name} ({row['peer_name']})" for name, row in rows], fontsize=7)
    axes.set_ylim(-1, len(rows))
    axes.set_xlabel("time of ssl_hub / peer; | the target, red if missed")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(PLOT, dpi=80, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
