"""Samples for `node.mjs` and what Python makes of them: `python benchmarks/node.py FOLDER samples.json`.

FOLDER is from `eenet export --format onnx`, of a network for images; samples are random numbers.
"""

import sys
from pathlib import Path

import torch

from eenet.reporting import write_json
from eenet.runtime import load

SAMPLES = 256


def main(folder: str, output: str) -> None:
    """Write shape, samples, and the exits and logits that ONNX Runtime in Python finds."""
    torch.manual_seed(0)
    runtime = load(folder)
    (spec,) = runtime.manifest.inputs
    shape = [size for size in spec.shape if size is not None]
    inputs = torch.randn(SAMPLES, *shape)
    routed = runtime(inputs)
    found = {"inputs": inputs, "exits": routed.exits, "logits": routed.logits}
    write_json(Path(output), {"shape": shape, **{name: values.flatten().tolist() for name, values in found.items()}})
    print(f"{SAMPLES} samples leave at {routed.exits.bincount().tolist()}: {output}")


if __name__ == "__main__":
    main(*sys.argv[1:])
