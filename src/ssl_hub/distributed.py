"""What the algorithms need across processes: every function does nothing to the result on one process.

Gradients: each process back-propagates its own loss and DistributedDataParallel averages over the processes. With the
functions here, N processes get the gradients that one process gets with the whole batch. The processes' batches must be
of the same size.
"""

import torch
import torch.distributed as dist
from torch import nn


def num_processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_index() -> int:
    return dist.get_rank() if num_processes() > 1 else 0


@torch.no_grad()
def gather(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenates the tensors of all processes along the first dimension, in their order, without a gradient."""
    if num_processes() == 1:
        return tensor.detach()
    tensor = tensor.contiguous()
    parts = [torch.empty_like(tensor) for _ in range(num_processes())]
    dist.all_gather(parts, tensor)
    return torch.cat(parts)


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor):
        return gather(tensor)

    @staticmethod
    def backward(ctx, gradient):
        # Every process's loss depends on these rows, so theirs is the sum of what all processes say.
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(num_processes())[process_index()]


def gather_with_gradient(tensor: torch.Tensor) -> torch.Tensor:
    """Like `gather`, and back-propagates into the rows of every process."""
    return tensor if num_processes() == 1 else _GatherWithGradient.apply(tensor)


class _SumWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor):
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        return tensor

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


def sum_with_gradient(tensor: torch.Tensor) -> torch.Tensor:
    """Adds up the tensors of all processes, and back-propagates into every process's."""
    return tensor if num_processes() == 1 else _SumWithGradient.apply(tensor)


@torch.no_grad()
def broadcast_(tensor: torch.Tensor) -> torch.Tensor:
    """Makes a tensor what it is on the first process, in place."""
    if num_processes() > 1:
        dist.broadcast(tensor, src=0)
    return tensor


@torch.no_grad()
def sum_(tensor: torch.Tensor) -> torch.Tensor:
    """Adds up the tensors of all processes in place, without a gradient."""
    if num_processes() > 1:
        dist.all_reduce(tensor)
    return tensor


@torch.no_grad()
def shuffle_batch(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Deals the samples of all processes anew, so that BatchNorm statistics cannot give a positive pair away.

    From MoCo (arXiv 1911.05722).

    Returns:
        This process's new samples, and the permutation that `unshuffle_batch` undoes.
    """
    everything = gather(batch)
    order = torch.randperm(len(everything), device=batch.device)
    broadcast_(order)
    return everything[order.chunk(num_processes())[process_index()]], order


@torch.no_grad()
def unshuffle_batch(batch: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Gives every process the rows that belong to the samples it had before `shuffle_batch`."""
    return gather(batch)[order.argsort().chunk(num_processes())[process_index()]]


class _SyncBatchNormOnCPU(nn.modules.batchnorm._BatchNorm):
    """`torch.nn.SyncBatchNorm`, which refuses the CPU, in plain operations."""

    def _check_input_dim(self, input):
        pass

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training or num_processes() == 1:
            return super().forward(input)
        dims = [0, *range(2, input.ndim)]
        shape = [1, -1] + [1] * (input.ndim - 2)
        count = input.numel() // input.shape[1] * num_processes()
        mean = sum_with_gradient(input.sum(dims)) / count
        centred = input - mean.view(shape)
        var = sum_with_gradient(centred.square().sum(dims)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1), self.momentum)
        output = centred * torch.rsqrt(var + self.eps).view(shape)
        return output * self.weight.view(shape) + self.bias.view(shape) if self.affine else output


class _SyncBatchNormActOnCPU(_SyncBatchNormOnCPU):
    """The same for timm's `BatchNormAct2d`, which has dropout and activation inside."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(input)))


def synchronize_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    """Makes every BatchNorm of a model use the statistics of all processes; parameters and buffers stay.

    Raises:
        ValueError: the model has a kind of BatchNorm that computes something else besides, which would be lost.
    """
    from timm.layers import BatchNormAct2d, convert_sync_batchnorm  # timm takes a while to import

    done = (_SyncBatchNormOnCPU, nn.SyncBatchNorm)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    if any(isinstance(layer, done) for layer in layers.values()):
        return model
    known = {cls.forward for cls in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)}
    for name, layer in layers.items():
        if type(layer).forward not in known:
            raise ValueError(
                f"{name} is a {type(layer).__name__}, a BatchNorm with a forward of its own, which cannot be "
                "synchronised over processes: train on one process, or set sync_batchnorm = False on the model"
            )
    if device.type != "cpu":
        return convert_sync_batchnorm(model)
    for layer in layers.values():
        layer.__class__ = _SyncBatchNormActOnCPU if isinstance(layer, BatchNormAct2d) else _SyncBatchNormOnCPU
    return model


@torch.no_grad()
def average_batchnorm_statistics(model: nn.Module) -> None:
    """Makes the running statistics of every BatchNorm the means over the processes.

    For BatchNorm that is not synchronised, whose statistics are of the images of one process.
    """
    if num_processes() == 1:
        return
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    statistics = [s for layer in layers for s in (layer.running_mean, layer.running_var) if s is not None]
    if statistics:
        flat = torch.cat([each.float() for each in statistics])
        # Not a reduction, whose order of adding up may be another one on every process.
        means = gather(flat[None]).mean(dim=0).split([len(each) for each in statistics])
        for each, mean in zip(statistics, means, strict=True):
            each.copy_(mean)


def check_batch_for_batchnorm(model: nn.Module, batch: torch.Tensor) -> None:
    """A clear error where BatchNorm would normalise a single sample to zero, or refuse it without saying why."""
    if model.training and len(batch) * num_processes() == 1:
        name = next((n for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)), None)
        if name is not None:
            raise ValueError(
                f"BatchNorm ({name}) needs at least two samples a training batch, got one: make the batch larger, or "
                "put the model in eval mode"
            )
