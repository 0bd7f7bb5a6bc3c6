"""Recipes: a YAML file that names a model, its views and its training arguments."""

import json
import re
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from importlib import resources
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoModelForPreTraining, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ..configuration_utils import SSLConfig
from ..model_loading import fields_around_backbone, read_config
from ..modeling_utils import SSLModel
from ..pretrained import load_pretrained
from ..registry import ALGORITHMS

RECIPES_PACKAGE = "ssl_hub.recipes"
SECTIONS = {"extends": str, "model": dict, "views": list, "training": dict, "evaluation": list, "results": dict}
RESULTS = ("published", "measured")


@dataclass
class Recipe:
    """What a recipe file says.

    Args:
        name: of the recipe, or the path of its file.
        model: the model's configuration, with its `model_type`.
        views: what `ssl_hub.data.views.build_views` takes.
        training: defaults of the training arguments, by name.
        evaluation: what `ssl_hub.evaluation.evaluators.build_evaluators` takes; None for the default.
        results: sentences by `RESULTS`: what others published for these settings, which need not have been repeated with
            ssl_hub, and what was measured with it.
    """

    name: str
    model: dict
    views: list[dict]
    training: dict = field(default_factory=dict)
    evaluation: list[dict] | None = None
    results: dict[str, str] = field(default_factory=dict)

    def build_model(self, overrides: str | None = None, name_or_path: str | None = None) -> SSLModel:
        """Makes the model: a new one, or with the weights of a checkpoint.

        Args:
            overrides: of a new model's configuration, see `build_config`; around a plain backbone, of all but that.
            name_or_path: a folder or a Hub id: of a model of the recipe's algorithm, or of a plain backbone of
                transformers or timm, to which the recipe adds neck, head and image size. Or an architecture of timm.

        Raises:
            ValueError: the checkpoint is of another algorithm, does not fit the recipe or the overrides, or is damaged.
            OSError: there is no such checkpoint.
        """
        if name_or_path is None:
            return AutoModelForPreTraining.from_config(self.build_config(overrides))
        config, algorithm = read_config(name_or_path), self.model["model_type"]
        is_ours = isinstance(config, SSLConfig)
        if is_ours and config.model_type != algorithm:
            raise ValueError(
                f"--model_name_or_path {name_or_path} is a {config.model_type!r}, and recipe {self.name} trains "
                f"{algorithm!r}: its folder backbone/ gives the backbone alone"
            )
        if overrides is not None and (is_ours or "backbone_config" in parse_overrides(overrides)):
            raise ValueError(
                "--config_overrides change what is new in a model, and --model_name_or_path names what is trained already: "
                f"leave one of them out; got {overrides!r} and {name_or_path!r}"
            )
        if not is_ours:
            config = self._config_around(fields_around_backbone(name_or_path, config), overrides)
        return load_pretrained(AutoModelForPreTraining, name_or_path, config=config)

    def _config_around(self, backbone_fields: dict, overrides: str | None) -> SSLConfig:
        """The recipe's configuration, on a backbone that is not the recipe's."""
        own = {"image_size": self.build_config().image_size, "backbone_config": backbone_fields["backbone_config"]}
        return replace(self, model={**backbone_fields, **self.model, **own}).build_config(overrides)

    def build_config(self, overrides: str | None = None) -> SSLConfig:
        """Makes the model's configuration, with `overrides` such as `"mask_ratio=0.6,backbone_config.patch_size=8"`."""
        model_type = self.model.get("model_type")
        if (
            not isinstance(model_type, str)
            or model_type not in CONFIG_MAPPING
            or not issubclass(CONFIG_MAPPING[model_type], SSLConfig)
        ):
            raise ValueError(
                f"recipe {self.name} asks for the model_type {model_type!r}; ssl_hub has {', '.join(ALGORITHMS)}"
            )
        config_class = CONFIG_MAPPING[model_type]
        values = {key: value for key, value in self.model.items() if key != "model_type"}
        _check_names(config_class, values, f"recipe {self.name}")
        if overrides:
            values = _merge(values, parse_overrides(overrides))
            _check_names(config_class, values, "--config_overrides")
        return config_class(**values)


