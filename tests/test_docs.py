"""The code, commands and links of README.md and docs/ work."""

import json
import re
import runpy
from pathlib import Path

import nbformat
import pytest
import torch
from accelerate.state import AcceleratorState
from nbclient import NotebookClient
from PIL import Image
from transformers import AutoModel, ConvNextModel, HfArgumentParser, TimmWrapperModel, ViTModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ssl_hub import MAEConfig
from ssl_hub.classification.arguments import ARGUMENT_CLASSES, list_protocols
from ssl_hub.commands import COMMANDS, main, probe
from ssl_hub.commands.convert import ConversionArguments
from ssl_hub.commands.embed import ExtractionArguments
from ssl_hub.commands.evaluate import EvaluationArguments
from ssl_hub.commands.export import ExportArguments
from ssl_hub.commands.knn import KNNArguments
from ssl_hub.commands.publish import PublishingArguments
from ssl_hub.commands.reconstruct import VisualizationArguments
from ssl_hub.data.processing import build_image_processor
from ssl_hub.hub.publishing import save_for_sharing
from ssl_hub.registry import ALGORITHMS
from ssl_hub.training.arguments import DataArguments, ModelArguments, PretrainingArguments
from ssl_hub.training.recipes import list_recipes, load_recipe
from ssl_hub.transfer import TransferArguments

REPOSITORY = Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
OPTIONS = re.compile(r"--\w+")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    AcceleratorState._reset_state(reset_partial_state=True)

    def run_code(code):
        Path("code.py").write_text(code)
        return runpy.run_path("code.py")

    return run_code


def test_custom_algorithm(run, capsys):
    example, use, _, _ = blocks(REPOSITORY / "docs" / "adding_an_algorithm.md", "python")
    assert len([line for line in example.splitlines() if line]) < 25
    run(example + use)
    assert "torch.Size([4, 96])" in capsys.readouterr().out


def test_custom_algorithm_that_compares_views(run, capsys):
    _, _, example, use = blocks(REPOSITORY / "docs" / "adding_an_algorithm.md", "python")
    assert len([line for line in example.splitlines() if line]) < 40
    names = run(example + use)
    assert capsys.readouterr().out.endswith("25.0\n")
    lines = [json.loads(line) for line in Path("vicreg/metrics.jsonl").read_text().splitlines()]
    (line,) = [line for line in lines if "loss" in line]
    assert line["step"] == 30 and {"loss_invariance", "loss_variance", "loss_covariance"} <= line.keys()
    loaded = AutoModel.from_pretrained("vicreg")
    assert type(loaded) is names["VICRegModel"] and type(loaded.backbone) is ConvNextModel
    state = loaded.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in names["model"].state_dict().items())


def test_readme_code(run):
    backbone = {"image_size": 16, "patch_size": 4, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MAEConfig(backbone_config=backbone, decoder_num_hidden_layers=1)
    image_processor = build_image_processor(16, config.image_mean, config.image_std)
    save_for_sharing(AutoModel.from_config(config), image_processor, "demo")
    Image.new("RGB", (20, 30), "red").save("image.jpg")
    load, backbone_alone, _, _ = blocks(REPOSITORY / "README.md", "python")
    names = run(load)
    assert [tuple(names[name].shape) for name in ("features", "tokens", "picture")] == [
        (1, 8),
        (1, 17, 8),
        (1, 3, 16, 16),
    ]
    assert type(run(backbone_alone)["backbone"]) is ViTModel


def test_readme_code_of_joint_embedding(run, capsys):
    config = load_recipe("simclr-digits").build_config()
    image_processor = build_image_processor(16, config.image_mean, config.image_std)
    save_for_sharing(AutoModel.from_config(config), image_processor, "out")
    for file in ("first.jpg", "second.jpg"):
        Image.effect_noise((20, 30), 50).save(file)
    _, _, compare, other_backbone = blocks(REPOSITORY / "README.md", "python")
    names = run(compare)
    assert names["first"].shape == (config.projection_size,)
    assert -1 <= float(re.fullmatch(r"cosine similarity (\S+)\n", capsys.readouterr().out)[1]) <= 1
    assert type(run(other_backbone)["model"].backbone) is TimmWrapperModel
    for name in list_recipes():
        if "-resnet50-" in name:
            config = load_recipe(name).build_config("backbone_config.model_type=convnext")
            assert config.backbone_config.model_type == "convnext"


def test_custom_recipe(run):
    page = REPOSITORY / "docs" / "recipes.md"
    (recipe,), (command,) = blocks(page, "yaml"), blocks(page, "bash")
    Path("leaves.yaml").write_text(recipe)
    Path("leaves").mkdir()
    for i in range(16):
        Image.effect_noise((80, 70), 10 + i).save(f"leaves/{i}.png")
    thin = "backbone_config.hidden_sizes=[8, 8, 8, 8],backbone_config.embedding_size=8"
    words = command.split()[1:]
    main([*words, "--config_overrides", thin, "--max_train_steps", "2", "--per_device_train_batch_size", "8"])
    model = AutoModel.from_pretrained("out")
    assert (model.config.image_size, model.config.temperature) == (64, 0.1)
    repeated = load_recipe("out/recipe.yaml")
    assert repeated.views == load_recipe("leaves.yaml").views and repeated.training["num_train_epochs"] == 50
    last = json.loads(Path("out/metrics.jsonl").read_text().splitlines()[-1])
    assert {"rankme", "uniformity"} <= last.keys()


def test_quickstart_notebook(tmp_path):
    notebook = nbformat.read(REPOSITORY / "examples" / "quickstart.ipynb", as_version=4)
    (settings,) = [cell for cell in notebook.cells if "STEPS = 200" in cell.source]
    settings.source = settings.source.replace("STEPS = 200", "STEPS = 4").replace("eval_steps=50", "eval_steps=2")
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", ()) if "image/png" in output.get("data", ())
    ]
    assert len(pictures) == 3


