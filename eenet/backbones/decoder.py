"""The parts of any decoder of `transformers`, found by watching the model's own forward call them."""

import copy
import inspect
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eenet.errors import UserError


class Call:
    """How the model's own forward calls one of its layers.

    Attributes:
        args: Positional arguments behind the hidden state.
        kwargs: Arguments by name: masks, positions and whatever else the family hands to its layers.
        cache: What the forward was given as its cache; `run` puts another in its place.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], cache: Any) -> None:
        self.args, self.kwargs, self.cache = args, kwargs, cache

    def run(self, layer: nn.Module, hidden: Tensor, cache: Any = None) -> Tensor:
        """Run the layer on hidden states `(batch, tokens, dim)`, with a cache of its own."""
        args = [self._with(value, cache) for value in self.args]
        out = layer(hidden, *args, **{name: self._with(value, cache) for name, value in self.kwargs.items()})
        return out[0] if isinstance(out, tuple) else out

    def _with(self, value: Any, cache: Any) -> Any:
        return cache if value is self.cache and value is not None else value


class _Recorder:
    """Stands where a layer stands, passes the hidden state on and keeps how it was called."""

    def __init__(self, layer: nn.Module, kept: list[Call], last: bool, cache: Any, in_tuple: bool) -> None:
        self.layer, self.kept, self.last, self.cache, self.in_tuple = layer, kept, last, cache, in_tuple

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs.pop("hidden_states")
        self.kept.append(Call(args[1:], kwargs, self.cache))
        if self.last:
            raise _Recorded(hidden)
        return (hidden,) if self.in_tuple else hidden

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name)


class _Recorded(Exception):
    """Every layer was called: the forward has nothing more to tell."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class _Given(nn.Module):
    """Stands where the decoder without its head stands, and returns a given hidden state."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, *args: Any, **kwargs: Any) -> "_Output":
        return _Output(self.hidden)


class _Output:
    """What a body returns, by name or place; whatever else a family's head asks it for is `None`."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, place: int) -> Tensor | None:
        return self.last_hidden_state if place == 0 else None

    def __getattr__(self, name: str) -> None:
        return None


