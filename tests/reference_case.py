"""One case of reference numbers: see run_reference.py."""

import json
from collections import defaultdict
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

# The exact gradient of a bias in front of a normalisation is 0; what is recorded there is rounding.
SMALLEST_GRADIENT = 1e-5


class Case:
    """One case, and the worst relative error seen of each kind."""

    def __init__(self, path: Path):
        self.sidecar = json.loads(path.with_suffix(".json").read_text())
        self.tensors = load_file(path)
        self.config = self.sidecar.get("mmselfsup_config", {})
        self.errors: dict[str, float] = defaultdict(float)

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.tensors[key]

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    def under(self, prefix: str) -> dict[str, torch.Tensor]:
        return {key[len(prefix) :]: tensor for key, tensor in self.tensors.items() if key.startswith(prefix)}

    def compare(self, kind: str, actual: torch.Tensor, expected: torch.Tensor) -> None:
        """Records the largest difference, relative to the largest expected value."""
        if actual.shape != expected.shape:
            raise AssertionError(f"{kind}: shape {tuple(actual.shape)} instead of {tuple(expected.shape)}")
        difference = (actual.detach().double() - expected.double()).abs().max()
        error = float(difference / expected.double().abs().max().clamp(min=1e-12))
        self.errors[kind] = max(self.errors[kind], error if error == error else float("inf"))

    def compare_gradients(self, model: nn.Module, convert) -> None:
        """Compares the norm of every parameter's gradient, and the first values where they are recorded.

        `convert` renames a state dict; one original tensor may become several of ours (q, k and v).
        """
        parameters = dict(model.named_parameters())
        state = self.under("state/")
        fixed = {name for name, _ in model.named_buffers()}
        norms = self.sidecar.get("grad_norms") or {
            key.removesuffix(".norm"): float(value)
            for key, value in self.under("grad/").items()
            if key.endswith(".norm")
        }
        for name, norm in norms.items():
            if norm is None or norm < SMALLEST_GRADIENT:
                continue
            keys = convert({name: state[name]})
            if fixed.issuperset(keys):  # a position table that is not trained
                continue
            gradient = torch.cat([parameters[key].grad.flatten() for key in keys])
            self.compare("gradients", gradient.norm(), torch.tensor(norm))
            if f"grad/{name}.first16" in self:
                # relative to the whole gradient: its first values can be tiny
                error = (gradient[:16] - self[f"grad/{name}.first16"]).norm() / norm
                self.errors["gradients"] = max(self.errors["gradients"], float(error))
