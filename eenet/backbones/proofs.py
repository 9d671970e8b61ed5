"""Proofs that a backbone in stages is the model that it was cut from, and that its samples do not see each other.

They hold for any `StagedBackbone`, whoever wrote it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from eenet.backbones.base import StagedBackbone, State, select, to_device
from eenet.errors import UserError
from eenet.tokens import TYPES

TOLERANCE = 1e-4
"""Largest difference relative to the largest value."""

ROWS = 4


def prove(backbone: StagedBackbone, inputs: Any, original: Callable[[Any, Any], Tensor] | None = None) -> None:
    """Refuse a backbone whose stages are not its model, or whose samples depend on each other.

    A copy with disturbed weights is run: a part that starts at zero would hide that it was left out.

    Args:
        backbone: The backbone.
        inputs: `ROWS` samples that differ.
        original: The whole model of a backbone, from the backbone and inputs to logits, where it is known.

    Raises:
        UserError: It is not what it says; names the stage.
    """
    probe = disturbed(backbone)
    with torch.no_grad():
        states, logits = run_stages(probe, inputs)
        check_widths(probe, states, logits)
        if original is not None:
            _same(probe, original(probe, inputs), logits)
        prove_rows(probe, inputs, states, logits)
        alone = select(inputs, torch.zeros(1, dtype=torch.long))
        if original is not None and not close(original(probe, alone), logits[:1]):
            raise refusal(backbone, "the model gives a sample other logits alone than in a batch")


def guard(backbone: StagedBackbone) -> None:
    """Prove a backbone that somebody else wrote, beside the module in its attribute `model`, where there is one.

    Without a model, no parameter that trains may be left out of the logits.

    Raises:
        UserError: It is not what it says.
    """
    if type(backbone).__module__.partition(".")[0] == "eenet":
        return
    inputs = to_device(varied(backbone.example_input()), backbone)
    whole = original_of(backbone, inputs)
    prove(backbone, inputs, whole)
    left_out = [] if whole else unread(backbone, inputs)
    if left_out:
        problem = f"no stage reads {', '.join(left_out[:3])}; run every part, or `requires_grad_(False)` what is unused"
        raise refusal(backbone, problem)


def original_of(backbone: StagedBackbone, inputs: Any) -> Callable[[Any, Any], Tensor] | None:
    """How the whole model is run, where the backbone has one that gives logits."""

    def run(probe: Any, given: Any) -> Tensor:
        output = probe.model(**given) if isinstance(given, Mapping) else probe.model(given)
        return getattr(output, "logits", output)

    try:
        with torch.no_grad():
            found = run(backbone, inputs)
    except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return None
    return run if isinstance(found, Tensor) and found.shape[-1] == backbone.num_classes else None


def varied(example: Any) -> Any:
    """Samples like an example's, as many as proofs need; floats and whole numbers are drawn where there are fewer.

    Zeros are taken for numbers of tokens, of which there are others, too, but for those of token types.
    """
    draw = torch.Generator().manual_seed(0)

    def rows(path: tuple[Any, ...], values: Tensor) -> Tensor:
        if len(values) >= ROWS:
            return values[:ROWS].detach().cpu()
        shape = (ROWS, *values.shape[1:])
        if values.is_floating_point():
            return torch.randn(shape, generator=draw).to(values.dtype)
        low, high = int(values.min()), int(values.max())
        least = 3 if low == 0 and pytree.MappingKey(TYPES) not in path else high
        return torch.randint(low, max(high, least) + 1, shape, generator=draw).to(values.dtype)

    return pytree.tree_map_with_path(rows, example)


def disturbed(backbone: StagedBackbone) -> StagedBackbone:
    """A copy in evaluation mode whose weights are all moved by a tenth of their size."""
    probe = deepcopy(backbone).eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in probe.parameters():
            if parameter.is_floating_point():
                size = float(parameter.square().mean().sqrt())
                parameter.add_(torch.randn_like(parameter), alpha=size / 10 if size > 1e-3 else 0.01)
    return probe


def run_stages(backbone: StagedBackbone, inputs: Any) -> tuple[list[State], Tensor]:
    """The states before the first stage and after each, and the logits; a `UserError` where a part cannot be run."""
    part, states = "embed", list[State]()
    try:
        states.append(backbone.embed(inputs))
        for stage in range(backbone.num_stages):
            part = f"run_stage({stage})"
            states.append(backbone.run_stage(stage, states[-1]))
        part = "classify"
        logits = backbone.classify(states[-1])
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        said = str(error).strip().partition("\n")[0]
        raise refusal(backbone, f"{part} cannot be run on its example ({type(error).__name__}: {said})") from error
    return states, logits


def check_widths(backbone: StagedBackbone, states: list[State], logits: Tensor) -> None:
    """Raise a `UserError` that says which features or logits are of another width than the backbone says."""
    if len(backbone.feature_dims) != backbone.num_stages:
        problem = f"feature_dims has {len(backbone.feature_dims)} widths for {backbone.num_stages} stages"
        raise refusal(backbone, problem)
    rows = len(pytree.tree_leaves(states[0])[0])
    for stage, state in enumerate(states[1:]):
        for leaf in pytree.tree_leaves(state):
            if leaf.ndim == 0 or len(leaf) != rows:
                raise refusal(
                    backbone, f"the state after stage {stage} holds a tensor whose first axis is not the batch"
                )
        found, said = tuple(backbone.features(stage, state).shape), backbone.feature_dims[stage]
        if found[0] != rows or found[-1] != said:
            raise refusal(backbone, f"features after stage {stage} are {found}, where feature_dims says {said}")
    if logits.shape[0] != rows or logits.shape[-1] != backbone.num_classes:
        problem = f"classify gives {tuple(logits.shape)}, where num_classes says {backbone.num_classes}"
        raise refusal(backbone, problem)


def prove_rows(backbone: StagedBackbone, inputs: Any, states: list[State], logits: Tensor) -> None:
    """Raise a `UserError` at the first stage where a sample depends on others: change those, and leave some out."""
    changed = pytree.tree_map(lambda rows: torch.cat([rows[:1], rows[1:].roll(1, 0)]), inputs)
    others, other_logits = run_stages(backbone, changed)
    first = torch.zeros(1, dtype=torch.long)
    for stage in range(-1, backbone.num_stages):
        if not close(select(states[stage + 1], first), select(others[stage + 1], first)):
            raise _mixes(backbone, stage)
    if not close(logits[:1], other_logits[:1]):
        raise _mixes(backbone, backbone.num_stages)
    keep = torch.tensor([2, 0])
    for stage, state in enumerate(states[:-1]):
        if not close(backbone.run_stage(stage, select(state, keep)), select(states[stage + 1], keep)):
            raise _mixes(backbone, stage)
        if not close(backbone.run_stage(stage, select(state, first)), select(states[stage + 1], first)):
            raise _mixes(backbone, stage)
    if not close(backbone.classify(select(states[-1], keep)), logits[keep]):
        raise _mixes(backbone, backbone.num_stages)


def close(one: State, other: State) -> bool:
    """Whether two states agree to `TOLERANCE`."""
    pairs = list(zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True))
    return all(_agree(left, right) for left, right in pairs)


def _agree(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    finite = one.isfinite()
    if not torch.equal(finite, other.isfinite()):
        return False
    largest = one[finite].abs().max() if finite.any() else one.new_zeros(())
    return bool((one[finite] - other[finite]).abs().le(TOLERANCE * largest.clamp(min=1e-6)).all())


def _same(backbone: StagedBackbone, expected: Tensor, logits: Tensor) -> None:
    if not expected.isfinite().all() or expected.std() == 0:
        raise refusal(backbone, "the model gives the same logits for every input, so that nothing can be proved")
    if not close(expected, logits):
        different = (
            "of another shape" if expected.shape != logits.shape else f"{(expected - logits).abs().max():.3g} off"
        )
        problem = f"its {backbone.num_stages} stages are not the model: the logits are {different}"
        raise refusal(backbone, f"{problem}; run every part once, in the model's order")


def _mixes(backbone: StagedBackbone, stage: int) -> UserError:
    names = getattr(backbone, "stage_names", None)
    part = {-1: "embed", backbone.num_stages: "classify"}.get(stage, f"stage {stage}")
    name = f", up to {names[stage]}," if names and 0 <= stage < backbone.num_stages else ""
    problem = f"{part}{name} mixes the samples of a batch, so that none could leave alone"
    return refusal(backbone, f"{problem}; use a norm or pooling that looks at one sample")


def refusal(backbone: StagedBackbone, problem: str) -> UserError:
    """The error for a backbone that is not what it says."""
    label = getattr(backbone, "label", type(backbone).__name__)
    return UserError("backbone", label, problem)


def unread(backbone: StagedBackbone, inputs: Any) -> list[str]:
    """Parameters on which the logits do not depend: a stage that was left out."""
    probe = deepcopy(backbone).eval()
    named = [(name, parameter) for name, parameter in probe.named_parameters() if parameter.requires_grad]
    with torch.enable_grad():
        total = probe(inputs).sum()
    if not named or not total.requires_grad:
        return []
    gradients = torch.autograd.grad(total, [parameter for _, parameter in named], allow_unused=True)
    return [name for (name, _), gradient in zip(named, gradients, strict=True) if gradient is None]