class DecoderParts:
    """Where a decoder keeps its layers, and what its own forward does before, around and behind them.

    Nothing is known of families: the list of layers is found by its length, and masks, positions, embedding, final
    norm and head are those of the model's own forward, run with stand-ins for what is not asked for. Whether this
    equals the model is proved by `eenet.backbones.decoder_proof`.

    Args:
        model: A model of `transformers` with a head.

    Attributes:
        path: Path in the model of the module that owns the layers.
        name: Name of the list of layers there.

    Raises:
        UserError: No list of as many layers as the configuration says.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.path, self.name = find_layers(model)
        keywords = inspect.signature(self.body.forward).parameters
        self._cache = "cache" if "cache" in keywords else "past_key_values"
        self._positions = "position_ids" in keywords
        self._in_tuple = self._layers_return_tuples()
        self._tail = self._watch_tail()

    @property
    def body(self) -> Any:
        """The decoder without its head."""
        return self.model.get_submodule(self.path)

    @property
    def layers(self) -> nn.ModuleList:
        """The layers, in order."""
        return getattr(self.body, self.name)

    @property
    def tail(self) -> list[nn.Module]:
        """What the body runs behind its last layer."""
        return [self.body.get_submodule(name) for name in self._tail]

    def record(self, ids: Tensor, mask: Tensor, cache: Any = None) -> tuple[Tensor, list[Call]]:
        """Let the model's own forward embed tokens and make what its layers are called with.

        Args:
            ids: Token numbers, `(batch, tokens)`.
            mask: 1 on tokens and 0 on padding, on either side, of the tokens and all before them,
                `(batch, columns)`; positions count its ones.
            cache: Says how many columns were read before.

        Returns:
            The hidden states before the first layer, `(batch, tokens, dim)`, and the call of each layer.
        """
        calls: list[Call] = []
        try:
            self._run_body(calls, True, ids, mask, cache)
        except _Recorded as done:
            if len(calls) == len(self.layers):
                return done.hidden, calls
        raise UserError("backbone", type(self.model).__name__, "its forward does not run its layers once, in order")

    def predict(self, normed: Tensor, head: nn.Module | None = None) -> Tensor:
        """What the model makes of the body's output: the head, with any scaling and capping of its logits.

        Args:
            normed: What follows the final norm, `(..., dim)`.
            head: In the place of the model's own.

        Returns:
            `(..., vocabulary)`.
        """
        rows = normed.reshape(1, -1, normed.shape[-1])
        model = with_module(self.model, self.path, _Given(rows))
        if head is not None:
            model = with_module(model, self.head_path, head)
        ids = torch.zeros(rows.shape[:2], dtype=torch.long, device=rows.device)
        logits = model(input_ids=ids, use_cache=False).logits
        return logits.reshape(*normed.shape[:-1], logits.shape[-1])

    @property
    def head_path(self) -> str:
        """Path of the map to the vocabulary."""
        own = self.model.get_output_embeddings()
        return next(path for path, module in self.model.named_modules(remove_duplicate=False) if module is own)

    @property
    def max_tokens(self) -> int:
        """The longest context: what the configuration says, unless positions are made anew beyond it."""
        config = self.model.config.get_text_config(decoder=True)
        rope = getattr(config, "rope_parameters", None) or {}
        stated = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
        endless = "dynamic" in (
            rope.get("rope_type"),
            *(part.get("rope_type") for part in rope.values() if isinstance(part, dict)),
        )
        return sys.maxsize if endless or not stated else stated

    def _run_body(self, calls: list[Call], stop: bool, ids: Tensor, mask: Tensor, cache: Any) -> None:
        last = self.layers[-1] if stop else None
        stand_ins = [_Recorder(layer, calls, layer is last, cache, self._in_tuple) for layer in self.layers]
        body = with_module(self.body, self.name, stand_ins)
        body.training = False  # OPT would drop layers at random
        positions = (mask.long().cumsum(dim=1)[:, -ids.shape[1] :] - 1).clamp(min=0)
        more = {"position_ids": positions} if self._positions else {}
        body(input_ids=ids, attention_mask=mask, use_cache=cache is not None, **{self._cache: cache}, **more)

    def _layers_return_tuples(self) -> bool:
        returned = []
        hook = self.layers[0].register_forward_hook(lambda *call: returned.append(isinstance(call[2], tuple)))
        try:
            with torch.no_grad():
                self.body(input_ids=self._example(), use_cache=False)
        finally:
            hook.remove()
        return returned == [True]

    def _example(self) -> Tensor:
        return torch.zeros(1, 2, dtype=torch.long, device=next(self.body.parameters()).device)

    def _watch_tail(self) -> list[str]:
        calls: list[Call] = []
        tail: list[str] = []
        hooks = [
            module.register_forward_hook(
                lambda *_, name=name: tail.append(name) if len(calls) == len(self.layers) else None
            )
            for name, module in self.body.named_children()
            if name != self.name
        ]
        try:
            with torch.no_grad():
                ids = self._example()
                self._run_body(calls, False, ids, torch.ones_like(ids), None)
        finally:
            for hook in hooks:
                hook.remove()
        return tail


def find_layers(model: Any) -> tuple[str, str]:
    """Path of the module that owns a decoder's layers, and the list's name there; a `UserError` where there is none."""
    config = model.config.get_text_config(decoder=True)
    count = getattr(config, "num_hidden_layers", None)
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            owner, _, name = path.rpartition(".")
            return owner, name
    raise UserError("backbone", model.config.model_type, "has no list of layers of which some could be left out")


def cut_config(config: Any, layers: Sequence[int]) -> Any:
    """A configuration of some layers alone: their number, and every list with an entry for each layer."""
    found = copy.deepcopy(config)
    text = found.get_text_config(decoder=True)
    count = text.num_hidden_layers
    for name, value in list(vars(text).items()):
        if isinstance(value, (list, tuple)) and len(value) == count and not name.startswith("_"):
            setattr(text, name, type(value)(value[layer] for layer in layers))
    text.num_hidden_layers = len(layers)
    return found


def cut_model(model: Any, layers: Sequence[int]) -> Any:
    """A copy of a model that has some of its layers alone, numbered anew: what leaving out the others must equal."""
    found = copy.deepcopy(model)
    path, name = find_layers(found)
    body = found.get_submodule(path)
    kept = [getattr(body, name)[layer] for layer in layers]
    setattr(body, name, nn.ModuleList(kept))
    for number, layer in enumerate(kept):
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = number
    whole, cut = found.config, cut_config(found.config, layers)
    for module in found.modules():
        if getattr(module, "config", None) is whole:
            module.config = cut
    return found


def with_module(model: Any, path: str, module: Any) -> Any:
    """A view of a model, of the same weights and submodules but for the one at a path."""
    name, _, rest = path.partition(".")
    found = copy.copy(model)
    found.__dict__["_modules"] = {
        **model._modules,
        name: with_module(model._modules[name], rest, module) if rest else module,
    }
    return found
