"""The page, the pictures and the figures of time that a run leaves while it goes on."""

import json
import os
import signal
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_trainer import build_trainer, digits, forget_the_accelerator, metrics_of

from ssl_hub.data.loading import ViewDataset
from ssl_hub.training import run_report, timing
from ssl_hub.training.timing import Stopwatch, describe_time, explain_wait, format_seconds

EVIL = "<script>alert('x')</script>.png"


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.attributes, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append(dict(attrs))
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data

    @property
    def is_refreshed(self):
        return any(attributes.get("http-equiv") == "refresh" for attributes in self.attributes)


@pytest.fixture
def pages(monkeypatch):
    """Every page that is written, drawn without regard to its cost."""
    monkeypatch.setattr(run_report, "_MAX_SHARE", 1e9)
    pages, render = [], run_report.render_page

    def keep(*args, **kwargs):
        pages.append(render(*args, **kwargs))
        return pages[-1]

    monkeypatch.setattr(run_report, "render_page", keep)
    return pages


@pytest.fixture
def without_pictures(monkeypatch):
    """They take most of the time of a tiny run."""
    drawn = []
    monkeypatch.setattr(run_report.RunReport, "_draw", lambda self: drawn.append(self.step))
    return drawn


def test_the_page_follows_the_run(pages, tmp_path):
    trainer = build_trainer(
        tmp_path, eval_dataset=digits("test", 40), max_train_steps=12, logging_steps=4, eval_steps=4
    )
    trainer.log.unreadable = {EVIL}
    trainer.train()
    running, finished = [Page(text) for text in pages[:-1]], Page(pages[-1])
    assert len(running) >= 3 and all(page.is_refreshed for page in running)
    assert not finished.is_refreshed and (tmp_path / "report.html").read_text() == pages[-1]
    assert "running, step 0 of 12" in running[0].text
    assert any("running, step 4 of 12, about " in page.text for page in running)
    for shown in (
        "finished, step 12 of 12",
        "kNN accuracy",
        "kNN of pixels",
        "waiting for images",
        "peak memory",
        EVIL,
    ):
        assert shown in finished.text, shown
    verdicts = ("learning", "stalled", "collapsed", "overfitting", "too early", "hard to say")
    assert any(word in finished.text for word in verdicts)
    assert "script" not in finished.tags and "http" not in "".join(finished.sources)
    assert finished.tags.count("img") == 3 and all(each.startswith("data:image/png") for each in finished.sources)
    assert trainer.report.has_reconstruction
    # The first page has no picture yet, the next ones have all.
    assert [page.tags.count("img") for page in running[:2]] == [0, 3]


def test_a_run_is_not_changed_by_its_report(pages, tmp_path, monkeypatch):
    def weights(name):
        forget_the_accelerator.__wrapped__()
        trainer = build_trainer(tmp_path / name, eval_dataset=digits("test", 40), max_train_steps=4, eval_steps=2)
        trainer.train()
        return load_file(tmp_path / name / "model.safetensors"), torch.get_rng_state(), metrics_of(tmp_path / name)

    with_report = weights("with")
    monkeypatch.setattr(run_report.RunReport, "_draw", lambda self: None)
    monkeypatch.setattr(run_report.RunReport, "_write_page", lambda self, state: None)
    without = weights("without")
    assert all(torch.equal(value, without[0][name]) for name, value in with_report[0].items())
    assert torch.equal(with_report[1], without[1]) and with_report[2] == without[2]


def test_pictures_cost_a_twentieth_at_most(tmp_path, without_pictures):
    build_trainer(tmp_path, eval_dataset=digits("test", 40), max_train_steps=8, eval_steps=1).train()
    assert without_pictures == [8]


