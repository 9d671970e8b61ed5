#!/bin/sh
# torch 2.14.1 (CPU, Python 3.11): counting operations under `torch.no_grad()` raises an AssertionError as soon as a module is
# given a view of a trainable parameter, such as the expanded query of an attention pooling. Such a view says
# `requires_grad=True` and has no `grad_fn`, and `FlopCounterMode`'s module tracker asks for one. `torch.inference_mode()` does
# not help, where the view of the parameter is no inference tensor. With the parameter frozen the same pass is counted.
#
# Output seen:
#     no_grad: AssertionError: Expected gradient function to be set
#     inference_mode: AttributeError: 'NoneType' object has no attribute 'next_functions'
#     frozen: 60
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1
cat > "$folder/count.py" <<'PYTHON'
import warnings

warnings.simplefilter("ignore")

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count(context, trainable=True):
    linear, query = nn.Linear(3, 5), nn.Parameter(torch.zeros(1, 3), requires_grad=trainable)
    try:
        with context(), FlopCounterMode(display=False) as counter:
            linear(query.expand(2, -1))
    except (AssertionError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return counter.get_total_flops()


print("no_grad:", count(torch.no_grad))
print("inference_mode:", count(torch.inference_mode))
print("frozen:", count(torch.no_grad, trainable=False))
PYTHON
seen=$("$folder/venv/bin/python" "$folder/count.py")
echo "$seen"
[ "$seen" = "no_grad: AssertionError: Expected gradient function to be set
inference_mode: AttributeError: 'NoneType' object has no attribute 'next_functions'
frozen: 60" ]
