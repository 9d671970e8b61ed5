"""Which layers of a backbone's stages can be quantized, what they cost, and a backbone with other layers in place."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from eenet.backbones import StagedBackbone
from eenet.costs import count_macs
from eenet.profile import bitops
from eenet.quantization.layers import quantizable

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class StageLayers:
    """The layers of one stage, counted on the float model.

    Attributes:
        layers: Names in the backbone of the layers that can be quantized.
        float_layers: Names of the other layers that have weights.
        macs: MACs per sample of the quantizable layers.
        float_macs: MACs per sample of everything else: other layers, and products without a layer, as in attention.
    """

    layers: tuple[str, ...]
    float_layers: tuple[str, ...]
    macs: int
    float_macs: int

    def bitops(self, width: int) -> int:
        """BitOPs per sample where the quantizable layers run at a width.

        Example:
            >>> StageLayers((), (), 100, 1).bitops(8)
            7424
        """
        return bitops(self.macs, width, width) + bitops(self.float_macs)


def stage_layers(backbone: StagedBackbone) -> list[StageLayers]:
    """The layers that each stage really calls, found by running one example input.

    Args:
        backbone: The float backbone.
    """
    names = {module: name for name, module in backbone.named_modules() if own_weights(module)}
    device = next(backbone.parameters()).device
    found = []
    with torch.no_grad(), evaluation(backbone):
        state = backbone.embed(pytree.tree_map(lambda rows: rows.to(device), backbone.example_input()))
        for stage in range(backbone.num_stages):
            inputs: dict[nn.Module, Tensor] = {}
            with called(names, inputs):
                total, state = count_macs(backbone.run_stage, stage, state)
            macs = sum(count_macs(module, inputs[module])[0] for module in inputs if quantizable(module))
            layers = tuple(names[module] for module in inputs if quantizable(module))
            others = tuple(names[module] for module in inputs if not quantizable(module))
            found.append(StageLayers(layers, others, macs, total - macs))
    return found


def own_weights(module: nn.Module) -> bool:
    """Whether a module has weights itself, not only in its children."""
    return next(module.parameters(recurse=False), None) is not None


@contextmanager
def called(modules: Sequence[nn.Module] | Mapping[nn.Module, Any], inputs: dict[nn.Module, Tensor]) -> Iterator[None]:
    """Note the last input of each module that is called meanwhile."""

    def note(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        inputs[module] = arguments[0]

    hooks = [module.register_forward_pre_hook(note) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def evaluation(module: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every part is in its mode again."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def replace_layers(module: Module, layers: Mapping[str, nn.Module], prefix: str = "") -> Module:
    """A twin of a module with other layers in place of some; everything else is shared, no weight is copied.

    Args:
        module: In evaluation mode, as the twin will be.
        layers: New layers by the name of the old ones.
        prefix: Name of the module itself with a dot behind.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU()).eval()
        >>> twin = replace_layers(net, {"0": nn.Identity()})
        >>> type(twin[0]).__name__, type(net[0]).__name__, twin[1] is net[1]
        ('Identity', 'Linear', True)
    """
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    twin.training = False
    for name, child in module._modules.items():
        path = prefix + name
        if path in layers:
            twin._modules[name] = layers[path]
        elif child is not None and any(key.startswith(f"{path}.") for key in layers):
            twin._modules[name] = replace_layers(child, layers, f"{path}.")
    return twin
