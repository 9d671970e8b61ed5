"""Steps as machine code: each traced graph is compiled before the first call, and a call checks and looks up nothing.

What a call costs decides whether an exit pays for a batch of one. `torch.compile` asks at each call whether its graphs
still hold, which takes as long as a small stage; compilation ahead of time (AOTInductor) asks nothing.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from eenet.backbones.base import to_device
from eenet.errors import UserError, some
from eenet.files import whole
from eenet.policies.base import Policy
from eenet.progress import tracked
from eenet.routing.steps import Result, Step, place_steps, split_results
from eenet.runtime.codes import code_of
from eenet.runtime.trace import Traced, shortened, trace, trace_function
from eenet.tokens import with_usual

if TYPE_CHECKING:
    from eenet.network import EarlyExitNetwork

EXAMPLE_ROWS = 4
"""Rows of the batch that is traced; the compiler tunes for it what does not depend on the batch."""


class MachineCode(NamedTuple):
    """A compiled graph.

    Attributes:
        run: From flat tensors to flat tensors; it trusts shapes, dtypes and layouts.
        reads: Weights and thresholds that it reads, kept alive here.
    """

    run: Callable[[list[Tensor]], list[Tensor]]
    reads: list[Tensor]


def compile_steps(network: EarlyExitNetwork, policy: Policy) -> list[Step]:
    """The steps of a network as machine code for batches of any size, one per place that the policy reaches.

    They compute under the autocast, and with the number of threads, under which they are compiled, and read the weights
    of the network where they lie then.

    Args:
        network: In evaluation mode.
        policy: Decides who leaves.

    Raises:
        UserError: A step cannot be traced, or there is no compiler.
    """
    example = example_batch(network)
    traced = dict(trace(network, policy, example))
    steps: dict[int, Step] = {}
    for place, step in tracked(traced.items(), "compiling the steps", len(traced)):
        exit, _ = network.tree.places[place]
        steps[place] = _step(compile_traced(step), exit == network.num_exits - 1)
    start = network.tree.place_of[policy.first_node]
    first, check = steps[start], input_check(example, traced[start])
    return place_steps(network.tree, {**steps, start: lambda inputs: first(check(inputs))})


def compile_function(
    name: str, network: EarlyExitNetwork, function: Callable[[Any], Tensor]
) -> Callable[[Any], Tensor]:
    """A function from inputs to logits as machine code, such as the plain backbone.

    Args:
        name: What it computes, for messages.
        network: Whose weights it reads, in evaluation mode.
        function: From a batch to a tensor.

    Raises:
        UserError: As `compile_steps`.
    """
    example = example_batch(network)
    with torch.no_grad():
        traced = trace_function(
            name, network, None, lambda inputs: (function(inputs),), example, shortened(network, example)
        )
    code, check = compile_traced(traced), input_check(example, traced)
    return lambda inputs: code.run(check(inputs))[0]


def example_batch(network: EarlyExitNetwork) -> Any:
    """Inputs to trace on, where the network's weights are and in their dtype."""
    return pytree.tree_map(
        lambda row: row.repeat(EXAMPLE_ROWS, *[1] * (row.ndim - 1)),
        to_device(network.backbone.example_input(), network),
    )


def compile_traced(traced: Traced) -> MachineCode:
    """Machine code of a graph; the weights stay where they are.

    Raises:
        UserError: There is no compiler, or it fails.
    """
    try:
        code = code_of(traced)
        package = code_folder() / f"{code.key(traced)}.pt2"
        compiled = _kept(package)
        if compiled is None:
            _compile(code.program(traced), set(code.named()), package)
            compiled = torch._inductor.aoti_load_package(str(package))
        compiled.load_constants(code.named(), check_full_update=True, user_managed=True)
    except Exception as error:  # the compiler's errors have no common class
        said = str(error).strip().partition("\n")[0]
        problem = f"the step to {traced.name} cannot be compiled ({type(error).__name__}: {said}); see `eenet doctor`"
        raise UserError("compile", True, problem) from error
    return MachineCode(compiled.loader.run, code.reads)


def code_folder() -> Path:
    """Where machine code is kept by its content, in the user's own cache; it never comes with a run or an export."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eenet" / "code"


def _kept(package: Path) -> Any:
    """What was compiled before, `None` where that is not there or damaged."""
    with suppress(RuntimeError):
        return torch._inductor.aoti_load_package(str(package)) if package.exists() else None


def _compile(program: ExportedProgram, reads: set[str], package: Path) -> None:
    options = {
        "aot_inductor.package_constants_in_so": False,
        "always_keep_tensor_constants": True,  # small ones would be written into the code
        "joint_graph_constant_folding": False,  # and so would those of one value
    }
    package.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="eenet-") as folder, whole(package) as beside:
        made = torch._inductor.aoti_compile_and_package(
            program, package_path=str(Path(folder, "code.pt2")), inductor_configs=options
        )
        if missing := reads - set(torch._inductor.aoti_load_package(made).get_constant_fqns()):
            raise RuntimeError(f"the values of {some(sorted(missing))} are written into the code")
        shutil.copyfile(made, beside)


def input_check(example: Any, traced: Traced) -> Callable[[Any], list[Tensor]]:
    """What takes a batch and gives its tensors in the order of the graph, each in one piece of memory.

    Raises:
        UserError: When called: the batch is not like the example.
    """
    names = [None] if isinstance(example, Tensor) else list(example)
    wanted = [
        (*(None if axis in free else size for axis, size in enumerate(tensor.shape)), tensor.dtype, tensor.device.type)
        for tensor, free in zip(traced.tensors, traced.dynamic, strict=True)
    ]

    def fits(tensor: Tensor | None, kind: tuple[Any, ...]) -> bool:
        if tensor is None:
            return False
        found = (*tensor.shape, tensor.dtype, tensor.device.type)
        return len(found) == len(kind) and all(one in (None, other) for one, other in zip(kind, found, strict=True))

    def check(inputs: Any) -> list[Tensor]:
        given: Any = {None: inputs} if isinstance(inputs, Tensor) else with_usual(inputs)
        tensors = [given.get(name) for name in names]
        if len(tensors) != len(names) or not all(map(fits, tensors, wanted)):
            found = [
                tensor if tensor is None else (*tensor.shape, tensor.dtype, tensor.device.type) for tensor in tensors
            ]
            raise UserError("inputs", found, f"the steps were compiled for {wanted}, where None is any length")
        return [tensor.contiguous() for tensor in tensors]

    return check


def _step(code: MachineCode, last: bool) -> Step:
    def step(given: Sequence[Tensor]) -> Result:
        return split_results(code.run([tensor.contiguous() for tensor in given]), last)

    return step
