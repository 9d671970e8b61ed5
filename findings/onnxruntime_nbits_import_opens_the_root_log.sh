#!/bin/sh
# onnxruntime 1.32.0 (Python 3.11): importing its 4-bit quantizer configures the root logger. The module calls
# `logging.basicConfig(level=logging.INFO)` when it is imported, before its own logger is made: from then on every library of
# the process prints its INFO messages, and a later `basicConfig` of the program's own does nothing. Its other quantizers leave
# logging alone.
#
# Output seen:
#     quantize: root level WARNING, handlers 0
#     matmul_nbits_quantizer: root level INFO, handlers 1
#     the program's own basicConfig(level=ERROR) leaves INFO
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2 onnx-ir==1.1.0 numpy==2.4.6 protobuf==7.36.2
cat > "$folder/look.py" <<'PYTHON'
import importlib
import logging

root = logging.getLogger()
for name in ("quantize", "matmul_nbits_quantizer"):
    importlib.import_module(f"onnxruntime.quantization.{name}")
    print(f"{name}: root level {logging.getLevelName(root.level)}, handlers {len(root.handlers)}")
logging.basicConfig(level=logging.ERROR)
print(f"the program's own basicConfig(level=ERROR) leaves {logging.getLevelName(root.level)}")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/look.py" 2>/dev/null)
echo "$seen"
[ "$seen" = "quantize: root level WARNING, handlers 0
matmul_nbits_quantizer: root level INFO, handlers 1
the program's own basicConfig(level=ERROR) leaves INFO" ]
