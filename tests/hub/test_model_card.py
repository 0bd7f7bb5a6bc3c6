import re

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.dataclasses import strict
from transformers import ViTConfig

from ssl_hub import SSLConfig
from ssl_hub.hub.model_card import build_model_card


@strict
class ToyConfig(SSLConfig):
    model_type = "toy_ssl"
    paper = "Toy Pretext Tasks, arXiv 2111.06377"


class CustomBackboneConfig(ViTConfig):
    model_type = "custom_vit"


METRICS = [
    {"step": 10, "loss": 2.0, "learning_rate": 1e-3},
    {"step": 10, "knn_accuracy": 0.5, "rankme": 7.25},
    {"step": 20, "loss": 1.25},
    {"step": 20, "knn_accuracy": 0.87654, "linear_probe_accuracy": 0.9},
]


def build(backbone_config=None, **changes):
    arguments = {
        "recipe_name": "toy-vit-tiny-1e",
        "dataset_name": "imagenet-1k",
        "training_arguments": {
            "learning_rate": 1e-3,
            "seed": 0,
            "hub_token": "hf_secret",
            "output_dir": "out/me",
            "recipe": "/home/me/r.yaml",
        },
        "metrics": METRICS,
        "repo_id": "me/toy",
    }
    return build_model_card(ToyConfig(backbone_config=backbone_config or ViTConfig()), **arguments | changes)


def test_metadata_survives_the_file(tmp_path):
    build().save(tmp_path / "README.md")
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.library_name == "ssl_hub"
    assert data.license is None  # nobody gave one
    assert build(license="mit").data.license == "mit"
    assert data.pipeline_tag == "image-feature-extraction"
    assert "toy_ssl" in data.tags
    assert data.datasets == ["imagenet-1k"]
    assert [(r.metric_type, r.metric_name, r.metric_value, r.dataset_type) for r in data.eval_results] == [
        ("accuracy", "kNN accuracy", 0.8765, "imagenet-1k"),
        ("accuracy", "linear probe accuracy", 0.9, "imagenet-1k"),
    ]


def test_text_states_what_was_done():
    text = build().text
    assert "# toy\n" in text
    assert "([Toy Pretext Tasks, arXiv 2111.06377](https://arxiv.org/abs/2111.06377))" in text
    assert "Recipe: `toy-vit-tiny-1e`" in text
    assert "| `learning_rate` | `0.001` |" in text
    assert "| `seed` | `0` |" in text
    assert "| kNN accuracy ↑ | 87.65% |" in text
    assert "| linear probe accuracy ↑ | 90.00% |" in text
    assert "| RankMe (effective rank) ↑ | 7.25 |" in text  # the last value there is
    assert "| last logged training loss | 1.25 |" in text
    assert "hf_secret" not in text and "/home/me" not in text and "out/me" not in text


def test_code_blocks_are_valid_python_and_name_the_repository():
    text = build().text
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2 and " --model_name_or_path me/toy " in text
    for block in blocks:
        compile(block, "card", "exec")
        assert 'from_pretrained("me/toy"' in block
    assert "ssl_hub" not in blocks[1]


def test_the_snippet_of_a_custom_backbone_imports_what_registers_it():
    text = build(backbone_config=CustomBackboneConfig()).text
    block = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[1]
    compile(block, "card", "exec")
    assert block.startswith(f"import {__name__}") and 'subfolder="backbone"' in block
    assert "needs no `ssl_hub`" not in text and "`custom_vit`" in text
    assert "needs no `ssl_hub`" in build().text


def test_pictures_are_named_only_when_they_are_there():
    assert "curves.png" in build().text and "reconstruction.png" not in build().text
    assert "reconstruction.png" in build(has_reconstruction=True).text
    assert "curves.png" not in build(metrics=[]).text


def test_only_names_on_the_hub_become_metadata(tmp_path):
    for name, shown in (("digits", "digits"), (str(tmp_path), tmp_path.name), ("../photos/", "photos")):
        card = build(dataset_name=name)
        assert card.data.datasets is None
        assert f"the data set `{shown}`" in card.text
        assert str(tmp_path) not in card.content


def test_the_least_there_is_to_say():
    card = build(recipe_name=None, dataset_name=None, training_arguments=None, metrics=[], repo_id=None)
    assert card.data.eval_results is None and card.data.datasets is None
    assert "# toy_ssl\n" in card.text
    assert "## Training" not in card.text and "## Results" not in card.text
    assert "None" not in card.content


@pytest.mark.parametrize(
    ("paper", "shown"), [("Toy Tasks, ICCV 2015", "`toy_ssl` (Toy Tasks, ICCV 2015), with"), (None, "`toy_ssl`, with")]
)
def test_a_paper_that_is_not_on_arxiv_and_none(monkeypatch, paper, shown):
    monkeypatch.setattr(ToyConfig, "paper", paper)
    assert shown in build().text
    assert "arxiv" not in build().text.lower()