def list_recipes() -> list[str]:
    """The names of ssl_hub's own recipes."""
    return list_yaml_files(RECIPES_PACKAGE)


def list_yaml_files(package: str) -> list[str]:
    """The names, without their ends, of the YAML files of a package."""
    files = (path.name for path in resources.files(package).iterdir())
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def recipe_summary(name: str, package: str) -> str:
    """The first sentence of the comment that a recipe of a package begins with."""
    lines = (resources.files(package) / f"{name}.yaml").read_text().splitlines()
    comment = " ".join(line.removeprefix("#").strip() for line in takewhile(lambda line: line.startswith("# "), lines))
    return re.split(r"(?<=\.)\s", comment)[0]


class _YamlLoader(yaml.SafeLoader):
    """Takes `1e-4` as the number that it is in YAML 1.2 and everywhere else; to YAML 1.1 it is a text.

    Takes no aliases: a few lines of them stand for more than any memory holds. Nor a key that is there twice.
    """

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.MarkedYAMLError(problem=f"found {twice[0]!r} more than once", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(
                problem=f"the alias *{event.anchor}: write it out", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)


_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(text: str) -> Any:
    """Reads YAML without objects of Python or aliases; raises `ValueError` with the place where it is none."""
    try:
        return _YamlLoader(text).get_single_data()
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except Exception as error:  # of any kind: that of a date or a number that does not exist
        raise ValueError(" ".join(str(error).split())) from error


def read_recipe_file(name_or_file: str, package: str, extended_by: tuple[str, ...], kind: str = "") -> Any:
    """What the YAML file of a package, or of a path, holds; the errors that all kinds of recipes have are raised here.

    Args:
        extended_by: the recipes on the way here, from the first one.
        kind: what a missing one is said to be of, such as " of a classifier".
    """
    if name_or_file in extended_by:
        raise ValueError(f"a recipe cannot extend itself; got {' -> '.join([*extended_by, name_or_file])}")
    names = list_yaml_files(package)
    if name_or_file in names:
        text = (resources.files(package) / f"{name_or_file}.yaml").read_text()
    elif Path(name_or_file).is_file():
        try:
            text = Path(name_or_file).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"recipe {name_or_file} is no text in UTF-8: {error.reason}") from error
    else:
        near = get_close_matches(name_or_file, names, n=5, cutoff=0.5)
        raise ValueError(
            f"there is no recipe {name_or_file!r}{kind} and no such file; "
            + (f"near it: {', '.join(near)}" if near else f"the recipes are {', '.join(names)}")
        )
    try:
        return read_yaml(text)
    except ValueError as error:
        raise ValueError(f"recipe {name_or_file} is not YAML: {error}") from error


def load_recipe(name_or_file: str, extended_by: tuple[str, ...] = ()) -> Recipe:
    """Reads a recipe of ssl_hub by its name, or any by the path of its `.yaml` file.

    A recipe that `extends` another one takes over what it does not say itself; `views` and `evaluation` are replaced as
    a whole, and `results` are each recipe's own.

    Args:
        extended_by: the recipes on the way here, from the first one.
    """
    content = read_recipe_file(name_or_file, RECIPES_PACKAGE, extended_by)
    if not isinstance(content, dict):
        given = "nothing" if content is None else f"a {type(content).__name__}"
        raise ValueError(f"recipe {name_or_file} holds {given}, not sections ({', '.join(SECTIONS)})")
    for section, value in content.items():
        if section not in SECTIONS:
            raise ValueError(
                f"recipe {name_or_file} has the section {section!r}; its sections may be {', '.join(SECTIONS)}"
            )
        if not isinstance(value, SECTIONS[section]):
            raise ValueError(
                f"the section {section!r} of recipe {name_or_file} must be a {SECTIONS[section].__name__}; got {value!r}"
            )
    results = content.get("results", {})
    if not set(results) <= set(RESULTS) or not all(isinstance(result, str) for result in results.values()):
        raise ValueError(
            f"the section 'results' of recipe {name_or_file} may have {' and '.join(RESULTS)}, each a text; got {results!r}"
        )
    parent = Recipe("", {}, [])
    if "extends" in content:
        parent = load_recipe(content["extends"], (*extended_by, name_or_file))
    return Recipe(
        name=name_or_file,
        model=_merge(parent.model, content.get("model", {})),
        views=content.get("views", parent.views),
        training=_merge(parent.training, content.get("training", {})),
        evaluation=content.get("evaluation", parent.evaluation),
        results=results,
    )


