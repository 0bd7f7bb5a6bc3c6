"""Checkpoints that are written whole or not at all, without pickle.

A `checkpoint-N` folder is a model that `AutoModel.from_pretrained` loads, with the state of the training beside it:

    config.json, model.safetensors    the model
    preprocessor_config.json          its image processor
    optimizer.safetensors             the tensors of the optimizer's state
    sampling_weights.safetensors      the weights by which the epoch draws its images, if there are any
    trainer_state.json                everything else
    manifest.json                     size and SHA-256 of each of these files

The state of the random generators is not among them: the trainer seeds them anew at every step.
"""

import hashlib
import json
import logging
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, load_model, save_file
from transformers import BaseImageProcessor

from ..modeling_utils import SSLModel

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"


class DamagedCheckpointError(ValueError):
    """A folder that is no whole checkpoint of ssl_hub."""


def save_checkpoint(
    output_dir: Path,
    step: int,
    model: SSLModel,
    image_processor: BaseImageProcessor,
    optimizer: torch.optim.Optimizer,
    state: dict,
    sampling_weights: torch.Tensor | None = None,
    save_total_limit: int | None = None,
) -> Path:
    """Writes `checkpoint-{step}`, then removes the oldest ones over `save_total_limit`.

    Args:
        state: what else a resumed run needs, as JSON.
        sampling_weights: `(N,)`, of the epoch that is under way.
    """
    unfinished = output_dir / f"checkpoint-{step}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    # Under the names of the modules, which `load_model` asks for; transformers would rename a backbone's tensors.
    model.save_pretrained(unfinished, save_original_format=False)
    image_processor.save_pretrained(unfinished)
    optimizer_state = optimizer.state_dict()
    tensors, scalars = {}, {}
    for index, values in optimizer_state["state"].items():
        for name, value in values.items():
            (tensors if isinstance(value, torch.Tensor) else scalars)[f"{index}.{name}"] = value
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, unfinished / "optimizer.safetensors")
    if sampling_weights is not None:
        save_file({"sampling_weights": sampling_weights}, unfinished / "sampling_weights.safetensors")
    state = {**state, "optimizer": {"scalars": scalars, "param_groups": optimizer_state["param_groups"]}}
    (unfinished / "trainer_state.json").write_text(json.dumps(state, indent=1))
    manifest = {path.name: _fingerprint(path) for path in sorted(unfinished.iterdir())}
    (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=1))

    checkpoint = output_dir / f"checkpoint-{step}"
    unfinished.rename(checkpoint)
    if save_total_limit is not None:
        for old in list_checkpoints(output_dir)[:-save_total_limit]:
            _remove(old)
    return checkpoint


def load_checkpoint(checkpoint: Path, model: SSLModel, optimizer: torch.optim.Optimizer) -> dict:
    """Loads a checkpoint that `verify_checkpoint` let pass; returns the rest of its state, `sampling_weights` too."""
    try:
        load_model(model, checkpoint / "model.safetensors")
        tensors = load_file(checkpoint / "optimizer.safetensors")
        state = json.loads((checkpoint / "trainer_state.json").read_text())
        optimizer_state = state.pop("optimizer")
        values: dict[int, dict] = {}
        for key, value in {**tensors, **optimizer_state["scalars"]}.items():
            index, _, name = key.partition(".")
            values.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({"state": values, "param_groups": optimizer_state["param_groups"]})
        weights = checkpoint / "sampling_weights.safetensors"
        state["sampling_weights"] = load_file(weights)["sampling_weights"] if weights.exists() else None
    except (RuntimeError, ValueError) as error:
        reason, *more = [line.strip() for line in str(error).splitlines() if not line.endswith(":")]
        raise ValueError(
            f"{checkpoint} is a whole checkpoint, but of another model or optimizer than this run's, so the run cannot "
            f"resume from it; give the arguments that it was written with: {reason}"
            + (f" (and {len(more)} more)" if more else "")
        ) from error
    return state