def test_a_picture_that_cannot_be_drawn_is_a_warning(pages, tmp_path, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise RuntimeError("no font\x1b[2J")

    monkeypatch.setattr(run_report, "plot_training_curves", fail)
    monkeypatch.setattr(run_report, "plot_reconstruction", fail)
    build_trainer(tmp_path, eval_dataset=digits("test", 40), max_train_steps=1).train()
    warnings = [record.getMessage() for record in caplog.records if "could not be written" in record.message]
    assert any(text.endswith(r"curves.png could not be written: RuntimeError: no font\x1b[2J") for text in warnings)
    assert "finished" in pages[-1] and (tmp_path / "neighbors.png").exists()


def test_the_page_of_a_run_that_ends_early_says_so(pages, without_pictures, tmp_path, monkeypatch):
    trainer = build_trainer(tmp_path / "failed", max_train_steps=3)
    step = trainer.train_step

    def fail(batches):
        step(batches)
        if trainer.step == 2:
            raise ValueError(EVIL)

    monkeypatch.setattr(trainer, "train_step", fail)
    with pytest.raises(ValueError, match="alert"):
        trainer.train()
    assert f"ended by an error: {EVIL}, step 1 of 3" in Page(pages[-1]).text and not Page(pages[-1]).is_refreshed

    forget_the_accelerator.__wrapped__()
    trainer = build_trainer(tmp_path / "stopped", max_train_steps=3)
    step = trainer.train_step
    monkeypatch.setattr(trainer, "train_step", lambda batches: (step(batches), os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(SystemExit):
        trainer.train()
    assert "stopped by SIGTERM, step 1 of 3" in Page(pages[-1]).text and not Page(pages[-1]).is_refreshed


# Where the time goes


def test_the_wait_for_images_is_what_loading_takes(without_pictures, tmp_path, monkeypatch):
    """To a tenth of what the dataset itself measures, and the rest is where it was spent."""
    spent = {"data_wait": 0.0, "evaluation": 0.0, "saving": 0.0}

    def slow(owner, name, activity, seconds):
        original = getattr(owner, name)

        def run(*args, **kwargs):
            start = time.perf_counter()
            time.sleep(seconds)
            result = original(*args, **kwargs)
            spent[activity] += time.perf_counter() - start
            return result

        monkeypatch.setattr(owner, name, run)

    trainer = build_trainer(tmp_path, eval_dataset=digits("test", 40), max_train_steps=4, eval_steps=2)
    fetch = type(trainer.loader.dataset)
    slow(fetch, "__getitems__" if hasattr(fetch, "__getitems__") else "__getitem__", "data_wait", 0.02)
    slow(type(trainer.run_evaluation), "__call__", "evaluation", 0.2)
    slow(trainer, "_save_checkpoint", "saving", 0.2)
    trainer.train()
    found = trainer.log.run_time.seconds
    assert found["data_wait"] == pytest.approx(spent["data_wait"], rel=0.1)
    # With pictures and the page, and with the files of a finished run.
    assert found["evaluation"] >= spent["evaluation"] and found["saving"] >= spent["saving"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    assert all(0 < line["data_wait_share"] < 1 and line["peak_memory_mib"] > 1 for line in lines)
    assert lines[2]["evaluation_share"] > lines[1]["evaluation_share"] == 0  # of the evaluation before it


def test_images_a_second_are_those_of_training(monkeypatch):
    clock = iter([0, 10, 14, 20, 50, 100, 100])  # start, a wait of 4 s, an evaluation of 30 s, and what is asked then
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    watch = Stopwatch()
    for activity in ("data_wait", "evaluation"):
        with watch.timed(activity):
            pass
    assert watch.training == 70
    assert watch.shares() == {"data_wait": 0.04, "preparation": 0, "evaluation": 0.3, "saving": 0}


@pytest.mark.parametrize(
    ("costs", "rate", "workers", "words"),
    [
        ((0.0021, 0.0063), 800, 1, "decoding takes 2.1 ms and augmentation 6.3 ms an image on one worker; "),
        ((0.0021, 0.0063), 800, 1, "--dataloader_num_workers 7 would keep up"),
        ((0.0021, 0.0063), 800, 0, "on one core"),
        (
            (0.02, 0.006),
            800,
            4,
            "21 workers to keep up, and there are 16 cores: --dataloader_num_workers 15, and --cache_images",
        ),
        ((0.005, 0.02), 800, 15, "20 workers to keep up, and there are 16 cores: --augment_on_device"),
        ((0.001, 0.001), 800, 4, "4 workers would keep up if"),
    ],
)
def test_what_is_to_blame_for_a_wait(costs, rate, workers, words, monkeypatch):
    monkeypatch.setattr(timing, "count_cores", lambda: 16)
    text = explain_wait(0.43, *costs, rate, workers)
    assert text.startswith("the device waits 43% of the time for images: decoding takes") and words in text


def test_a_long_wait_is_explained_once(without_pictures, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(run_report, "_SETTLED_SECONDS", 0.0)
    monkeypatch.setattr(run_report, "waits_long", lambda share: True)
    trainer = build_trainer(tmp_path, max_train_steps=3)
    monkeypatch.setattr(trainer.log, "say", said.append)
    trainer.train()
    assert len([text for text in said if text.startswith("the device waits")]) == 1
    assert said[-2].startswith("time: ") and "waiting for images" in said[-2]
    assert trainer.report.advice in Page(Path(tmp_path / "report.html").read_text()).text


def test_the_parts_of_loading_are_timed_apart(tmp_path, monkeypatch):
    dataset: ViewDataset = build_trainer(tmp_path).loader.dataset
    view = dataset.views[0]
    render = type(view).render

    def slow(self, *args):
        time.sleep(0.05)
        return render(self, *args)

    monkeypatch.setattr(type(view), "render", slow)
    before = torch.get_rng_state()
    decoding, augmentation = dataset.time_parts(3)
    assert decoding > 0 and augmentation >= 0.05
    assert torch.equal(before, torch.get_rng_state())


def test_the_bar_has_a_loss_from_the_first_step_on(without_pictures, tmp_path, monkeypatch):
    shown = []
    trainer = build_trainer(tmp_path, max_train_steps=3, logging_steps=3)
    show = trainer.log._show
    monkeypatch.setattr(trainer.log, "_show", lambda **values: (shown.append((trainer.step, values)), show(**values)))
    trainer.train()
    assert [step for step, _ in shown] == [1, 3]  # and then every few seconds
    assert {"loss", "lr", "images_per_s", "waiting", "MiB"} == set(shown[-1][1]) and set(shown[0][1]) == {"loss"}


def test_times_in_words():
    assert [format_seconds(each) for each in (4.21, 59.0, 127, 11_100)] == [
        "4.2 s",
        "59.0 s",
        "2 min 07 s",
        "3 h 05 min",
    ]
    watch = Stopwatch()
    watch.seconds["saving"] = 1e-9
    text = describe_time(watch, 100, torch.device("cpu"))
    assert "images/s in training: training 100.0%, saving 0.0%; peak memory" in text