def save_recipe(
    path: Path, config: SSLConfig, views: list[dict], evaluation: list[dict] | None, arguments: list
) -> None:
    """Writes what a run was made of as a recipe, so that `--recipe path` runs it again.

    Args:
        arguments: instances of the argument classes; where the run writes and what it resumes from are left out.
    """
    left_out = (
        *("recipe", "config_overrides"),  # which are in the model and what follows
        *("output_dir", "resume_from_checkpoint", "evaluation", "push_to_hub", "hub_model_id", "hub_private_repo"),
        "recipe_length",
    )
    training = {key: value for each in arguments for key, value in vars(each).items() if key not in left_out}
    recipe = {
        "model": {**_own_fields(config), "backbone_config": _own_fields(config.backbone_config)},
        "views": views,
        "training": {key: value for key, value in training.items() if value is not None},
        **({} if evaluation is None else {"evaluation": evaluation}),
    }
    # By JSON, which turns tuples and enumerations into what YAML has too.
    path.write_text(yaml.safe_dump(json.loads(json.dumps(recipe)), sort_keys=False, default_flow_style=None))


def _own_fields(config: PreTrainedConfig) -> dict:
    """What a configuration sets other than its class does, without what every configuration of transformers has."""
    shared = {f.name for f in fields(PreTrainedConfig)}
    own = {f.name for f in fields(config) if f.name not in shared}
    return {"model_type": config.model_type} | {k: v for k, v in config.to_diff_dict().items() if k in own}


def parse_overrides(overrides: str) -> dict:
    """Parses `"a=1,b.c=[1, 2]"` to `{"a": 1, "b": {"c": [1, 2]}}`; values are YAML."""
    parsed: dict = {}
    for item in re.split(r",(?=[\w.]+=)", overrides):
        name, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"--config_overrides takes name=value,name=value,...; got {item!r}")
        *parents, last = name.strip().split(".")
        target = parsed
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise ValueError(f"--config_overrides sets both {parent} and {name.strip()}: leave one of them out")
        if last in target:
            raise ValueError(f"--config_overrides sets {name.strip()}, or a part of it, more than once")
        try:
            target[last] = read_yaml(value)
        except ValueError as error:
            raise ValueError(f"--config_overrides: the value of {item!r} is not YAML: {error}") from error
    return parsed


def _merge(base: dict, update: dict) -> dict:
    merged = dict(base)
    for key, value in update.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        if nested and key == "backbone_config" and "model_type" in value:
            # The fields of one kind of backbone mean nothing to another.
            nested = merged[key].get("model_type", value["model_type"]) == value["model_type"]
        merged[key] = _merge(merged[key], value) if nested else value
    return merged


def _check_names(config_class: type[SSLConfig], values: dict, where: str) -> None:
    """transformers takes any keyword, so a misspelt one would be ignored."""
    allowed = {f.name for f in fields(config_class)} | {"num_labels"}
    unknown = [name for name in values if name not in allowed]
    backbone = values.get("backbone_config")
    if isinstance(backbone, dict):
        backbone_type = backbone.get("model_type", config_class.default_backbone_fields().get("model_type"))
        if isinstance(backbone_type, str) and backbone_type in CONFIG_MAPPING:
            backbone_class = CONFIG_MAPPING[backbone_type]
            backbone_allowed = {f.name for f in fields(backbone_class)} | set(backbone_class.attribute_map)
            backbone_allowed |= {"model_type", "num_labels"}
            unknown += [f"backbone_config.{name}" for name in backbone if name not in backbone_allowed]
            allowed |= {f"backbone_config.{name}" for name in backbone_allowed}
    if unknown:
        near = {name: get_close_matches(str(name), sorted(allowed), n=3) for name in unknown}
        hints = "; ".join(f"{name!r}" + (f" (near it: {', '.join(n)})" if n else "") for name, n in near.items())
        raise ValueError(f"{where} sets what {config_class.__name__} does not have: {hints}")
