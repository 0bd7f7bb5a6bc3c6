"""Saving a model in the layout that is shared, and pushing it to the Hub."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import HfApi, get_token

if TYPE_CHECKING:  # a push needs neither torch nor transformers
    from transformers import BaseImageProcessor, PreTrainedModel

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
]


class PublishError(RuntimeError):
    """A push to the Hub that did not succeed; the files are still on disk."""


def save_for_sharing(
    model: PreTrainedModel,
    image_processor: BaseImageProcessor,
    output_dir: str | Path,
) -> None:
    """Writes the whole method at the root of `output_dir` and its backbone, as plain transformers, in `backbone/`.

    Both folders get the image processor: normalisation travels with the weights. Files of other names are left alone.

    Args:
        model: has a submodule `backbone` that is a transformers model.
    """
    output_dir = Path(output_dir)
    for part, folder in ((model, output_dir), (model.backbone, output_dir / "backbone")):
        part.save_pretrained(folder)
        image_processor.save_pretrained(folder)


def publish(
    output_dir: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload model with ssl_hub",
) -> str:
    """Pushes what [`save_for_sharing`] wrote, and the pictures of the card, to a model repository on the Hub.

    Checkpoints to resume from, logs and whatever else lies in `output_dir` stay at home.

    Args:
        repo_id: "owner/name", or "name" for a repository of one's own; created if it is not there.
        private: whether a new repository is private; by default as its owner has set it.
        token: by default the one of `hf auth login` or of the environment variable HF_TOKEN.
        revision: a branch, created if it is not there; by default the main branch.

    Returns:
        The URL of the repository.

    Raises:
        FileNotFoundError: `output_dir` holds no model.
        PublishError: no login, no connection, no right to write, or the Hub refused; it gives the command to push later.
    """
    output_dir = Path(output_dir)
    if not (output_dir / "config.json").is_file():
        raise FileNotFoundError(f"No config.json in {output_dir}: write the model there with save_for_sharing first.")
    try:
        if token is None and get_token() is None:
            raise PermissionError("not logged in: run `hf auth login` or set HF_TOKEN")
        api = HfApi(token=token)
        repo = api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo.repo_id, branch=revision, exist_ok=True)
        api.upload_folder(
            repo_id=repo.repo_id,
            folder_path=output_dir,
            allow_patterns=_SHARED_FILES,
            revision=revision,
            commit_message=commit_message,
        )
    # The client raises its own, its HTTP library's, its storage back end's and operating system errors. Whichever it
    # is, after hours of training the first thing to know is that nothing is lost.
    except Exception as error:
        options = {"private": private, "revision": revision}
        arguments = [repr(str(output_dir.resolve())), repr(repo_id)]
        arguments += [f"{name}={value!r}" for name, value in options.items() if value is not None]
        code = f"from ssl_hub.hub.publishing import publish; publish({', '.join(arguments)})"
        raise PublishError(
            f"The model was not pushed to {repo_id!r}: {str(error).strip() or type(error).__name__}\n"
            f"It is kept in {output_dir.resolve()}. To push it later:\n    python -c {shlex.quote(code)}"
        ) from error
    return str(repo)
