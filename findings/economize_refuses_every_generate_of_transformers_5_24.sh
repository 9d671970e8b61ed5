#!/bin/sh
# economize 0.3.2, which asks for transformers 5.0 or later, with transformers 5.24.0 (torch 2.14.1, Python 3.11): a wrapped
# model's `generate` refuses plain prompts. transformers now hands the decoding loop its empty cache as `cache`, once
# `past_key_values`, and economize takes it for a model input that it would drop. With `use_cache=False` it generates:
# its loop keeps a cache of its own.
#
# Output seen:
#     {} ConfigError: economize generate cannot forward the model inputs ['cache']; pass input_ids only
#     {'use_cache': False} (1, 6)
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 transformers==5.24.0 economize==0.3.2 numpy==2.4.6 \
    tokenizers==0.23.3 safetensors==0.8.0 huggingface-hub==2.4.0
cat > "$folder/generate.py" <<'PYTHON'
import torch
from economize import apply
from economize.techniques.lookup import LookupConfig
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
model = apply(LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=20, pad_token_id=0)).eval(), LookupConfig())
for settings in ({}, {"use_cache": False}):
    try:
        found = tuple(model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, do_sample=False, **settings).shape)
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    print(settings, found)
PYTHON
seen=$("$folder/venv/bin/python" "$folder/generate.py" 2>/dev/null)
echo "$seen"
[ "$seen" = "{} ConfigError: economize generate cannot forward the model inputs ['cache']; pass input_ids only
{'use_cache': False} (1, 6)" ]
