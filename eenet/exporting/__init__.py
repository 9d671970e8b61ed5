"""Writing a routed network as a folder that `eenet.runtime.load` runs without the model's code.

Here live the two forms in which a traced step is written, JSON for torch and ONNX, the one ONNX file that is composed
of steps and routes by itself, and the folder around them.
"""

from eenet.exporting.folder import Description, export_network, set_rules

__all__ = ["Description", "export_network", "set_rules"]
