"""The code, commands and links of README.md and docs/ work."""

import re
import runpy
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoModel, HfArgumentParser, ViTModel

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


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run_code(code):
        Path("code.py").write_text(code)
        return runpy.run_path("code.py")

    return run_code


def test_own_algorithm(run, capsys):
    example, use = blocks(REPOSITORY / "docs" / "adding_an_algorithm.md", "python")
    assert len([line for line in example.splitlines() if line]) < 25
    run(example + use)
    assert "torch.Size([4, 96])" in capsys.readouterr().out


def test_readme_code(run):
    backbone = {"image_size": 16, "patch_size": 4, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MAEConfig(backbone_config=backbone, decoder_num_hidden_layers=1)
    image_processor = build_image_processor(16, config.image_mean, config.image_std)
    save_for_sharing(AutoModel.from_config(config), image_processor, "demo")
    Image.new("RGB", (20, 30), "red").save("image.jpg")
    load, backbone_alone = blocks(REPOSITORY / "README.md", "python")
    names = run(load)
    assert [tuple(names[name].shape) for name in ("features", "tokens", "picture")] == [
        (1, 8),
        (1, 17, 8),
        (1, 3, 16, 16),
    ]
    assert type(run(backbone_alone)["backbone"]) is ViTModel


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
