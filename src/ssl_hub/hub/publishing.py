"""Saving a model in the layout that is shared, and pushing it to the Hub."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from huggingface_hub import CommitOperationAdd, HfApi, RepoUrl, get_session, get_token
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from .. import __version__
from ..pretrained import check_finite
from ..printing import printable
from ..registry import ALGORITHMS

if TYPE_CHECKING:  # `publish` needs neither torch nor transformers
    from transformers import BaseImageProcessor

    from ..modeling_utils import SSLModel

_CHECKPOINT_FILES = [
    "config.json",
    "preprocessor_config.json",
    "model.safetensors",
    # A large model is saved in shards with an index.
    "model-?????-of-?????.safetensors",
    "model.safetensors.index.json",
]
_SHARED_FILES = [
    "README.md",
    "curves.png",
    "reconstruction.png",
    *_CHECKPOINT_FILES,
    *(f"backbone/{name}" for name in _CHECKPOINT_FILES),
    "modeling_ssl_hub.py",
]

# What `trust_remote_code=True` runs where nobody has imported ssl_hub: transformers asks for the package if it is not
# installed, and the import registers the models.
_REMOTE_CODE = """from ssl_hub import {name}  # the model is in the package: pip install ssl_hub

__all__ = ["{name}"]
"""

# Seconds that the Hub may take to answer a request; by itself the client waits for ever.
_TIMEOUT = 60.0
_CHECK_TIMEOUT = 10.0


class PublishError(RuntimeError):
    """A push to the Hub that did not succeed."""


def save_for_sharing(
    model: SSLModel,
    image_processor: BaseImageProcessor,
    output_dir: str | Path,
    max_shard_size: int | str = "50GB",
) -> None:
    """Writes the whole method to the root of `output_dir` and its backbone, as plain transformers, to `backbone/`.

    Both folders get the image processor: normalisation travels with the weights. The root also loads with
    `trust_remote_code=True` where ssl_hub is installed and not imported. State that only a running training
    needs (`model.training_state`) is left out; it is initialised anew when the model is loaded. Files of other names
    are left alone.

    Args:
        max_shard_size: weights beyond this size are split into several files, as in `save_pretrained`.

    Raises:
        ValueError: the weights hold NaN or infinity; nothing is written.
        OSError: the files cannot be written.
    """
    output_dir = Path(output_dir)
    shared = {
        name: tensor for name, tensor in model.state_dict().items() if not name.startswith(tuple(model.training_state))
    }
    check_finite(shared, "the model")
    try:
        # The backbone first: a save completes its configuration, which the model's configuration includes.
        model.backbone.save_pretrained(output_dir / "backbone", max_shard_size=max_shard_size)
        model.save_pretrained(output_dir, state_dict=shared, max_shard_size=max_shard_size)
        for folder in (output_dir, output_dir / "backbone"):
            image_processor.save_pretrained(folder)
        if model.config.model_type in ALGORITHMS:
            _write_remote_code(type(model.config).__name__, output_dir)
    except SafetensorError as error:  # of a full disk, for one
        raise OSError(f"the model cannot be written to {output_dir}: {error}") from error


def _write_remote_code(config_name: str, folder: Path) -> None:
    (folder / "modeling_ssl_hub.py").write_text(_REMOTE_CODE.format(name=config_name))
    values = json.loads((folder / "config.json").read_text())
    values["auto_map"] = {"AutoConfig": f"modeling_ssl_hub.{config_name}"}
    (folder / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


@contextmanager
def new_folder(output_dir: str | Path) -> Iterator[Path]:
    """A folder to write a model to. When all is written it becomes `output_dir`: whole, or not at all.

    Raises:
        FileExistsError: there is something at `output_dir` already.
    """
    output_dir = Path(output_dir)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise FileExistsError(
            f"--output_dir {output_dir} exists already, and nothing is written over: give a new or an empty folder"
        )
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output_dir.parent, prefix=f"{output_dir.name}.unfinished-") as unfinished:
        folder = Path(unfinished) / "model"
        folder.mkdir()
        yield folder
        folder.rename(output_dir)


def publish(
    output_dir: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
) -> str:
    """Pushes what [`save_for_sharing`] wrote, with the card and its pictures, to a model repository on the Hub.

    Training checkpoints, logs and everything else in `output_dir` are not uploaded. Where the card says how to load the
    model, it gets the name of the repository.

    Args:
        repo_id: "owner/name", or "name" for your own namespace; created if it does not exist.
        private: whether the repository is private; a new one is by default what its owner's settings say.
        token: defaults to that of `hf auth login` or of the environment variable HF_TOKEN.
        revision: a branch, created if it does not exist; defaults to the main branch.
        create_pr: opens a pull request instead of committing to the branch.

    Returns:
        The URL of the repository, or of the pull request.

    Raises:
        FileNotFoundError: `output_dir` holds no model, or only a part of one.
        ValueError: its weights are cut off.
        PublishError: no login, no connection, no answer, no right to write, a repository that is not as `private` says,
            or the Hub refused; it gives the command to push later.
    """
    output_dir = Path(output_dir)
    for folder in (output_dir, output_dir / "backbone"):
        _check_checkpoint(folder)
    options = {"private": private, "revision": revision, "create_pr": create_pr or None}
    arguments = [repr(str(output_dir.resolve())), repr(repo_id)]
    arguments += [f"{name}={value!r}" for name, value in options.items() if value is not None]
    code = f"from ssl_hub.hub.publishing import publish; publish({', '.join(arguments)})"
    advice = f"\nIt is kept in {output_dir.resolve()}. To push it later:\n    python -c {shlex.quote(code)}"
    with _publish_errors(repo_id, advice):
        api, repo = _create_repo(repo_id, private, token)
        return _upload(api, repo, output_dir, revision, create_pr, commit_message, commit_description)


def check_can_push(repo_id: str, token: bool | str | None = None, *, private: bool | None = None) -> None:
    """Raises `PublishError` if a later push to this repository would be refused; creates and changes nothing.

    Args: as of [`publish`].
    """
    with _publish_errors(repo_id, timeout=_CHECK_TIMEOUT, what="cannot be pushed to"):
        api = _log_in(repo_id, token)
        user = api.whoami()
        owner, _, name = repo_id.rpartition("/")
        owner = owner or user["name"]
        owners = [user["name"], *(organization["name"] for organization in user.get("orgs", ()))]
        if owner not in owners:
            raise PermissionError(f"you are logged in as {user['name']} and may write to {', '.join(owners)}")
        if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise PermissionError("your token may only read: make one that may write at huggingface.co/settings/tokens")
        with suppress(RepositoryNotFoundError):  # the push creates it
            _check_visibility(api, f"{owner}/{name}", private)


def push_model(
    model: SSLModel,
    repo_id: str,
    *,
    image_processor: BaseImageProcessor | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
    max_shard_size: int | str = "50GB",
    tags: list[str] | None = None,
) -> str:
    """Pushes a model in memory, in the layout of [`save_for_sharing`] and with a model card: `SSLModel.push_to_hub`.

    The card is written from the configuration and replaces one that the repository has.

    Args:
        image_processor: defaults to the one beside the weights that the model was loaded from, or else to one that
            resizes, crops and normalises as the configuration says.
        tags: for the model card, besides its own.

    The other arguments are those of [`publish`] and [`save_for_sharing`].

    Returns:
        The URL of the repository, or of the pull request.

    Raises:
        PublishError: no login, no connection, no right to write, or the Hub refused.
    """
    from .model_card import build_model_card  # not above: it imports torch

    if image_processor is None:
        image_processor = _image_processor(model)
    with TemporaryDirectory() as folder:
        save_for_sharing(model, image_processor, folder, max_shard_size)
        with _publish_errors(repo_id):
            api, repo = _create_repo(repo_id, private, token)
            card = build_model_card(
                model.config,
                training_arguments=None,
                metrics=[],
                repo_id=repo.repo_id,
                tags=[*(model.model_tags or []), *(tags or [])],
            )
            card.save(Path(folder) / "README.md")
            return _upload(api, repo, folder, revision, create_pr, commit_message, commit_description)


def _image_processor(model: SSLModel) -> BaseImageProcessor:
    from transformers import AutoImageProcessor  # not above, like what follows: it imports torch

    from ..data.processing import build_image_processor

    config = model.config
    if model.name_or_path:
        try:
            return AutoImageProcessor.from_pretrained(
                model.name_or_path, revision=getattr(config, "_commit_hash", None) or "main"
            )
        except OSError:  # there is none beside the weights, or the folder is gone
            pass
    return build_image_processor(config.image_size, config.image_mean, config.image_std)


def _check_checkpoint(folder: Path) -> None:
    """Raises unless the folder holds a configuration and the whole weights."""
    hint = "write the model there with save_for_sharing first"
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"No config.json in {folder}: {hint}.")
    index = folder / "model.safetensors.index.json"
    try:
        names = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else {"model.safetensors"}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{index} is damaged: {hint}.") from error
    for name in sorted(names):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"No {printable(name)} in {folder}: {hint}.")
        try:
            with safe_open(folder / name, framework="numpy"):  # reads the names, and compares the size
                pass
        except SafetensorError as error:
            raise ValueError(f"{folder / name} is cut off or no safetensors file ({error}): {hint}.") from error


def _log_in(repo_id: str, token: bool | str | None) -> HfApi:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            "the name must be such as me/mae-vit-base: letters, digits, '-', '_' and '.', at most 96 of them"
        ) from error
    if token in (None, True) and get_token() is None:
        raise PermissionError("not logged in: run `hf auth login` or set HF_TOKEN")
    return HfApi(token=token, library_name="ssl_hub", library_version=__version__)


def _check_visibility(api: HfApi, repo_id: str, private: bool | None) -> None:
    is_private = bool(api.model_info(repo_id).private)
    if private is not None and is_private != private:
        states = ("public", "private")
        raise ValueError(
            f"{repo_id} exists and is {states[is_private]}, and you asked for a {states[private]} one: name another "
            "repository, or change this one's visibility in its settings"
        )


def _create_repo(repo_id: str, private: bool | None, token: bool | str | None) -> tuple[HfApi, RepoUrl]:
    api = _log_in(repo_id, token)
    repo = api.create_repo(repo_id, private=private, exist_ok=True)
    _check_visibility(api, repo.repo_id, private)  # the Hub ignores `private` for one that exists
    return api, repo


def _upload(
    api: HfApi,
    repo: RepoUrl,
    folder: str | Path,
    revision: str | None,
    create_pr: bool,
    commit_message: str | None,
    commit_description: str | None,
) -> str:
    if revision is not None and not create_pr and not revision.startswith("refs/pr/"):
        api.create_branch(repo.repo_id, branch=revision, exist_ok=True)
    files = {path.relative_to(folder).as_posix(): path for name in _SHARED_FILES for path in Path(folder).glob(name)}
    contents = {name: str(path) for name, path in files.items()}
    if "README.md" in files:
        contents["README.md"] = _name_in_card(files["README.md"].read_text(), repo.repo_id).encode()
    commit = api.create_commit(
        repo_id=repo.repo_id,
        operations=[CommitOperationAdd(name, content) for name, content in contents.items()],
        revision=revision,
        create_pr=create_pr,
        commit_message=commit_message or "Upload model with ssl_hub",
        commit_description=commit_description,
    )
    return commit.pr_url if create_pr else str(repo)


def _name_in_card(text: str, repo_id: str) -> str:
    """A card with this name where it says how to load the model, in place of a folder or of an earlier repository."""
    named = re.search(r'AutoModel\.from_pretrained\("([^"\n]+)", subfolder="backbone"\)', text)
    if not named:
        return text
    text = text.replace(f'from_pretrained("{named[1]}"', f'from_pretrained("{repo_id}"')
    return text.replace(f"--model_name_or_path {named[1]} ", f"--model_name_or_path {repo_id} ")


@contextmanager
def _publish_errors(
    repo_id: str, advice: str = "", *, timeout: float | None = None, what: str = "was not pushed to"
) -> Iterator[None]:
    # The client raises its own errors, those of its HTTP library and storage back end, and those of the operating
    # system. Whichever it is, after hours of training the first thing to know is that nothing is lost.
    session = get_session()
    before = session.timeout
    session.timeout = timeout or _TIMEOUT
    try:
        yield
    except Exception as error:
        reason = printable(" ".join(str(error).split()) or type(error).__name__)
        raise PublishError(f"The model {what} {repo_id!r}: {reason}{advice}") from error
    finally:
        session.timeout = before
