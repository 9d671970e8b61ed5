"""The proof, on a small copy, that layers of a decoder can be left out: the model's own forward is the judge."""

import copy
import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from eenet.backbones.decoder import DecoderParts, cut_config, cut_model
from eenet.errors import UserError

LAYERS = 4
"""Layers of the small copy."""

PLANS = ((0, 1, 2, 3), (1, 3), (0, 2, 3))
"""What of them runs: all, without the first, without a middle one."""

TEXTS = ((9, 5, 14, 7, 21, 11, 3), (17, 6, 4))
"""Token numbers."""

TOLERANCE = 1e-3
"""The largest difference of logits, of their standard deviation, which rounding of float32 stays far below."""

_SMALL = {
    "hidden_size": 64,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "ffn_dim": 48,
    "ffn_hidden_size": 48,
    "word_embed_proj_dim": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rotary_dim": 8,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "sliding_window": 3,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
"""Sizes of the small copy, for those that a configuration has and that are larger there."""


def prove_stages(model: Any) -> None:
    """Check on a small copy that running some layers one at a time equals a model of those layers.

    Args:
        model: A model of `transformers`, of which only class, configuration and attention count.

    Raises:
        UserError: The logits differ, no small copy can be made, or the model has an encoder.
    """
    if model.config.is_encoder_decoder:
        raise UserError("backbone", model.config.model_type, "is an encoder and a decoder; decoders alone are taken")
    reason = proved(model, _stages_reason)
    if reason:
        raise UserError("backbone", model.config.model_type, f"layers cannot be left out of this family: {reason}")


def proved(model: Any, judge: Callable[[Any], str]) -> str:
    """What a judge says of a small copy of a model, asked once for each configuration; empty for no objection."""
    config = shrink(model.config)
    facts = {**config.to_dict(), "class": type(model).__name__, "attention": model.config._attn_implementation}
    return _proved(json.dumps(facts, sort_keys=True, default=str), judge, _Small(model, config))


class _Small:
    """What makes the small copy; all are alike to the cache, whose key is the text of the configuration."""

    def __init__(self, model: Any, config: Any) -> None:
        self.model, self.config = model, config

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Small)


@lru_cache(maxsize=256)
def _proved(facts: str, judge: Callable[[Any], str], small: _Small) -> str:
    try:
        return judge(small_model(small.model, small.config))
    except UserError as error:
        return error.problem
    except Exception as error:  # whatever a family's code makes of a small size or a missing layer
        return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


@torch.no_grad()
def _stages_reason(model: Any) -> str:
    parts = DecoderParts(model)
    ids, mask = padded(TEXTS)
    for plan in PLANS:
        hidden, calls = parts.record(ids, mask)
        for layer in plan:
            hidden = calls[layer].run(parts.layers[layer], hidden)
        for module in parts.tail:
            hidden = module(hidden)
        found = parts.predict(hidden) if model.get_output_embeddings() is not None else model.score(hidden)
        cut = cut_model(model, plan)
        for row, text in enumerate(TEXTS):
            expected = cut(input_ids=torch.tensor([text])).logits
            mine = found[row, -1] if expected.dim() == 2 else found[row, -len(text) :]
            if reason := difference(mine, expected[0]):
                return f"layers {plan} of {LAYERS} {reason}"
    return ""


def difference(found: Tensor, expected: Tensor) -> str:
    """How far logits are from those of the model that has the layers alone; empty where rounding explains it."""
    error = ((found - expected).abs().max() / expected.std()).item()
    return "" if error <= TOLERANCE else f"give logits that are off by {error:.2g} standard deviations"


def padded(texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token numbers and mask of some texts, padded on the left."""
    width = max(map(len, texts))
    ids = torch.tensor([[0] * (width - len(text)) + list(text) for text in texts])
    return ids, torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts])


def shrink(config: Any) -> Any:
    """A configuration of the same kind and few layers, each kind of layer among them."""
    text = config.get_text_config(decoder=True)
    count = text.num_hidden_layers
    kinds = getattr(text, "layer_types", None) or [""] * count
    first = {kind: layer for layer, kind in reversed(list(enumerate(kinds)))}
    chosen = sorted(set(first.values()))[:LAYERS]
    chosen += [layer for layer in range(count) if layer not in chosen][: LAYERS - len(chosen)]
    small = cut_config(config, [*sorted(chosen), *[count - 1] * (LAYERS - len(chosen))])
    text = small.get_text_config(decoder=True)
    if text.hidden_size > _SMALL["hidden_size"]:
        for name, value in _SMALL.items():
            if isinstance(own := getattr(text, name, None), int) and not isinstance(own, bool) and own > value:
                setattr(text, name, value)
        if isinstance(getattr(text, "qk_rope_head_dim", None), int):  # latent attention: every head has keys of its own
            text.num_key_value_heads = text.num_attention_heads
            for name, value in (("head_dim", 8), ("qk_head_dim", 16)):
                if hasattr(text, name):
                    setattr(text, name, value)
    text.vocab_size = min(max(text.vocab_size, 32), _SMALL["vocab_size"])
    text.pad_token_id, text.bos_token_id, text.eos_token_id = 0, 0, 0
    return small


def small_model(model: Any, config: Any) -> Any:
    """A model of a small configuration with weights so large that every part shows in the logits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = type(model)._from_config(
            copy.deepcopy(config), dtype=torch.float32, attn_implementation=model.config._attn_implementation
        )
        for parameter in small.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=1.5 * parameter.shape[-1] ** -0.5)
            else:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return small.eval()
