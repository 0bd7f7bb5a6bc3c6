"""benchmarks/README.md says what the results hold."""

import importlib
import json
from pathlib import Path

import pytest

from ssl_hub.training.recipes import load_recipe

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def run(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("run")


def test_readme_is_rendered_from_the_results(run):
    assert run.render(run.load_results()) == run.README.read_text()


def test_every_table_has_a_script_and_every_result_a_table(run):
    assert all((BENCHMARKS / f"{table}.py").is_file() for table in run.TABLES)
    assert {path.stem for path in run.harness.RESULTS.glob("*.json")} <= set(run.TABLES)


def test_what_small_data_measured_is_what_docs_and_recipes_say(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    results = [json.loads(line) for line in (BENCHMARKS / "results" / "small_data.jsonl").read_text().splitlines()]
    table = importlib.import_module("small_data").markdown(results)
    assert table in (BENCHMARKS.parent / "docs" / "small_data.md").read_text()
    for result in results:
        if result["dataset"].startswith("Imagenette") and not result["changes"]:
            before, after = (100 * result[when]["knn_accuracy"] for when in ("before", "after"))
            assert f"kNN {before:.1f} -> {after:.1f} %" in load_recipe(result["recipe"]).results["measured"]


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        ({"median": 0.9, "low": 0.8, "high": 1.2}, "met"),
        ({"median": 1.1, "low": 0.9, "high": 1.2}, "within noise"),
        ({"median": 1.1, "low": 1.05, "high": 1.2}, "**missed**"),
    ],
)
def test_a_missed_target_is_said_so(run, ratio, verdict):
    row = {"name": "a step", "unit": "ms", "ours": ratio, "ratio": ratio, "target": 1.0, "target_of": "ratio"}
    assert run.verdict(row) == verdict
    any_result = json.loads(next(iter(sorted(run.harness.RESULTS.glob("*.json")))).read_text())
    page = run.render({"views": {**any_result, "rows": [{**row, "peer": ratio, "peer_name": "another"}]}})
    missed = page.split("## Targets that are missed")[1].split("##")[0]
    assert ("a step" in missed) == (verdict == "**missed**")
