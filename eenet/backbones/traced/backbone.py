"""Any classifier as a staged backbone: its graph is cut, its weights stay its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from eenet.backbones.base import StagedBackbone, State, to_device
from eenet.backbones.proofs import ROWS, close, prove, refusal, varied
from eenet.backbones.traced.capture import Captured, call_model, capture, plain_attention
from eenet.backbones.traced.cuts import Cut, Places, count_nodes
from eenet.backbones.traced.models import Made, Wish, make_example, make_model
from eenet.backbones.traced.plan import Channels, ExitsAt, aligned, choose, make_plan
from eenet.backbones.traced.stages import Stage, make_stage
from eenet.backbones.weight_files import Which
from eenet.errors import UserError
from eenet.files import NameOrPath
from eenet.tokens import example_pair, with_usual

Mode = tuple[bool, torch.dtype]


class Traced(StagedBackbone):
    """Any classifier, captured as a graph by `torch.export` and cut where few tensors are needed later, at most four.

    The graph of evaluation is captured and proved when the backbone is made, that of training when it first trains.
    Either is captured again where the weights change their dtype; the device may change at any time. Parameters and
    buffers are read from the model when a stage runs, so that whatever trains, loads or moves the model does so here;
    a submodule that is replaced, or has hooks, after that is not seen.

    Args:
        model: A module, or text that names one: `timm:NAME`, `torchvision:NAME`, `transformers:FOLDER` (or a model
            type, with random weights), `package.module:NAME`, `file.py:NAME`.
        num_classes: Number of classes, where the named model takes one; its own when `None`.
        input_shape: Of one input, as `[3, 32, 32]`; the model's own where it is known.
        exits_at: Where stages end: module names such as `layer2.1`, numbers of the usual stages, or `{fractions: [0.25,
            0.5]}` of the MACs. Usually a stage is a block.
        arguments: Of what makes the model, or values of its configuration.
        pretrained: True for published weights, or the path of a weight file.
        weights: Of a file that holds weights and their running average, the average (`ema`) or the weights (`raw`).
        pooling: What exits read of several places or tokens: their `mean`, padding left out, or the `first`.
        channels: Which axis holds them, `first` (after the batch) or `last`; found where the graph says so.
        example_tokens: Length of the text on which costs are counted.
        example: A batch as the model takes it, instead of `input_shape`; for use in Python.

    Raises:
        UserError: No such model, one that cannot be cut there, or one whose samples depend on each other.

    Example:
        >>> convs = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.ReLU()]
        >>> traced = Traced(nn.Sequential(*convs, nn.Flatten(), nn.Linear(128, 3)), input_shape=[1, 8, 8])
        >>> traced.stage_names, traced.feature_dims, traced.num_classes
        (['0', '2'], [4, 8], 3)
    """

    def __init__(
        self,
        model: str | nn.Module,
        num_classes: int | None = None,
        input_shape: list[int] | None = None,
        exits_at: list[int] | list[str] | dict[str, list[float]] | None = None,
        arguments: dict[str, Any] | None = None,
        pretrained: bool | NameOrPath = False,
        weights: Which = "ema",
        pooling: Literal["mean", "first"] = "mean",
        channels: Literal["first", "last"] | None = None,
        example_tokens: int = 128,
        example: Any = None,
    ) -> None:
        super().__init__()
        self.arguments, self.pooling, self.example_tokens = arguments or {}, pooling, example_tokens
        shape = None if input_shape is None else tuple(input_shape)
        if isinstance(model, str):
            name = model.rpartition(":")[2]
            wish = Wish(name, num_classes, shape, pretrained, self.arguments, example_tokens, weights)
            made = make_model(model, wish)
        else:
            made = Made(
                model, shape if example is None or not isinstance(example, Tensor) else tuple(example.shape[1:])
            )
        self.model, self.input_shape, self.max_tokens = made.model, made.input_shape, made.max_tokens
        self.names, self._vocabulary, self.loaded = made.tokens, made.vocabulary, made.loaded
        self.label = model if isinstance(model, str) else _label(model)
        self._example = None if example is None else varied(example)
        if isinstance(example, Mapping):
            self.names, self.input_shape = tuple(example), None
        if self._example is None and made.input_shape is None and not made.tokens:
            raise UserError("backbone.input_shape", None, "give the shape of one input, such as [3, 32, 32]")
        self._programs: dict[Mode, list[Stage]] = {}
        self._bound: dict[tuple[Mode, int], list[tuple[nn.Module, str]]] = {}
        self._begin(exits_at, channels)
        prove(self, self.samples(), original)

    def samples(self) -> Any:
        """A few samples that differ, on the device and in the dtype of the weights."""
        made = Made(self.model, self.input_shape, self.names, self._vocabulary, self.max_tokens)
        example = make_example(made, min(self.example_tokens, 16), ROWS) if self._example is None else self._example
        return to_device(example, self.model)

    def embed(self, inputs: Any) -> State:
        """The inputs as a tuple of tensors; nothing is computed yet."""
        return tuple(self._named(inputs).values()) if self.names else tuple(pytree.tree_leaves(inputs))

    def run_stage(self, i: int, state: State) -> State:
        """The operations up to the cut after stage `i`."""
        return self._run(i, state)

    def features(self, i: int, state: State) -> Tensor:
        """Mean over the places, or the first of them, `(batch, channels)`."""
        read = self.plan.reads[i]
        values = state[read.tensor].movedim(read.axis, 1).flatten(2) if read.ndim > 2 else state[read.tensor]
        if read.ndim == 2:
            return values
        if self.pooling == "first":
            return values[:, :, 0]
        if not self.plan.mask or read.ndim != 3:
            return values.mean(dim=2)
        mask = state[-1].to(values.dtype).unsqueeze(1)
        return (values * mask).sum(2) / mask.sum(2).clamp(min=1)

    def feature_map(self, i: int, state: State) -> Tensor:
        """The map, channels first, `(batch, channels, height, width)`."""
        if self.map_dims is None:
            return super().feature_map(i, state)
        read = self.plan.reads[i]
        return state[read.tensor].movedim(read.axis, 1)

    def classify(self, state: State) -> Tensor:
        """The model's own head."""
        return self._run(self.num_stages, state)[0]

    def example_input(self) -> Any:
        """One input: a black image, or texts of `example_tokens` tokens without padding."""
        if self._example is not None:
            return pytree.tree_map(lambda rows: rows[:1], self._example)
        if self.input_shape is not None:
            return torch.zeros(1, *self.input_shape)
        return example_pair(self.names, min(self.example_tokens, self.max_tokens or self.example_tokens))

    def find_stage(self, name: str) -> int:
        """The stage that ends where a module ends."""
        return self.plan.ends[name] if name in self.plan.ends else super().find_stage(name)

    def description(self) -> dict[str, Any]:
        """What the model is called, its arguments, stages, and a digest of the names and shapes of its weights."""
        shapes = [(name, tuple(value.shape)) for name, value in self.model.state_dict().items()]
        return {
            "family": "Traced",
            "model": self.label,
            "arguments": self.arguments,
            "num_classes": self.num_classes,
            "stages": self.stage_names,
            "pooling": self.pooling,
            "weights": hashlib.sha256(repr(shapes).encode()).hexdigest()[:16],
        }

    def _named(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inputs that the model was captured with; a mask or token types that are absent are the usual ones."""
        found = with_usual(inputs)
        absent = [name for name in self.names if name not in found]
        if absent:
            raise UserError("inputs", sorted(inputs), f"the model was captured with {', '.join(absent)}, too")
        return {name: found[name] for name in self.names}

    def _begin(self, exits_at: ExitsAt, channels: Channels) -> None:
        captured, places = self._captured((False, self._dtype()))
        cuts = choose(places, exits_at, self.label, channels)
        self._programs[False, self._dtype()] = self._compiled(captured, places, cuts)
        self.plan = make_plan(places, cuts, channels, "attention_mask" in self.names, self.label)
        self.num_stages, self.stage_names = len(cuts), [cut.name for cut in cuts]
        self.feature_dims, self.num_classes = [read.width for read in self.plan.reads], self.plan.classes
        self.map_dims = self.feature_dims if all(read.ndim == 4 for read in self.plan.reads) else None

    def _captured(self, mode: Mode) -> tuple[Captured, Places]:
        training, _ = mode
        example = self.samples()
        captured = capture(self.model, example, training)
        own = dict(self.model.named_parameters(remove_duplicate=False)) | dict(
            self.model.named_buffers(remove_duplicate=False)
        )
        weights = {node: own[name] for node, name in captured.weights.items()} | captured.constants
        return captured, Places(captured, count_nodes(captured, weights, pytree.tree_leaves(example), 1 + training))

    def _compiled(self, captured: Captured, places: Places, cuts: list[Cut]) -> list[Stage]:
        """The stages and the head, as functions."""
        names = {node: f"model.{name}" for node, name in captured.weights.items()}
        for node, constant in captured.constants.items():
            names[node] = f"constant_{sum(name.startswith('constant_') for name in self._buffers)}"
            self.register_buffer(names[node], constant.detach().clone(), persistent=False)
        mask = [captured.inputs[self.names.index("attention_mask")]] if "attention_mask" in self.names else []
        states = [tuple(captured.inputs), *((*cut.live, *mask) for cut in cuts), (captured.output,)]
        begins = [0, *(cut.place + 1 for cut in cuts), len(places.order)]
        return [
            make_stage(
                captured,
                places.data,
                names,
                [node for node in places.order[begins[stage] : begins[stage + 1]] if node in places.data],
                states[stage],
                states[stage + 1],
            )
            for stage in range(len(cuts) + 1)
        ]

    def _run(self, stage: int, state: State) -> State:
        mode = (self.training, self._dtype())
        if mode not in self._programs:
            self._capture_again(mode)
        program = self._programs[mode][stage]
        bound = self._bound.get((mode, stage))
        if bound is None:
            parts = [name.rpartition(".")[::2] for name in program.weights]
            bound = self._bound[mode, stage] = [(self.get_submodule(path), key) for path, key in parts]
        return program(state, [getattr(owner, key) for owner, key in bound], state[0].device)

    def _capture_again(self, mode: Mode) -> None:
        captured, places = self._captured(mode)
        self._programs[mode] = self._compiled(captured, places, aligned(places, self.plan.points))
        if mode[0]:
            prove_training(self, self.samples())

    def _dtype(self) -> torch.dtype:
        return next((weight.dtype for weight in self.model.parameters() if weight.is_floating_point()), torch.float32)


def original(backbone: Traced, inputs: Any) -> Tensor:
    """What the model itself gives."""
    with plain_attention():
        return call_model(backbone.model, inputs)


def prove_training(backbone: Traced, inputs: Any) -> None:
    """Raise a `UserError` where stages train otherwise than the model, drawing the same random numbers."""
    staged, plain = deepcopy(backbone).train(), deepcopy(backbone).train()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        expected = original(plain, inputs)
        torch.manual_seed(0)
        found = staged(inputs)
    if not close(expected, found) or not close(plain.state_dict(), staged.state_dict()):
        reasons = "it may draw random numbers outside of torch, or have auxiliary heads, which have to be off"
        raise refusal(backbone, f"in training its stages are not the model; {reasons}")


def _label(model: nn.Module) -> str:
    return f"{type(model).__module__}.{type(model).__qualname__}"
