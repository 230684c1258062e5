"""Parameters spread over processes (FSDP2): gathered for what reads them, spread again for what was read.

A checkpoint holds whole tensors, whoever wrote it.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from clipx.errors import ClipxError


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether this accelerator spreads the parameters of what it prepares.

    Raises:
        ClipxError: in a way that checkpoints cannot be read from.
    """
    kind = accelerator.distributed_type
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ClipxError(
            f"training with {kind.value} cannot be resumed exactly, and is not supported",
            hint="distributed_type: FSDP with fsdp_version: 2 spreads what DeepSpeed does",
        )
    if kind == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise ClipxError(
            "the first version of FSDP is not supported",
            hint="fsdp_version: 2 in fsdp_config",
        )
    return kind == DistributedType.FSDP


def keep_scalars(accelerator: Accelerator, module: nn.Module, optimizer: Optimizer) -> None:
    """Leave parameters without a dimension, the logit scale and bias, whole in every process.

    FSDP2 cannot spread them. Their gradients are averaged as they arise, and the optimizer steps them in
    groups of their own: its fused steps take parameters of one kind.

    Args:
        accelerator: that will prepare the module.
        module: to train.
        optimizer: over its parameters, before its first step.
    """
    scalars = [parameter for parameter in module.parameters() if parameter.ndim == 0]
    plugin = accelerator.state.fsdp_plugin
    ignored = plugin.ignored_modules or []
    if isinstance(ignored, str):
        import re

        ignored = [each for name, each in module.named_modules() if re.fullmatch(ignored, name)]
    plugin.cpu_ram_efficient_loading = False  # every process has its weights by now
    plugin.ignored_modules = [*ignored, nn.ParameterList(scalars)]
    for parameter in scalars:
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_averaged)
    alone = set(scalars)
    for group in list(optimizer.param_groups):
        apart = [parameter for parameter in group["params"] if parameter in alone]
        group["params"] = [parameter for parameter in group["params"] if parameter not in alone]
        if apart:
            optimizer.add_param_group({**group, "params": apart})
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]


def whole(value: Any, here: bool = True) -> Any:
    """A value with every spread tensor in it gathered, one after another, on the CPU; collective.

    Args:
        value: a tensor, or mappings and lists of them and of other things.
        here: False in a process that only takes part and needs nothing of it.
    """
    if isinstance(value, DTensor):
        gathered = value.full_tensor()
        return gathered.cpu() if here else gathered.new_empty(0)
    if isinstance(value, Mapping):
        return {key: whole(each, here) for key, each in value.items()}
    if isinstance(value, list):
        return [whole(each, here) for each in value]
    return value


def copy_whole(module: nn.Module, plain: nn.Module) -> None:
    """Copy parameters and buffers, spread or not, into a module of the kind that is whole; collective."""
    into = plain.state_dict()
    with torch.no_grad():
        for name, value in module.state_dict().items():
            into[name].copy_(value.full_tensor() if isinstance(value, DTensor) else value)


def all_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether no tensor holds a NaN or infinity, in any process; collective where they are spread."""
    parts = [value.to_local() if isinstance(value, DTensor) else value for value in tensors.values()]
    finite = all(bool(torch.isfinite(part).all()) for part in parts)
    if any(isinstance(value, DTensor) for value in tensors.values()):
        common = torch.tensor(int(finite), device=parts[0].device)
        dist.all_reduce(common, op=dist.ReduceOp.MIN)
        finite = bool(common)
    return finite


def load_whole(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put whole tensors into a module, of which each process keeps its part; collective.

    Raises:
        RuntimeError: names or shapes are not those of the module.
    """
    current = module.state_dict()
    module.load_state_dict({name: _like(value, current.get(name)) for name, value in tensors.items()})


def load_whole_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Put the whole state of an optimizer into one whose parameters are spread; collective.

    Raises:
        ValueError: it is of other parameter groups.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    known = sum(len(group["params"]) for group in state["param_groups"])
    if known != len(parameters):
        raise ValueError(f"optimizer state of {known} parameters, not of {len(parameters)}")
    spread = {
        index: {
            name: _like(value, parameters[int(index)]) if torch.is_tensor(value) and value.ndim else value
            for name, value in slots.items()
        }
        for index, slots in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": spread})


def _like(value: Tensor, other: Tensor | None) -> Tensor:
    """A tensor spread as another one of its shape is."""
    if not isinstance(other, DTensor) or isinstance(value, DTensor):
        return value
    if value.shape != other.shape:
        raise RuntimeError(f"a tensor of shape {tuple(value.shape)}, not {tuple(other.shape)}")
    return distribute_tensor(value.to(other.device), other.device_mesh, other.placements)


def _averaged(parameter: Tensor) -> None:
    assert parameter.grad is not None
    dist.all_reduce(parameter.grad)
    parameter.grad /= dist.get_world_size()
