import json

import pytest
from matplotlib.figure import Figure
from PIL import Image

from ssl_hub.visualization.curves import plot_training_curves

TRAINING = [{"step": step, "loss": 1 / step, "learning_rate": 1e-4 * step} for step in (1, 2, 3)]
EVALUATION = [{"step": 0, "knn_accuracy": 0.1, "rankme": 3.0}, {"step": 3, "knn_accuracy": 0.8}]


@pytest.fixture
def drawn(monkeypatch):
    """The lines of every figure that is saved: {title of a panel and label of its y axis: (steps, values)}."""
    lines = {}
    savefig = Figure.savefig

    def record(figure, *args, **kwargs):
        lines.update(
            {
                f"{axes.get_title()}, {axes.get_ylabel()}": tuple(map(list, axes.lines[0].get_data()))
                for axes in figure.axes
            }
        )
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", record)
    return lines


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_loss_learning_rate_and_accuracy(tmp_path, drawn):
    metrics = write(tmp_path / "metrics.jsonl", [EVALUATION[0], *TRAINING, EVALUATION[1]])
    plot_training_curves(metrics, tmp_path / "curves.png")
    assert drawn == {
        "Training, loss": ([1, 2, 3], [1, 1 / 2, 1 / 3]),
        ", learning rate": ([1, 2, 3], [1e-4, 2e-4, 1e-4 * 3]),
        "kNN accuracy, %": ([0, 3], [10, 80]),
        "RankMe (effective rank), ": ([0], [3]),
    }
    assert Image.open(tmp_path / "curves.png").format == "PNG"


def test_baselines_of_a_run_are_lines_in_the_panels_of_accuracies(tmp_path, monkeypatch):
    lines = {}
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda figure, *args, **kwargs: lines.update(
            {
                axes.get_title(): [
                    (line.get_label(), line.get_linestyle(), *line.get_ydata()) for line in axes.lines[1:]
                ]
                for axes in figure.axes
            }
        ),
    )
    baselines = {"step": 0, "chance_accuracy": 0.1, "pixel_knn_accuracy": 0.25}
    metrics = write(tmp_path / "metrics.jsonl", [EVALUATION[0], baselines, *TRAINING])
    plot_training_curves(metrics, tmp_path / "curves.png", {"untrained": {"rankme": 2.0}})
    expected = [("chance", ":", 10, 10), ("kNN of pixels", "--", 25, 25)]
    assert lines["kNN accuracy"] == expected
    assert lines["RankMe (effective rank)"] == [("untrained", "--", 2.0, 2.0)]


def test_without_evaluation_there_is_one_panel(tmp_path, drawn):
    plot_training_curves(write(tmp_path / "metrics.jsonl", TRAINING), tmp_path / "curves.png")
    assert sorted(drawn) == [", learning rate", "Training, loss"]


def test_a_killed_and_resumed_run_is_one_curve(tmp_path, drawn, caplog):
    metrics = write(tmp_path / "metrics.jsonl", TRAINING)
    again = [{"step": 2, "loss": 0.4}, {"step": 3, "loss": 0.3}, {"step": 4, "loss": 0.2}]
    metrics.write_text(metrics.read_text() + '{"step": 4, "lo\n' + "".join(json.dumps(item) + "\n" for item in again))
    plot_training_curves(metrics, tmp_path / "curves.png")
    assert drawn["Training, loss"] == ([1, 2, 3, 4], [1, 0.4, 0.3, 0.2])
    assert "line 4 is not JSON" in caplog.text


def test_a_log_without_loss_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no line with 'step' and 'loss'"):
        plot_training_curves(write(tmp_path / "metrics.jsonl", [*EVALUATION, {"loss": 1.0}]), tmp_path / "curves.png")
