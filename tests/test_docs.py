"""The code, commands and links of README.md and docs/ work."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoModel, HfArgumentParser

from ssl_hub import MAEConfig
from ssl_hub.data.processing import build_image_processor
from ssl_hub.hub.publishing import save_for_sharing
from ssl_hub.training.arguments import DataArguments, ModelArguments, PretrainingArguments
from ssl_hub.training.recipes import list_recipes

REPOSITORY = Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
OPTIONS = re.compile(r"--\w+")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def run(code: str, folder: Path) -> str:
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_own_algorithm(tmp_path):
    example, use = blocks(REPOSITORY / "docs" / "adding_an_algorithm.md", "python")
    assert len([line for line in example.splitlines() if line]) < 25
    assert "torch.Size([4, 768])" in run(example + use, tmp_path)


def test_readme_code(tmp_path):
    backbone = {"image_size": 16, "patch_size": 4, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MAEConfig(backbone_config=backbone, decoder_num_hidden_layers=1)
    image_processor = build_image_processor(16, config.image_mean, config.image_std)
    save_for_sharing(AutoModel.from_config(config), image_processor, tmp_path / "demo")
    Image.new("RGB", (20, 30), "red").save(tmp_path / "image.jpg")
    load, backbone_alone = blocks(REPOSITORY / "README.md", "python")
    assert "(8,) (17, 8) (3, 16, 16)" in run(
        load + "print(*(tuple(t[0].shape) for t in (features, tokens, picture)))", tmp_path
    )
    assert "ViTModel" in run(backbone_alone + "print(type(backbone).__name__)", tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_recipes_and_links_exist(page):
    text = page.read_text()
    parser = HfArgumentParser([ModelArguments, DataArguments, PretrainingArguments])
    known = {option for action in parser._actions for option in action.option_strings}
    known |= set(OPTIONS.findall((REPOSITORY / "examples" / "convert_checkpoint.py").read_text()))
    assert set(OPTIONS.findall(text)) <= known
    assert set(re.findall(r"--recipe (\S+)", text)) <= set(list_recipes())
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / link).exists(), link
    for file in re.findall(r"(?<![\w/])(?:src|examples|tests)/[\w/]+\.py", text):
        assert (REPOSITORY / file).is_file() or "NAME" in file, file
