"""Plans on decoders of many families, against `transformers` models that have the plan's layers alone."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from eenet.backbones.gpt import Gpt
from eenet.decoding import Executor, LayerPlan, generate, pad_left
from eenet.errors import UserError

SMALL = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 4, "vocab_size": 50} | dict.fromkeys(
    ["pad_token_id", "bos_token_id", "eos_token_id"]
)
GROUPED = SMALL | {"num_key_value_heads": 2, "intermediate_size": 40, "head_dim": 8, "initializer_range": 0.4}
CASES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "gpt2": SMALL | {"initializer_range": 0.4},
    "mistral": GROUPED | {"sliding_window": 4},
    "gemma2": GROUPED | {"sliding_window": 4},
    "qwen3": GROUPED,
}
PLANS = [(0, 1, 2, 3), (1, 3), (0, 2), (2,)]
TEXTS = [[5, 9, 4, 17, 8, 21, 33], [3, 11], [12, 25, 7, 14, 2], [6, 6, 31, 40]]


def make(family: str, attention: str) -> Gpt:
    torch.manual_seed(0)
    return Gpt(task="tokens", family=family, overrides=CASES[family], attention=attention).eval()


def alone(gpt: Gpt, layers: tuple[int, ...]) -> Any:
    """By hand: a model of the same class and of these layers' number, with these layers' weights."""
    config = copy.deepcopy(gpt.model.config)
    config.num_hidden_layers = len(layers)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[layer] for layer in layers]
    model = type(gpt.model)._from_config(config, attn_implementation=gpt.model.config._attn_implementation)
    lists = [path for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    prefix = min(lists, key=len) + "."
    weights = {name: value for name, value in gpt.model.state_dict().items() if not name.startswith(prefix)}
    for name, value in gpt.model.state_dict().items():
        if name.startswith(prefix):
            number, rest = name.removeprefix(prefix).split(".", 1)
            if int(number) in layers:
                weights[f"{prefix}{layers.index(int(number))}.{rest}"] = value
    model.load_state_dict(weights)
    return model.eval()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", CASES)
def test_generation_equals_that_of_a_model_of_the_plans_layers(family: str, attention: str) -> None:
    """Past the window, prompts padded on the left, the first layer left out in some."""
    if (family, attention) == ("gemma2", "sdpa"):
        with pytest.raises(UserError, match="attention"):
            make(family, attention)
        return
    gpt = make(family, attention)
    found = generate(Executor(gpt, [LayerPlan(plan, 4) for plan in PLANS], prompt="plan"), pad_left(TEXTS), 14).tokens
    for row, (text, plan) in enumerate(zip(TEXTS, PLANS, strict=True)):
        ids = torch.tensor([text])
        whole = alone(gpt, plan).generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=14, do_sample=False)
        assert found[row] == whole[0, len(text) :].tolist(), plan
