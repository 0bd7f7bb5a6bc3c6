"""Checkpoints that are written whole or not at all, without pickle.

A `checkpoint-N` folder is a model that `AutoModel.from_pretrained` loads, with the state of the training beside it:

    config.json, model.safetensors    the model
    preprocessor_config.json          its image processor
    optimizer.safetensors             the tensors of the optimizer's state, by the parameter's name
    sampling_weights.safetensors      the weights by which the epoch draws its images, if there are any
    online_probe.safetensors          the online probe and its optimizer's state, if there is one
    trainer_state.json                everything else
    manifest.json                     size and SHA-256 of each of these files

The state of the random generators is not among them: the trainer seeds them anew at every step.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import torch
from safetensors.torch import load_file, load_model, save_file
from transformers import BaseImageProcessor

from ..modeling_utils import SSLModel
from ..pretrained import check_finite

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
STATE = "trainer_state.json"
# What `STATE` holds in this version of ssl_hub.
STATE_KEYS = frozenset(
    ("step", "epoch", "step_in_epoch", "last_evaluation", "best", "log", "scaler", "identity", "optimizer_scalars")
)
# What some runs have of tensors besides.
TENSOR_FILES = ("sampling_weights", "online_probe")
# Without one of these a folder is no checkpoint, whatever its manifest says.
NEEDED_FILES = frozenset(("config.json", "model.safetensors", "optimizer.safetensors", STATE))


class DamagedCheckpointError(ValueError):
    """A folder that is no whole checkpoint of ssl_hub."""


class CheckpointWriter:
    """Writes the checkpoints of a run into its folder, in a thread beside the steps that come next, one at a time.

    What training changes is copied first, into host memory that is kept for the next checkpoint.
    """

    def __init__(self, output_dir: Path):
        self.output_dir = output_dir
        self.copies: dict[tuple[str, str], torch.Tensor] = {}
        self.executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self.writing: Future | None = None

    def reserve(self, model: SSLModel, optimizer: torch.optim.Optimizer) -> None:
        """Takes the memory for the copies beside the next steps, once, so that the first checkpoint need not.

        Args:
            optimizer: after a step, by which it has its state.
        """
        if self.copies or self.writing is not None:
            return
        remembered = tensors_of(optimizer_state(model, optimizer))
        kinds = {"model": model.state_dict(keep_vars=True), "optimizer": remembered}
        self.writing = self.executor.submit(self._reserve, kinds)

    def _reserve(self, kinds: dict[str, dict[str, torch.Tensor]]) -> None:
        for kind, tensors in kinds.items():
            for _, buffer, _ in self._buffers(kind, tensors):
                buffer.zero_()  # memory is the process's once it is written to

    def save(
        self,
        step: int,
        model: SSLModel,
        image_processor: BaseImageProcessor,
        optimizer: torch.optim.Optimizer,
        state: dict,
        tensors: dict[str, dict[str, torch.Tensor]] | None = None,
        save_total_limit: int | None = None,
        best_step: int | None = None,
    ) -> None:
        """Writes `checkpoint-{step}`, then removes the oldest ones over `save_total_limit`, but for that of `best_step`.

        Args:
            state: what else a resumed run needs, as JSON.
            tensors: what it needs of tensors besides model and optimizer, by the name of the file, one of `TENSOR_FILES`.

        Raises:
            OSError: the checkpoint before could not be written.
        """
        self.wait()  # its copies are about to be overwritten
        remembered = optimizer_state(model, optimizer)
        tensors = {"optimizer": tensors_of(remembered), **(tensors or {})}
        state = {**state, "optimizer_scalars": {k: v for k, v in remembered.items() if k not in tensors["optimizer"]}}
        # With the parameters themselves, so that a weight under two names is known to be one.
        weights = self._copy("model", model.state_dict(keep_vars=True))
        tensors = {name: self._copy(name, of_file) for name, of_file in tensors.items()}
        text = json.dumps(state, indent=1)

        def write() -> None:
            unfinished = self.output_dir / f"checkpoint-{step}.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            try:
                _write_checkpoint(unfinished, model, weights, image_processor, tensors, text)
            except Exception:  # such as a full disk, which what was written would keep full
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
            unfinished.rename(self.output_dir / f"checkpoint-{step}")
            if save_total_limit is not None:
                for old in list_checkpoints(self.output_dir)[:-save_total_limit]:
                    if checkpoint_step(old) != best_step:
                        _remove(old)

        self.writing = self.executor.submit(write)

    def wait(self) -> None:
        """Waits until the checkpoint under way is written; raises what kept it from that."""
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def raise_error(self) -> None:
        """Raises what kept the checkpoint under way from being written, if that is known already."""
        if self.writing is not None and self.writing.done():
            self.wait()

    def close(self) -> None:
        """Waits without an error, at the end of a run, which may have another one."""
        self.executor.shutdown()

    def whole_checkpoints(self) -> list[Path]:
        """The `checkpoint-N` folders, by N, with the one under way if it can be written."""
        if self.writing is not None:
            self.writing.exception()
        return list_checkpoints(self.output_dir)

    @torch.no_grad()
    def _copy(self, kind: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: buffer.copy_(tensor) for name, buffer, tensor in self._buffers(kind, tensors)}

    def _buffers(self, kind: str, tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        """Name, memory for the copy, and tensor; a tensor under several names is copied to one place."""
        first_names: dict[torch.Tensor, str] = {}
        for name, tensor in tensors.items():
            key = kind, first_names.setdefault(tensor, name)
            buffer = self.copies.get(key)
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                buffer = torch.empty_like(tensor, device="cpu", memory_format=torch.contiguous_format)
            self.copies[key] = buffer
            yield name, buffer, tensor


def _write_checkpoint(folder, model, weights, image_processor, tensors, state) -> None:
    # Under the names of the modules, which `load_model` asks for; transformers would rename a backbone's tensors.
    model.save_pretrained(folder, state_dict=weights, save_original_format=False)
    image_processor.save_pretrained(folder)
    for name, of_file in tensors.items():
        save_file(of_file, folder / f"{name}.safetensors")
    (folder / STATE).write_text(state)
    manifest = {path.name: _fingerprint(path) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def optimizer_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """What an optimizer remembers of every parameter, as `{"PARAMETER.NAME": value}`."""
    return {
        f"{parameter_name}.{name}": value
        for parameter_name, parameter in model.named_parameters()
        for name, value in optimizer.state.get(parameter, {}).items()
    }


def tensors_of(values: dict) -> dict[str, torch.Tensor]:
    """Those of the values that are tensors."""
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


def read_state(checkpoint: Path) -> dict:
    """What a checkpoint holds besides tensors: what `CheckpointWriter.save` was given, and `optimizer_scalars`."""
    return json.loads((checkpoint / STATE).read_text())


def load_checkpoint(
    checkpoint: Path, model: SSLModel, optimizer: torch.optim.Optimizer, state: dict
) -> dict[str, dict[str, torch.Tensor]]:
    """Loads a checkpoint that `verify_checkpoint` let pass; returns the `tensors` that `save` was given.

    The settings of the optimizer, its learning rate for one, stay those that it was made with.

    Args:
        state: what `read_state` returned.
    """
    files = {name: checkpoint / f"{name}.safetensors" for name in TENSOR_FILES}
    others = {name: load_file(path) for name, path in files.items() if path.exists()}
    for name, of_file in others.items():
        check_finite(of_file, str(files[name]))
    tensors = load_file(checkpoint / "optimizer.safetensors")
    check_finite(tensors, f"the optimizer's state in {checkpoint}")
    try:
        load_model(model, checkpoint / "model.safetensors")
        load_optimizer_state(model, optimizer, {**tensors, **state["optimizer_scalars"]})
    except (RuntimeError, ValueError) as error:
        reason, *more = [line.strip() for line in str(error).splitlines() if not line.endswith(":")]
        raise ValueError(
            f"{checkpoint} is a whole checkpoint, but of another model or optimizer than this run's, so the run cannot "
            f"resume from it; give the arguments that it was written with: {reason}"
            + (f" (and {len(more)} more)" if more else "")
        ) from error
    check_finite(model.state_dict(), f"the checkpoint {checkpoint}")
    return others


def load_optimizer_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer, values: dict) -> None:
    """Gives an optimizer what `optimizer_state` returned; raises `ValueError` for a parameter that it does not train."""
    by_parameter: dict[str, dict] = {}
    for key, value in values.items():
        parameter_name, _, name = key.rpartition(".")
        by_parameter.setdefault(parameter_name, {})[name] = value
    names = {parameter: name for name, parameter in model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        i: {name: _laid_out_as(p, value) for name, value in by_parameter.pop(names[p]).items()}
        for i, p in enumerate(parameters)
        if names[p] in by_parameter
    }
    if by_parameter:
        raise ValueError(f"this run does not train {', '.join(list(by_parameter)[:3])}")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _laid_out_as(parameter: torch.Tensor, value):
    """A value of an optimizer's state in its parameter's memory format, which fused kernels take for granted."""
    if not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


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
    if not isinstance(manifest, dict) or not manifest.keys() >= NEEDED_FILES:
        raise DamagedCheckpointError(f"{checkpoint / MANIFEST} does not name the files of a checkpoint of ssl_hub")
    for name, expected in manifest.items():
        path = checkpoint / name
        if not path.is_file():
            raise DamagedCheckpointError(f"{path} is missing")
        if _fingerprint(path) != expected:
            raise DamagedCheckpointError(f"{path} is not what was written: cut off or changed")
    state = read_state(checkpoint)
    missing = STATE_KEYS - (state.keys() if isinstance(state, dict) else set())
    if missing:
        raise DamagedCheckpointError(
            f"{checkpoint / STATE} was written by another version of ssl_hub: it lacks {', '.join(sorted(missing))}"
        )


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
    checkpoints = _named_checkpoints(output_dir)
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
    checkpoints = [path.name for path in _named_checkpoints(output_dir)]
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


@contextmanager
def lock_output_dir(output_dir: Path) -> Iterator[None]:
    """Makes a folder, unless it stays empty, and keeps other runs out of it until this process ends, however it does.

    Raises:
        BlockingIOError: another run holds it.
        OSError: nothing can be written there.
    """
    path, is_new = output_dir / ".lock", not output_dir.exists()
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        file = _open_locked(path)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
    except BlockingIOError:
        raise
    except OSError as error:
        raise OSError(
            f"nothing can be written to {output_dir}: {error.strerror}; give another --output_dir or make it writable"
        ) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()
        if is_new and not any(output_dir.iterdir()):
            output_dir.rmdir()


def _open_locked(path: Path):
    while True:
        file = path.open("a+")
        try:
            # Not flock: the workers of a run that was killed would hold that a while longer.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                raise BlockingIOError(
                    f"{path.parent} is in use by another run, {file.read()}: wait for its end, or give another "
                    "--output_dir"
                ) from error
            logger.warning("%s cannot be locked (%s): let no second run write there", path.parent, error.strerror)
            return file
        # Whoever held the lock may have removed the file in between.
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            return file
        file.close()


def cut_metrics(path: Path, step: int) -> None:
    """Drops what a killed run logged after the step that this one resumes from, and lines that are damaged."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            if step > 0 and json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, TypeError, KeyError):
            continue
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text("".join(kept))
    unfinished.replace(path)


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The `checkpoint-N` folders, by N."""
    return [path for path in _named_checkpoints(output_dir) if path.is_dir()]


def _named_checkpoints(output_dir: Path) -> list[Path]:
    """All that is called `checkpoint-N`, by N, a file or a dead link too."""
    found = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=checkpoint_step)


def clear_the_way(output_dir: Path, step: int) -> Path | None:
    """Makes room for a run that begins at `step`; returns the folder that later checkpoints were moved to, if any.

    Checkpoints of later steps, damaged or of a run that was given up, would count as the newest ones and make the new
    ones go. They are moved to `superseded-N`, with a copy of the metrics. What a process left behind that was killed
    while it saved or removed a checkpoint is deleted.
    """
    for path in output_dir.glob("checkpoint-*.unfinished"):
        _delete(path)
    later = [path for path in _named_checkpoints(output_dir) if checkpoint_step(path) > step]
    if not later:
        return None
    aside = next(path for n in count(1) if not (path := output_dir / f"superseded-{n}").exists())
    aside.mkdir()
    if (output_dir / "metrics.jsonl").is_file():
        shutil.copy(output_dir / "metrics.jsonl", aside)
    for path in later:
        path.rename(aside / path.name)
    return aside


def checkpoint_step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _remove(checkpoint: Path) -> None:
    # Renamed first: whoever is killed while removing it must not leave half a checkpoint under its name.
    doomed = checkpoint.with_name(f"{checkpoint.name}.unfinished")
    _delete(doomed)
    checkpoint.rename(doomed)
    _delete(doomed)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _fingerprint(path: Path) -> dict:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return {"size": path.stat().st_size, "sha256": digest.hexdigest()}
