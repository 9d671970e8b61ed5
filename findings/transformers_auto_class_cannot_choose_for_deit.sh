#!/bin/sh
# transformers 5.24.0, torch 2.14.1 (Python 3.11): the automatic class for image classification makes a model of a fresh
# configuration of ViT, and of DeiT raises a TypeError from inside the library. DeiT has two classes for the task, the
# choice reads the configuration's architectures, and those of a fresh configuration are None. An empty list is enough.
#
# Output seen:
#     ViTConfig None ViTForImageClassification
#     DeiTConfig None TypeError: 'NoneType' object is not iterable
#     DeiTConfig [] DeiTForImageClassification
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 transformers==5.24.0
cat > "$folder/make.py" <<'PYTHON'
from transformers import AutoModelForImageClassification, DeiTConfig, ViTConfig

small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
for config in (ViTConfig(**small), DeiTConfig(**small), DeiTConfig(**small, architectures=[])):
    try:
        made = type(AutoModelForImageClassification.from_config(config)).__name__
    except TypeError as error:
        made = f"TypeError: {error}"
    print(type(config).__name__, config.architectures, made)
PYTHON
seen=$("$folder/venv/bin/python" "$folder/make.py" 2>/dev/null)
echo "$seen"
[ "$seen" = "ViTConfig None ViTForImageClassification
DeiTConfig None TypeError: 'NoneType' object is not iterable
DeiTConfig [] DeiTForImageClassification" ]
