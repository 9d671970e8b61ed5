"""Random decoders of every family, small enough to check by hand, and references made of `transformers` alone."""

import copy
from typing import Any

import torch
from torch import nn

from eenet.backbones.gpt import Gpt

LAYERS = 4
CONTEXT = 40
SMALL = {
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_hidden_layers": LAYERS,
    "vocab_size": 30,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
GATED = SMALL | {"num_key_value_heads": 2, "intermediate_size": 24, "initializer_range": 0.3}
FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "gpt2": ("gpt2", SMALL | {"initializer_range": 0.3}),
    "llama": ("llama", GATED),
    "qwen2": ("qwen2", GATED),
    "qwen2_sliding": ("qwen2", GATED | {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2}),
    "opt": ("opt", SMALL | {"init_std": 0.3, "ffn_dim": 24, "word_embed_proj_dim": 8}),
    "opt_norm_after": (
        "opt",
        SMALL | {"init_std": 0.3, "ffn_dim": 24, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    ),
}
TEXTS = [[5, 9, 4, 17, 8, 21], [3, 11], [12, 25, 7, 14]]


def make_decoder(name: str = "llama", seed: int = 0) -> Gpt:
    torch.manual_seed(seed)
    family, overrides = FAMILIES[name]
    return Gpt(task="tokens", family=family, overrides=overrides).eval()


def cut_model(gpt: Gpt, layers: tuple[int, ...]) -> Any:
    """A `transformers` model that has these layers alone, numbered anew."""
    model = copy.deepcopy(gpt.model)
    body, name = model.get_submodule(gpt.parts.path), gpt.parts.name
    kept = [getattr(body, name)[layer] for layer in layers]
    for number, layer in enumerate(kept):
        attention = layer.attn if hasattr(layer, "attn") else layer.self_attn
        attention.layer_idx = number
    setattr(body, name, nn.ModuleList(kept))
    model.config.num_hidden_layers = len(kept)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[layer] for layer in layers]
    return model


def greedy(model: Any, text: list[int], new: int, **options: Any) -> list[int]:
    """What `transformers` generates from one text without padding."""
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 1} | options
    return model.generate(input_ids=torch.tensor([text]), max_new_tokens=new, **settings)[0, len(text) :].tolist()
