#!/bin/sh
# transformers 5.24.0 (torch 2.14.1, Python 3.11): the `RepetitionPenaltyLogitsProcessor` that `generate` makes leaves out
# padding by one number per row, where a prompt is padded. It is then of that batch: a decoding loop (`custom_generate`)
# that drops rows which have ended gets an error, which it does not where all prompts are equally long, as then there
# are no such numbers.
#
# Output seen:
#     equal lengths 2 rows: ok
#     equal lengths 1 rows: ok
#     padded 2 rows: ok
#     padded 1 rows: Incompatible `prompt_ignore_length` batch size
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 transformers==5.24.0 numpy==2.4.6 \
    tokenizers==0.23.3 safetensors==0.8.0 huggingface-hub==2.4.0
cat > "$folder/penalise.py" <<'PYTHON'
import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=20, pad_token_id=0)).eval()
made = []


def keep(model, input_ids, logits_processor, **_):
    made[:] = logits_processor
    return input_ids


for prompts, mask in (([[5, 6], [7, 8]], [[1, 1], [1, 1]]), ([[5, 6], [0, 8]], [[1, 1], [0, 1]])):
    ids, mask = torch.tensor(prompts), torch.tensor(mask)
    model.generate(ids, attention_mask=mask, repetition_penalty=1.3, max_new_tokens=3, custom_generate=keep)
    for rows in (2, 1):
        try:
            made[0](ids[:rows], torch.zeros(rows, 20))
            found = "ok"
        except ValueError as error:
            found = str(error)
        print("padded" if (mask == 0).any() else "equal lengths", rows, "rows:", found)
PYTHON
seen=$("$folder/venv/bin/python" "$folder/penalise.py" 2>/dev/null)
echo "$seen"
[ "$seen" = "equal lengths 2 rows: ok
equal lengths 1 rows: ok
padded 2 rows: ok
padded 1 rows: Incompatible \`prompt_ignore_length\` batch size" ]