def verify_checkpoint(checkpoint: Path) -> None:
    """Raises `DamagedCheckpointError` if a file is missing, cut off or changed since the checkpoint was written."""
    if not checkpoint.is_dir():
        raise DamagedCheckpointError(f"there is no checkpoint folder {checkpoint}")
    if not (checkpoint / MANIFEST).is_file():
        raise DamagedCheckpointError(f"{checkpoint} is no checkpoint of ssl_hub: it has no {MANIFEST}")
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
    except ValueError as error:
        raise DamagedCheckpointError(f"{checkpoint / MANIFEST} is damaged: {error}") from error
    for name, expected in manifest.items():
        path = checkpoint / name
        if not path.is_file():
            raise DamagedCheckpointError(f"{path} is missing")
        if _fingerprint(path) != expected:
            raise DamagedCheckpointError(f"{path} is not what was written: cut off or changed")


def find_checkpoint(output_dir: Path, asked: str | None) -> Path | None:
    """The checkpoint to resume from.

    Args:
        asked: a checkpoint's folder, or "latest" for the last whole one in `output_dir`, if there is any at all.

    Raises:
        DamagedCheckpointError: the checkpoint asked for is not whole, or none of those in `output_dir` is.
    """
    if asked is None:
        return None
    if asked != "latest":
        verify_checkpoint(Path(asked))
        return Path(asked)
    checkpoints = list_checkpoints(output_dir)
    for candidate in reversed(checkpoints):
        try:
            verify_checkpoint(candidate)
            return candidate
        except DamagedCheckpointError as error:
            logger.warning("not resuming from %s: %s", candidate.name, error)
    if checkpoints:
        raise DamagedCheckpointError(
            f"none of the {len(checkpoints)} checkpoints in {output_dir} is whole; to begin anew, give another "
            "--output_dir"
        )
    logger.info("no checkpoint in %s yet: beginning a new run", output_dir)
    return None


def check_output_dir(output_dir: Path, asked: str | None) -> None:
    """Another run's results are never written over: raises `FileExistsError` if there are any to resume from or keep.

    Args:
        asked: as for `find_checkpoint`.
    """
    traces = [name for name in ("metrics.jsonl", "model.safetensors") if (output_dir / name).exists()]
    checkpoints = [path.name for path in list_checkpoints(output_dir)]
    goes_on = asked == "latest" or (asked is not None and Path(asked).resolve().parent == output_dir.resolve())
    if (traces or checkpoints) and not goes_on:
        raise FileExistsError(
            f"{output_dir} already holds a run ({', '.join([*traces, *checkpoints][:4])}): resume it by "
            "--resume_from_checkpoint latest, or give another --output_dir"
        )
    if "model.safetensors" in traces and not checkpoints:
        raise FileExistsError(
            f"{output_dir} holds a finished model but no checkpoint to resume from: give another --output_dir, "
            "and --model_name_or_path to start from its weights"
        )


def cut_metrics(path: Path, step: int) -> None:
    """Drops what a killed run logged after the step that this one resumes from, a half-written line too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if step > 0 and json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:
            break
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text("".join(kept))
    unfinished.replace(path)


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The `checkpoint-N` folders, by N."""
    found = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=_step)


def remove_leftovers(output_dir: Path, step: int) -> list[Path]:
    """Removes what a run that begins at `step` cannot use, and returns the `checkpoint-N` folders among it.

    That is what a process left behind that was killed while it saved or removed a checkpoint, and the checkpoints of
    later steps, damaged or of a run that was given up: counted as the newest ones, they would make the new ones go.
    """
    later = [path for path in list_checkpoints(output_dir) if _step(path) > step]
    for path in later:
        _remove(path)
    for path in output_dir.glob("checkpoint-*.unfinished"):
        shutil.rmtree(path)
    return later


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _remove(checkpoint: Path) -> None:
    # Renamed first: whoever is killed while removing it must not leave half a checkpoint under its name.
    doomed = checkpoint.with_name(f"{checkpoint.name}.unfinished")
    shutil.rmtree(doomed, ignore_errors=True)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


def _fingerprint(path: Path) -> dict:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return {"size": path.stat().st_size, "sha256": digest.hexdigest()}
