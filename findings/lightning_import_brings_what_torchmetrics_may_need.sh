#!/bin/sh
# lightning 2.6.6, torchmetrics 1.9.0, torch 2.14.1 (Python 3.11): `import lightning` imports torchmetrics, and its import
# takes in whatever one of its metrics could use and is installed: transformers for BERTScore, scipy.signal for audio,
# torchvision for images (and with it torch's compiler), matplotlib for plots. A training that uses none of them pays for
# all: 7.5 s of processor time and 300 MB after torch's 2.8 s and 506 MB, on a crowded core. Installing transformers
# beside lightning slows every start, and a command that should be quick cannot import lightning for a name.
#
# Output seen:
#     import torch: none of them
#     import lightning: matplotlib, scipy.signal, torch._dynamo, torchvision, transformers
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 lightning==2.6.6 torchmetrics==1.9.0 \
    transformers==5.24.0 scipy==1.17.1 matplotlib==3.11.2
cat > "$folder/imports.py" <<'PYTHON'
import importlib
import resource
import sys
import time

for name in ("torch", "lightning"):
    started = time.process_time()
    importlib.import_module(name)
    took, held = time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    found = {"matplotlib", "scipy.signal", "torch._dynamo", "torchvision", "transformers"} & set(sys.modules)
    print(f"import {name}:", ", ".join(sorted(found)) or "none of them")
    print(f"{name}: {took:.1f} s, {held} MB", file=sys.stderr)
PYTHON
seen=$("$folder/venv/bin/python" "$folder/imports.py")
echo "$seen"
[ "$seen" = "import torch: none of them
import lightning: matplotlib, scipy.signal, torch._dynamo, torchvision, transformers" ]
