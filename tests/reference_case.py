"""One case of reference numbers: see run_reference.py."""

import json
import re
from collections import defaultdict
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

# Allowed relative differences, by kind.
TOLERANCES = {
    "losses": 1e-5,
    "features": 1e-4,
    "gradients": 1e-4,
    "parameters": 1e-6,
    "statistics": 1e-5,
    "schedule": 1e-6,
    "float64": 1e-10,
}
# BatchNorm over few values magnifies rounding.
RESNET_GRADIENTS = 1e-3
# No tolerance is below this many times the recorded difference between float32 and float64.
ROUNDINGS = 20
# The exact gradient of a bias in front of a normalisation is 0; what is recorded there is rounding.
SMALLEST_GRADIENT = 1e-5


class Case:
    """One case, and the worst relative error seen of each kind.

    Args:
        dtype: of all floating-point tensors. Most are recorded in float32; the loss, and some gradients, in float64 too.
    """

    def __init__(self, path: Path, dtype: torch.dtype = torch.float32):
        self.sidecar = json.loads(path.with_suffix(".json").read_text())
        self.dtype = dtype
        self.tensors = {
            key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in load_file(path).items()
        }
        self.config = self.sidecar.get("mmselfsup_config", {})
        self.errors: dict[str, float] = defaultdict(float)

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.tensors[key]

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    def under(self, prefix: str) -> dict[str, torch.Tensor]:
        return {key[len(prefix) :]: tensor for key, tensor in self.tensors.items() if key.startswith(prefix)}

    def precisions(self) -> list[torch.dtype]:
        """What to run the case in: float32, and double precision where numbers in it are recorded.

        A ResNet alone runs in double precision only: in float32 some processors round a value across a ReLU's zero,
        which changes the gradients by percents.
        """
        if "float64" in self.sidecar:
            return [torch.float32, torch.float64]
        return [torch.float64 if self.uses("ResNet") else torch.float32]

    def uses(self, kind: str) -> bool:
        """Whether the original's configuration has a module of this type."""
        return f'"{kind}"' in json.dumps(self.config)

    def tolerance(self, kind: str) -> float:
        tolerance, rounding = TOLERANCES[kind], 0.0
        exact = self.sidecar.get("float64")
        if kind == "losses" and exact:
            rounding = exact["total_rel_diff_to_float32"]
        elif kind == "gradients" and exact:
            rounding = max(entry["rel_l2_diff"] for entry in exact["grads"].values())
        # In double precision only the rounding of the recorded numbers is left.
        if kind == "gradients" and self.uses("ResNet") and not (exact and self.dtype == torch.float64):
            tolerance = RESNET_GRADIENTS
        return max(tolerance, ROUNDINGS * rounding)

    def is_off(self) -> bool:
        """Whether a difference is above its tolerance, or nothing was compared."""
        return not self.errors or any(error > self.tolerance(kind) for kind, error in self.errors.items())

    def summary(self) -> str:
        parts = []
        for kind, error in sorted(self.errors.items()):
            tolerance = self.tolerance(kind)
            parts.append(f"{kind} {error:.1e}" + (f" (at most {tolerance:.1e})" if error > tolerance else ""))
        return ", ".join(parts)

    def compare(self, kind: str, actual: torch.Tensor, expected: torch.Tensor) -> None:
        """Records the largest difference relative to the largest expected value; of a gradient, that of the L2 norms.

        Integers have to be equal.
        """
        if actual.shape != expected.shape:
            raise AssertionError(f"{kind}: shape {tuple(actual.shape)} instead of {tuple(expected.shape)}")
        if not expected.is_floating_point():
            self._record(kind, 0.0 if torch.equal(actual, expected) else float("inf"))
            return
        expected = expected.double()
        difference = actual.detach().double() - expected
        if kind == "gradients":
            size, scale = difference.norm(), expected.norm()
        else:
            size, scale = difference.abs().max(), expected.abs().max()
        if kind == "losses" and self.uses("CosineSimilarityLoss"):
            scale = scale + 1  # a mean of cosines: its terms are of size 1, its value may be near 0
        self._record(kind, float(size / scale.clamp(min=1e-12)))

    def compare_state(self, name: str, actual: torch.Tensor, expected: torch.Tensor) -> None:
        """Compares a tensor of the state, or the part of it that is recorded."""
        kind = "statistics" if "running_" in name else "features" if re.search("queue|bank", name) else "parameters"
        self.compare(kind, actual, expected)

    def compare_gradients(self, model: nn.Module, convert) -> None:
        """Compares the norm of every parameter's gradient, and the first values where they are recorded.

        `convert` renames a state dict; one original tensor may become several of ours (q, k and v).
        """
        fixed = {name for name, _ in model.named_buffers()}
        norms = self.sidecar.get("grad_norms") or {
            key.removesuffix(".norm"): float(value) for key, value in self.under("grad/").items() if ".norm" in key
        }
        for name, norm in norms.items():
            if norm is None or norm < SMALLEST_GRADIENT:
                continue
            indices = self._original_indices(name, convert)
            if fixed.issuperset(indices):  # a position table that is not trained
                continue
            gradient = _gradient(model, indices)
            self.compare("gradients", gradient.norm(), torch.tensor(norm))
            if f"grad/{name}.first16" in self:
                # relative to the whole gradient: its first values can be tiny
                error = (gradient[:16] - self[f"grad/{name}.first16"]).norm() / norm
                self._record("gradients", float(error))

    def compare_float64(self, loss: torch.Tensor, model: nn.Module, convert) -> None:
        """In double precision, compares the loss and the norms of the gradients that are recorded in float64."""
        if self.dtype != torch.float64:
            return
        exact = self.sidecar["float64"]
        self.compare("float64", loss, torch.tensor(exact["total"], dtype=torch.float64))
        for name, entry in exact["grads"].items():
            norm = _gradient(model, self._original_indices(name, convert)).norm()
            self.compare("float64", norm, torch.tensor(entry["norm64"], dtype=torch.float64))

    def _original_indices(self, name: str, convert) -> dict[str, torch.Tensor]:
        """Our tensors that an original one becomes, holding which of its values is where."""
        tensor = self[f"state/{name}"]
        return convert({name: torch.arange(tensor.numel()).view(tensor.shape)})

    def _record(self, kind: str, error: float) -> None:
        self.errors[kind] = max(self.errors[kind], error if error == error else float("inf"))


def _gradient(model: nn.Module, indices: dict[str, torch.Tensor]) -> torch.Tensor:
    """The gradient of an original tensor, flat and in its order."""
    parameters = dict(model.named_parameters())
    gradient = torch.cat([parameters[name].grad.flatten() for name in indices])
    return gradient[torch.cat([index.flatten() for index in indices.values()]).argsort()]
