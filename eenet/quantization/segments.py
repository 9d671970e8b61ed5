"""Which layers of a backbone's stages can be quantized, what they cost, and a backbone with other layers in place."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from eenet.backbones import StagedBackbone
from eenet.costs import count_macs
from eenet.profile import bitops
from eenet.quantization.grid import activation_width
from eenet.quantization.layers import quantizable
from eenet.quantization.products import Split, split_macs
from eenet.tree import FLOAT

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class StageLayers:
    """The layers of one stage, counted on the float model.

    Attributes:
        layers: Names in the backbone of the layers that can be quantized.
        float_layers: Names of the other layers that have weights.
        layer_macs: MACs per sample of each of `layers`.
        attention_macs: MACs per sample of attention's two products.
        float_macs: MACs per sample of everything else, which is billed at 32 bits.
    """

    layers: tuple[str, ...]
    float_layers: tuple[str, ...]
    layer_macs: tuple[int, ...]
    attention_macs: int
    float_macs: int

    @property
    def macs(self) -> int:
        """MACs per sample of the quantizable layers."""
        return sum(self.layer_macs)

    def bitops(self, width: int, rest_width: int = FLOAT, wider: Mapping[str, int] = MappingProxyType({})) -> int:
        """BitOPs per sample where the quantizable layers run at a width; all at 32 bits where that is 32.

        Args:
            width: Of the layers.
            rest_width: Of attention's products.
            wider: Least width of some layers by name.

        Example:
            >>> StageLayers((), (), (), 10, 1).bitops(8, 4), StageLayers(("a",), (), (100,), 0, 0).bitops(3)
            (1184, 1200)
        """
        if width == FLOAT:
            return bitops(self.macs + self.attention_macs + self.float_macs)
        own = [max(width, wider.get(name, 0)) for name in self.layers]
        layers = sum(
            bitops(macs, bits, activation_width(bits)) for macs, bits in zip(self.layer_macs, own, strict=True)
        )
        return layers + bitops(self.attention_macs, rest_width, rest_width) + bitops(self.float_macs)


class Parts(NamedTuple):
    """What a backbone is made of.

    Attributes:
        embed: MACs before the first stage.
        stages: Each stage.
        classifier: MACs of its own head.
    """

    embed: Split
    stages: list[StageLayers]
    classifier: Split


def stage_layers(backbone: StagedBackbone) -> list[StageLayers]:
    """The layers that each stage of a float backbone calls on one example input; each call counts."""
    return count_parts(backbone).stages


def count_parts(backbone: StagedBackbone) -> Parts:
    """Which products each part of a float backbone has, found by running one example input."""
    names = {module: name for name, module in backbone.named_modules() if own_weights(module)}
    stages, weight = [], next(backbone.parameters())
    with torch.no_grad(), evaluation(backbone):
        inputs = pytree.tree_map(
            lambda rows: rows.to(weight if rows.is_floating_point() else weight.device), backbone.example_input()
        )
        embed = split_macs(backbone.embed, inputs)
        state = embed.result
        for stage in range(backbone.num_stages):
            seen: dict[nn.Module, list[Tensor]] = {}
            with calls(names, lambda module, values, output: seen.setdefault(module, []).append(values)):  # noqa: B023
                split = split_macs(backbone.run_stage, stage, state, layers=False)
            state = split.result
            seen = {module: given[: len(given) // 2] for module, given in seen.items()}  # it was run twice
            own = {
                names[module]: sum(count_macs(module, values)[0] for values in given)
                for module, given in seen.items()
                if quantizable(module)
            }
            others = tuple(names[module] for module in seen if not quantizable(module))
            rest = split.rest - sum(own.values())
            stages.append(StageLayers(tuple(own), others, tuple(own.values()), split.quantized, rest))
        classifier = split_macs(backbone.classify, state)
    return Parts(embed._replace(result=None), stages, classifier._replace(result=None))


def own_weights(module: nn.Module) -> bool:
    """Whether a module has weights itself, not only in its children."""
    return next(module.parameters(recurse=False), None) is not None


@contextmanager
def calls(modules: Iterable[nn.Module], look: Callable[[nn.Module, Tensor, Any], None]) -> Iterator[None]:
    """Look at each call of some modules meanwhile: the module, its first argument, and what it returned."""

    def hook(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        look(module, given[0] if given else next(iter(named.values())), output)

    hooks = [module.register_forward_hook(hook, with_kwargs=True) for module in modules]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


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
