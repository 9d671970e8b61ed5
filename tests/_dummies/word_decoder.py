"""A tiny decoder with random weights and a tokenizer of whole words with a chat template."""

from pathlib import Path
from typing import Any

import torch

NOUNS = ["rain", "sun", "city"]
VERBS = ["wins", "loses"]
WORDS = ["<end>", "<user>", "<system>", "<model>", "the", *NOUNS, *VERBS, "today", "storm", "vote", "bank"]
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<model>{% endif %}"
)


def make_tokenizer(chat: bool = True) -> Any:
    """Number `i` is `WORDS[i]`; unknown words are 0, as is the end."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<end>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", unk_token="<end>")
    tokenizer.chat_template = TEMPLATE if chat else None
    return tokenizer


def write_decoder(folder: Path, layers: int = 4) -> str:
    """Write a Llama and its tokenizer, as `from_pretrained` reads them."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    make_tokenizer().save_pretrained(folder)
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": layers, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=128, initializer_range=0.4, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)
