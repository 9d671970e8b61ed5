"""A device that is not there: tensors that say they are on it, and keep their numbers on the CPU.

`FakeTensorMode` knows where tensors are but not what is in them, so that whatever depends on that (who leaves,
`nonzero`, `item`) stops there. These tensors have both, and their operators refuse what a GPU's refuse: tensors of two
devices, a generator of another device, NumPy, and, where asked, float64.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CUDA = torch.device("cuda", 0)
TRAINING = torch.device("meta")
"""Where gradients are computed: autograd asks the driver of CUDA for streams, and nobody for those of `meta`."""

aten = torch.ops.aten
COPIES = (aten._to_copy, aten.copy_, aten._foreach_copy_)
INDEXED = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)
FILLED = (aten.fill, aten.fill_, aten.masked_fill, aten.masked_fill_, aten.where)
MADE = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)


class MixedDevices(RuntimeError):
    """Tensors of two devices met in an operator."""


class Elsewhere(Tensor):
    """A tensor that says it is on a device; `values` are its numbers, on the CPU."""

    values: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: Tensor, device: torch.device) -> "Elsewhere":
        layout = values.shape, values.stride(), values.storage_offset()
        made: Any = torch.Tensor._make_wrapper_subclass(cls, *layout, dtype=values.dtype, device=device)
        made.values = values
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{self.values!r} on {self.device}"

    def tolist(self) -> Any:
        """As of any tensor; torch's own refuses classes made of it."""
        return self.values.tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Saved as its values, as a tensor is saved that its reader has on the CPU."""
        return self.values.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied: Any = self.detach().clone().requires_grad_(self.requires_grad)
        if getattr(self, "_is_param", False):
            copied._is_param = True
        memo[id(self)] = copied
        return copied

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} of a tensor of {Machine.__name__} that was left")


class Machine(TorchDispatchMode):
    """While it is entered there is a device, `CUDA` or `TRAINING`.

    Args:
        doubles: Whether it has float64, as a GPU has and Apple's does not.
    """

    # The place of FakeTensorMode: torch then looks for no driver.
    _mode_key = torch._C._TorchDispatchModeKey.FAKE

    def __init__(self, doubles: bool = True) -> None:
        super().__init__()
        self.doubles, self.refused = doubles, list[MixedDevices]()

    def __enter__(self) -> "Machine":
        torch._C._ensureCUDADeviceGuardSet()
        self._before = (
            torch._C._only_lift_cpu_tensors(),
            torch.__future__.get_overwrite_module_params_on_conversion(),
            torch.backends.cudnn.enabled,
        )
        _set(True, True, False)
        self._maker = _Maker().__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._maker.__exit__(*error)
        _set(*self._before)
        if error[0] is None and self.refused:
            raise self.refused[0]  # somebody caught it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, facts = dict(kwargs or {}), facts_of(func)
        try:
            device = find_device(func, facts, args, kwargs)
        except MixedDevices as error:
            self.refused.append(error)
            raise
        written = [args[place] if place < len(args) else kwargs[name] for place, name in facts.written]
        if kwargs.get("device") is not None:
            device, kwargs["device"] = torch.device(kwargs["device"]), torch.device("cpu")
        if "pin_memory" in kwargs:
            kwargs["pin_memory"] = False
        results = func(*_each(args, values_of), **{name: _each(value, values_of) for name, value in kwargs.items()})
        if written:
            return written[0] if len(written) == 1 else tuple(written)
        return results if device.type == "cpu" else _each(results, lambda rows: self._put(rows, device))

    def _put(self, values: Tensor, device: torch.device) -> Tensor:
        if values.dtype is torch.float64 and not self.doubles:
            raise TypeError("the device has no float64")
        return Elsewhere(values, CUDA if device.type == "cuda" else device)


class _Maker(TorchFunctionMode):
    """Makes tensors of given numbers, of which torch keeps but the shape on `meta`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            rows, places, *value = args
            every = places if isinstance(places, tuple) else (places,)
            every = tuple(torch.tensor(place) if isinstance(place, list) else place for place in every)
            return func(rows, every, *value)
        if func not in MADE:
            return func(*args, **kwargs)
        if func is Tensor.new_tensor:
            own, *args = args
            kwargs = {"dtype": own.dtype, "device": own.device, **kwargs}
            func = torch.tensor
        device = kwargs.pop("device", None)
        made = func(*args, **kwargs)
        return made if device is None else made.to(device)


def _set(lifting: bool, overwriting: bool, cudnn: bool) -> None:
    """Whether new tensors are made on the CPU and moved, modules that move get new parameters, and cuDNN is used."""
    torch._C._set_only_lift_cpu_tensors(lifting)
    torch.__future__.set_overwrite_module_params_on_conversion(overwriting)
    torch.backends.cudnn.enabled = cudnn


def _each(tree: Any, change: Any) -> Any:
    """Change every tensor of an operator's arguments or results."""
    if isinstance(tree, Tensor):
        return change(tree)
    return type(tree)(_each(part, change) for part in tree) if type(tree) in (list, tuple) else tree


def values_of(rows: Tensor) -> Tensor:
    """A tensor's numbers, on the CPU."""
    return rows.values if isinstance(rows, Elsewhere) else rows


class Facts(NamedTuple):
    """What is known of an operator.

    Attributes:
        copies: Its tensors may be on two devices.
        indexed: Its second argument are places in the first.
        numbers: It takes a number of the CPU, in a tensor of no dimensions, among others.
        written: Place and name of the arguments that it writes to and returns.
    """

    copies: bool
    indexed: bool
    numbers: bool
    written: list[tuple[int, str]]


@cache
def facts_of(func: Any) -> Facts:
    """Those of an operator."""
    packet, schema = func.overloadpacket, func._schema
    numbers = torch.Tag.pointwise in func.tags or packet in (*INDEXED, *FILLED)
    returned = any(value.alias_info is not None and value.alias_info.is_write for value in schema.returns)
    written = [
        (place, argument.name)
        for place, argument in enumerate(schema.arguments)
        if returned and argument.alias_info is not None and argument.alias_info.is_write
    ]
    return Facts(packet in COPIES, packet in INDEXED, numbers, written)


def find_device(func: Any, facts: Facts, args: Any, kwargs: dict[str, Any]) -> torch.device:
    """Where an operator runs.

    Raises:
        MixedDevices: Its tensors, or its generator, are on two devices.
    """
    tensors = _tensors((*args, *kwargs.values()))
    places = _tensors(args[1]) if facts.indexed else []
    device = tensors[0].device if tensors else torch.device(kwargs.get("device") or "cpu")
    if tensors and not facts.copies:
        if any(place.device not in (device, torch.device("cpu")) for place in places):
            raise MixedDevices(f"{func}: places of another device in a tensor of {device}")
        if facts.indexed:
            tensors = [tensors[0], *args[2:3]]
        written = [args[place] for place, _ in facts.written if place < len(args)]
        devices = {
            rows.device
            for rows in tensors
            if rows.dim() or rows.device.type != "cpu" or not facts.numbers or any(rows is one for one in written)
        }
        if len(devices) > 1:
            raise MixedDevices(f"{func}: tensors of {' and '.join(sorted(map(str, devices)))}")
        device = devices.pop() if devices else torch.device("cpu")
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type != device.type:
        raise MixedDevices(f"{func}: a generator of {generator.device} for a tensor of {device}")
    return device


def _tensors(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    return [rows for part in tree for rows in _tensors(part)] if isinstance(tree, list | tuple) else []
