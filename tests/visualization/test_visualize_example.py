import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModel

from ssl_hub.training.recipes import load_recipe

EXAMPLE = Path(__file__).parents[2] / "examples" / "visualize_reconstruction.py"


@pytest.fixture
def draw(tmp_path, monkeypatch):
    def run(recipe, dataset="digits", **arguments):
        torch.manual_seed(0)
        AutoModel.from_config(load_recipe(recipe).build_config()).save_pretrained(tmp_path / "model")
        arguments = {"model_name_or_path": tmp_path / "model", "dataset_name": dataset, **arguments}
        monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *(f"--{name}={value}" for name, value in arguments.items())])
        monkeypatch.chdir(tmp_path)
        runpy.run_path(str(EXAMPLE), run_name="__main__")

    return run


@pytest.mark.parametrize("recipe", ["mae-vit-tiny-digits", "simmim-swin-tiny-digits", "maskfeat-vit-tiny-digits"])
def test_masked_image_models(draw, tmp_path, capsys, recipe):
    draw(recipe, split="test", num_images=3)
    assert "the picture is reconstruction.png" in capsys.readouterr().out
    three = Image.open(tmp_path / "reconstruction.png")
    draw(recipe, split="test", num_images=6, output_file="six.png")
    six = Image.open(tmp_path / "six.png")
    assert six.height == three.height and six.width == 2 * three.width


def test_a_folder_of_images(draw, tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(3):
        Image.effect_noise((40, 30), 50).save(tmp_path / "images" / f"{i}.jpg")
    draw("mae-vit-tiny-digits", dataset=tmp_path / "images")
    assert (tmp_path / "reconstruction.png").exists()


def test_models_that_predict_no_picture(draw):
    with pytest.raises(SystemExit, match=r"error: .* is a SimCLRModel, which predicts no picture"):
        draw("simclr-digits")
    with pytest.raises(SystemExit, match="error: --num_images must be a whole number of at least 1, got 0"):
        draw("mae-vit-tiny-digits", num_images=0)
