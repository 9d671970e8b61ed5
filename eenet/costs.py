"""What an early exit costs: multiply-accumulate operations (MACs) of every stage, head and gate, from one counter.

The count is PyTorch's `FlopCounterMode`, halved: matrix products, convolutions and attention; elementwise work counts
as nothing. Products that it lacks are added here, those written as a multiplication included, and the fused kernels of
encoder layers and LSTMs, of which it knows nothing, are off while it counts.
"""

import math
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from inspect import unwrap
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from torch.utils.weak import WeakIdKeyDictionary


def _inner(left: Sequence[int], *others: Any, out_shape: Sequence[int], **kwargs: Any) -> int:
    """Each element of the output is an inner product over the left factor's last axis."""
    return 2 * math.prod(out_shape) * left[-1]


def _added(addend: Sequence[int], left: Sequence[int], *others: Any, out_shape: Sequence[int], **kwargs: Any) -> int:
    return _inner(left, out_shape=out_shape)


def _summed(addend: Sequence[int], left: Sequence[int], right: Sequence[int], *others: Any, **kwargs: Any) -> int:
    """Products of a batch, summed into one matrix."""
    return 2 * math.prod(left) * right[-1]


def _bilinear(first: Sequence[int], weight: Sequence[int], second: Sequence[int], *others: Any, **kwargs: Any) -> int:
    """`(rows, inner)` times `(outputs, inner, other)`, and that times `(rows, other)`."""
    outputs, inner, other = weight
    return 2 * first[0] * outputs * other * (inner + 1)


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *others: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


_aten = torch.ops.aten
_MISSING_FORMULAS = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_attention_math_for_mps: _attention,
    _aten._scaled_dot_product_fused_attention_overrideable: _attention,
    **dict.fromkeys((_aten.mv, _aten.dot, _aten.vdot, _aten._int_mm, _aten._grouped_mm), _inner),
    **dict.fromkeys((_aten.addmv, _aten._addmm_activation), _added),
    _aten.addbmm: _summed,
    _aten._trilinear: _bilinear,
}


_ELEMENTWISE = {
    _aten.cat,
    _aten.stack,
    _aten.index_put,
    _aten.index_copy,
    _aten.index_add,
    _aten.scatter,
    _aten.slice_scatter,
    _aten.select_scatter,
    _aten.grid_sampler_2d,
    _aten.grid_sampler_3d,
}
"""Operators that move or weigh values, though their result has another shape than their arguments together."""


class Counted(NamedTuple):
    """What a function costs.

    Attributes:
        macs: Multiply-accumulate operations.
        result: What it returned.
        unknown: Names of the operators that seem to multiply matrices and have no formula.
        weighs: Whether parameters with two axes or more took part.
    """

    macs: int
    result: Any
    unknown: tuple[str, ...]
    weighs: bool


def count_operators(function: Callable[..., Any], *args: Any) -> Counted:
    """Run a function, count its multiply-accumulate operations, and say what the counter does not know.

    Args:
        function: What to run; no gradient is kept.
        args: Its arguments.

    Example:
        >>> count_operators(torch.fft.fft, torch.zeros(2, 3))[2:]
        ((), False)
    """
    counter = _counter()
    witness = _Witness(counter.flop_registry)
    with torch.no_grad(), _plain_kernels(), witness, counter:
        result = function(*args)
    return Counted(
        counter.get_total_flops() // 2 + witness.products, result, tuple(sorted(witness.unknown)), witness.weighs
    )


@contextmanager
def running_macs() -> Iterator[Callable[[], int]]:
    """Count while it lasts; what it gives says how many MACs there have been.

    Example:
        >>> with running_macs() as so_far:
        ...     _ = torch.zeros(2, 3) @ torch.zeros(3, 5)
        ...     so_far()
        30
    """
    counter = _counter()
    with torch.no_grad(), _plain_kernels(), counter:
        yield lambda: counter.get_total_flops() // 2


