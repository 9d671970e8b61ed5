"""Early-exit networks in plain PyTorch: backbones cut into stages, inference modules, gates, policies and a runtime."""

__version__ = "0.1.0"
