#!/bin/sh
# torch 2.14.1's exporter to ONNX (dynamo=True; onnx 1.23.2, onnxscript 0.7.2, Python 3.11) takes scaled_dot_product_attention over four
# axes alone, where torch's documentation has `(N, ..., H, L, E)`: timm's Hiera and NesT (windows beside heads) and the ViT of SAM
# (heads within the batch) have five and three. The same values with axes joined or added first become a file.
#
# Output seen:
#     3 axes: ConversionError
#     4 axes: a file
#     5 axes: ConversionError
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 onnx==1.23.2 onnxscript==0.7.2 onnx-ir==1.1.0 numpy==2.4.6
cat > "$folder/attention.py" <<'PYTHON'
import logging
import warnings

import torch

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)


class Model(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.scaled_dot_product_attention(x, x, x)


for axes in (3, 4, 5):
    try:
        torch.onnx.export(Model(), (torch.ones(2, 3, 4, 5, 6)[(0,) * (5 - axes)],), dynamo=True, verbose=False)
        found = "a file"
    except Exception as error:
        found = type(error).__name__
    print(f"{axes} axes: {found}")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/attention.py" 2>/dev/null)
echo "$seen"
[ "$seen" = "3 axes: ConversionError
4 axes: a file
5 axes: ConversionError" ]
