import json
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from ssl_hub.hub.evaluation_report import EvaluationReport, ModelReport
from ssl_hub.hub.model_card import add_eval_results, build_eval_results

EVIL = "<script>alert('x')</script> | `a` & $b$ **c**"


@pytest.fixture
def report(tmp_path):
    (tmp_path / "pictures").mkdir()
    for name, color in (("map", "red"), ("chart", "blue")):
        Image.new("RGB", (300, 200), color).save(tmp_path / "pictures" / f"{name}.png")
    models = [
        ModelReport(
            EVIL,
            {"knn_accuracy": 0.75, "rankme": 3.25},
            {f"map of {EVIL}": tmp_path / "pictures" / "map.png"},
            [f"a note with {EVIL}"],
        ),
        ModelReport("pixels", {"knn_accuracy": 0.5}),
    ]
    settings = {"dataset": EVIL}
    chart = tmp_path / "pictures" / "chart.png"
    return EvaluationReport(settings, models, {"knn_accuracy": 0.1}, chart, {"alpha_req": -0.875})


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.texts.append(data.strip())


def test_the_page_is_complete_and_escaped(report, tmp_path):
    report.write(tmp_path)
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert "script" not in page.tags and page.tags.count("img") == 2
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "http" not in text and "url(" not in text
    for shown in (
        EVIL,
        f"map of {EVIL}",
        f"a note with {EVIL}",
        "kNN accuracy ↑",
        "75.00%",
        "50.00%",
        "10.00%",
        "3.25",
        "alpha-ReQ (decay of eigenvalues) → 1",
        "-0.88",
    ):
        assert shown in page.texts, shown


def test_the_text_and_the_numbers(report, tmp_path):
    report.write(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "<script" not in text and "](pictures/map.png)" in text and "](pictures/chart.png)" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[2:] == [
        "| kNN accuracy ↑ | **75.00%** | 50.00% | 10.00% |",
        "| RankMe (effective rank) ↑ | 3.25 |  |  |",
        *("| metric | Spearman |", "| --- | --- |", "| alpha-ReQ (decay of eigenvalues) → 1 | -0.88 |"),
    ]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["models"] == {EVIL: {"knn_accuracy": 0.75, "rankme": 3.25}, "pixels": {"knn_accuracy": 0.5}}
    assert results["chance"] == {"knn_accuracy": 0.1}


def test_names_are_unique(report, tmp_path):
    report.models[0].name = "pixels"
    with pytest.raises(ValueError, match="several models called pixels"):
        report.write(tmp_path)


def test_a_browser_shows_it(report, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium is installed to look at the page with")
    report.write(tmp_path)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=800,1400"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    target = [f"--screenshot={tmp_path / 'page.png'}", (tmp_path / "report.html").as_uri()]
    subprocess.run([browser, *options, profile, *target], check=True, capture_output=True, timeout=120)
    picture = Image.open(tmp_path / "page.png").convert("RGB")
    assert picture.width == 800  # the page is no wider than the window
    counts = {color: count for count, color in picture.getcolors(maxcolors=2**24)}
    # Both pictures are there in their own size, and the rest is mostly white with text.
    assert counts[(255, 0, 0)] >= 300 * 200 * 0.95 and counts[(0, 0, 255)] >= 300 * 200 * 0.95
    assert counts[(255, 255, 255)] > 800 * 1400 / 2 and len(counts) > 50


def test_results_are_added_to_a_card(tmp_path):
    card = tmp_path / "my-model" / "README.md"
    card.parent.mkdir()
    card.write_text("---\nlicense: mit\ncustom: kept\n---\n\n# A title\n\nThe text, as it was.\n")
    for value in (0.5, 0.75):
        add_eval_results(card, build_eval_results({"knn_accuracy": value, "rankme": 3.0}, "digits", "test"))
    add_eval_results(card, build_eval_results({"knn_accuracy": 0.9}, str(tmp_path), "test"))
    loaded = ModelCard.load(card)
    found = [(result.dataset_name, result.metric_name, result.metric_value) for result in loaded.data.eval_results]
    assert found == [("digits", "kNN accuracy", 0.75), (tmp_path.name, "kNN accuracy", 0.9)]
    assert loaded.data.model_name == "my-model" and loaded.data.license == "mit" and loaded.data.custom == "kept"
    assert loaded.text.strip() == "# A title\n\nThe text, as it was."
