"""Writing a routed network as a folder that `eenet.runtime.load` runs without the model's code.

Here live the two forms in which a traced step is written, JSON for torch and ONNX, and the folder around them:
`model.json`, `weights.safetensors` and one program per exit.
"""

from eenet.exporting.folder import Description, export_network

__all__ = ["Description", "export_network"]
