#!/bin/sh
# peft 0.21.2 (torch 2.14.1, transformers 5.24.0, Python 3.11): an adapter that `inject_adapter_in_model` put in and
# `get_peft_model_state_dict` read out, saved as adapters are, is taken by `PeftModel.from_pretrained` with a warning
# alone and nothing of it is loaded: the model computes what it did without. The names lack the `base_model.model.` that
# those of a `PeftModel` have; with it in front of them the file loads.
#
# Output seen:
#     names 0.lora_A.weight 0.lora_B.weight
#     as saved: adapter in force False, warned True
#     with base_model.model.: adapter in force True, warned False
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 transformers==5.24.0 peft==0.21.2 accelerate==1.15.0 \
    safetensors==0.8.0 numpy==2.4.6
cat > "$folder/adapt.py" <<'PYTHON'
import sys
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import save_file


def base():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 4))


inputs, plain = torch.ones(1, 4), base()
config = LoraConfig(target_modules=["0"], r=2)
tuned = inject_adapter_in_model(config, base())
torch.nn.init.ones_(tuned[0].lora_B["default"].weight)
weights = {name: tensor.contiguous() for name, tensor in get_peft_model_state_dict(tuned).items()}
print("names", *weights)
for label, prefix in (("as saved", ""), ("with base_model.model.", "base_model.model.")):
    folder = f"{sys.argv[1]}/{len(prefix)}"
    config.save_pretrained(folder)
    save_file({prefix + name: tensor for name, tensor in weights.items()}, f"{folder}/adapter_model.safetensors")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = PeftModel.from_pretrained(base(), folder)
    warned = any("missing adapter keys" in str(warning.message) for warning in caught)
    in_force = not torch.equal(loaded(inputs), plain(inputs))
    print(f"{label}: adapter in force {in_force}, warned {warned}")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/adapt.py" "$folder" 2>/dev/null)
echo "$seen"
[ "$seen" = "names 0.lora_A.weight 0.lora_B.weight
as saved: adapter in force False, warned True
with base_model.model.: adapter in force True, warned False" ]