try:
    from torch.utils.flop_counter import _FlopCounterMode
except ImportError:  # torch's own affair, which may move
    _Counter = FlopCounterMode
else:

    class _Mode(_FlopCounterMode):
        """torch's own, not kept from its compiler, which nobody calls here and whose import takes seconds."""

        __torch_dispatch__ = unwrap(_FlopCounterMode.__torch_dispatch__)

        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            return False

    class _Counter(FlopCounterMode):  # type: ignore[no-redef]
        """torch's own with that mode."""

        def __enter__(self) -> FlopCounterMode:
            self.flop_counts.clear()
            self.mod_tracker.__enter__()
            self.mode = _Mode(self)
            self.mode.__enter__()
            return self


def _counter() -> FlopCounterMode:
    counter = _Counter(display=False, custom_mapping=_MISSING_FORMULAS)
    # What tells modules apart dies of a view of a weight that trains; the total does without.
    counter.mod_tracker = nullcontext()  # type: ignore[assignment]
    counter.mod_tracker.parents = {"Global"}
    return counter


def count_macs(function: Callable[..., Any], *args: Any) -> tuple[int, Any]:
    """Run a function and count its multiply-accumulate operations.

    Args:
        function: What to run; no gradient is kept.
        args: Its arguments.

    Returns:
        The MACs and what the function returned.

    Example:
        >>> count_macs(torch.nn.Linear(3, 5), torch.zeros(2, 3))[0]
        30
    """
    return count_operators(function, *args)[:2]


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Encoder layers, attention modules and LSTMs as the matrix products that they are."""
    mha = torch.backends.mha
    libraries: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn)
    fast, before = mha.get_fastpath_enabled(), [library.enabled for library in libraries]
    try:
        mha.set_fastpath_enabled(False)
        for library in libraries:
            library.enabled = False
        yield
    finally:
        mha.set_fastpath_enabled(fast)
        for library, enabled in zip(libraries, before, strict=True):
            library.enabled = enabled


class _Witness(TorchDispatchMode):
    """Sees the operators that a counter inside it runs, none of which can be taken apart.

    It counts the products of values with weights that are written as multiplications, as many as are summed afterwards.
    """

    supports_higher_order_operators = True

    def __init__(self, formulas: Container[Any]) -> None:
        super().__init__()
        self.formulas, self.unknown, self.weighs = formulas, set[str](), False
        self.products, self._weights = 0, set[int]()
        self._weighed = WeakIdKeyDictionary()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        operator = getattr(func, "_overloadpacket", func)
        factors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim > 1]
        self.weighs |= any(isinstance(factor, nn.Parameter) for factor in factors)
        if operator not in self.formulas and operator not in _ELEMENTWISE and _multiplies(func, factors, result):
            self.unknown.add(str(operator))
        self._multiply(operator, args, result)
        return result

    def _multiply(self, operator: Any, args: Any, result: Any) -> None:
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        self._weights |= {_memory(tensor) for tensor in tensors if isinstance(tensor, nn.Parameter)}
        if operator in (_aten.sum, _aten.mean) and self._weighed.pop(tensors[0], False):
            self.products += tensors[0].numel()
        elif operator == _aten.mul and any(_memory(tensor) in self._weights for tensor in tensors):
            self._weighed[result] = True


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _multiplies(func: Any, factors: Sequence[Tensor], result: Any) -> bool:
    """Whether an operator may be a matrix product: not PyTorch's own, or of two factors and not elementwise."""
    factors = [factor for factor in factors if factor.dtype not in (torch.bool, torch.int32, torch.int64)]
    if not factors or getattr(func, "namespace", "") != "aten":
        return bool(factors)
    if len(factors) < 2 or torch.Tag.pointwise in func.tags:
        return False
    try:
        elementwise = np.broadcast_shapes(*(factor.shape for factor in factors))
    except ValueError:
        return True
    results = [leaf.shape for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
    return bool(results) and results[0] != elementwise