def test_transformers_trainer(run):
    pretrain, own_optimizer = blocks(REPOSITORY / "docs" / "transformers_trainer.md", "python")
    names = run(pretrain)
    losses = [line["eval_loss"] for line in names["trainer"].state.log_history if "eval_loss" in line]
    assert len(losses) == 2 and all(-4 <= loss <= 4 for loss in losses)
    assert type(AutoModel.from_pretrained("byol/checkpoint-20")).__name__ == "BYOLModel"
    names = run(pretrain.replace("trainer.train()", "") + own_optimizer)
    assert names["trainer"].optimizer is names["optimizer"]


def test_table_of_algorithms_is_complete():
    text = (REPOSITORY / "README.md").read_text()
    for model_type in ALGORITHMS:
        arxiv = re.findall(r"\d{4}\.\d{5}", CONFIG_MAPPING[model_type].paper)
        assert arxiv and all(f"[{number}](https://arxiv.org/abs/{number})" in text for number in arxiv)
    patterns = re.findall(
        r"`([\w{},-]+-\*|[\w-]+-digits)`", text[text.index("## Algorithms") : text.index("These work")]
    )
    names = {name for pattern in patterns for name in list_recipes() if matches(name, pattern)}
    small = {name for name in list_recipes() if name.endswith(("-digits", "-cifar10", "-small"))}
    assert names | small == set(list_recipes())


def matches(name: str, pattern: str) -> bool:
    """Whether a name fits a pattern with `*` and `{a,b}`."""
    inner = re.sub(r"\{(.*?)\}", lambda match: "(" + match[1].replace(",", "|") + ")", pattern)
    return re.fullmatch(inner.replace("*", ".*"), name) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_recipes_and_links_exist(page):
    text = page.read_text()
    parsers = (
        HfArgumentParser([ModelArguments, DataArguments, PretrainingArguments]),
        HfArgumentParser(ARGUMENT_CLASSES),
        HfArgumentParser(TransferArguments),
    )
    known = {option for parser in parsers for action in parser._actions for option in action.option_strings}
    for arguments in (
        ConversionArguments,
        EvaluationArguments,
        ExportArguments,
        ExtractionArguments,
        KNNArguments,
        PublishingArguments,
        VisualizationArguments,
    ):
        known |= {option for action in HfArgumentParser(arguments)._actions for option in action.option_strings}
    for script in (Path(probe.__file__), REPOSITORY / "benchmarks" / "small_data.py"):
        known |= set(OPTIONS.findall(script.read_text()))
    assert set(OPTIONS.findall(text)) <= known
    assert set(re.findall(r"--recipe ([\w./-]+)", text)) <= {
        *list_recipes(),
        *list_protocols(),
        "out/recipe.yaml",
        "leaves.yaml",
    }
    assert set(re.findall(r"(?:ssl-hub|-m ssl_hub) ([a-z]+)", text)) <= COMMANDS.keys()
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / link).exists(), link
    for file in re.findall(r"(?<![\w/])(?:src|examples|tests)/[\w/]+\.py", text):
        assert (REPOSITORY / file).is_file() or "NAME" in file, file
