#!/bin/sh
# torch 2.14.1's exporter to ONNX (dynamo=True; onnx 1.23.2, onnxscript 0.7.2, Python 3.11) refuses `1.0 - mask` of an integer mask,
# as transformers' XLNet has it: its pass that makes types explicit turns the graph's `rsub` into `sub(number, tensor)`, which no
# overload takes. `1 - mask`, `-mask + 1.0` and `1.0 - mask.float()` become files, and eager torch gives floats for all four.
#
# Output seen:
#     1.0 - mask: ConversionError, Cannot find a compatible OpOverload for
#     1 - mask: a file
#     -mask + 1.0: a file
#     1.0 - mask.float(): a file
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 onnx==1.23.2 onnxscript==0.7.2 onnx-ir==1.1.0 numpy==2.4.6
cat > "$folder/sub.py" <<'PYTHON'
import logging
import warnings

import torch

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
FORMS = {
    "1.0 - mask": lambda mask: 1.0 - mask,
    "1 - mask": lambda mask: 1 - mask,
    "-mask + 1.0": lambda mask: -mask + 1.0,
    "1.0 - mask.float()": lambda mask: 1.0 - mask.float(),
}


class Model(torch.nn.Module):
    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, mask):
        return self.form(mask)


for name, form in FORMS.items():
    try:
        torch.onnx.export(Model(form), (torch.tensor([0, 1, 1]),), dynamo=True, verbose=False)
        print(f"{name}: a file")
    except Exception as error:
        cause = error.__cause__ or error
        print(f"{name}: {type(error).__name__}, {' '.join(str(cause).split()[:6])}")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/sub.py" 2>/dev/null)
echo "$seen"
[ "$seen" = "1.0 - mask: ConversionError, Cannot find a compatible OpOverload for
1 - mask: a file
-mask + 1.0: a file
1.0 - mask.float(): a file" ]
