#!/bin/sh
# onnxruntime 1.32.0 (onnx 1.23.2, Python 3.11): `quantize_static` takes a `ModelProto`, and leaves it without its weights:
# they are moved to an external file of a temporary folder that is removed before the call returns, so that the caller's
# model, which ran before, runs no more. A copy (`CopyFrom`) made before the call is whole.
#
# Output seen:
#     before: weights inside True runs yes
#     after: weights inside False runs Fail
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6 sympy==1.14.0 \
    protobuf==7.36.2 flatbuffers==25.12.19 ml_dtypes==0.6.0
cat > "$folder/quantize.py" <<'PYTHON'
import sys
import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, quantize_static

rng = np.random.default_rng(0)
weight = onnx.numpy_helper.from_array(rng.normal(size=(64, 64)).astype(np.float32), "weight")
node = onnx.helper.make_node("MatMul", ["input", "weight"], ["output"])
values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 64]) for name in ("input", "output")]
graph = onnx.helper.make_graph([node], "graph", values[:1], values[1:], [weight])
model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


class Reader(CalibrationDataReader):
    def __init__(self):
        self.rows = iter([{"input": rng.normal(size=(1, 64)).astype(np.float32)} for _ in range(4)])

    def get_next(self):
        return next(self.rows, None)


def runs():
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:
        return type(error).__name__
    return "yes"


def inside():
    return model.graph.initializer[0].data_location == onnx.TensorProto.DEFAULT

print("before: weights inside", inside(), "runs", runs())
quantize_static(model, f"{sys.argv[1]}/int8.onnx", Reader())
print("after: weights inside", inside(), "runs", runs())
PYTHON
seen=$("$folder/venv/bin/python" "$folder/quantize.py" "$folder" 2>/dev/null)
echo "$seen"
[ "$seen" = "before: weights inside True runs yes
after: weights inside False runs Fail" ]
