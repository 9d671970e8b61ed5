"""Early-exit networks in plain PyTorch: backbones cut into stages, inference modules, gates, policies and a runtime."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eenet.attaching import attach

__version__ = "0.1.0"
__all__ = ["attach"]


def __getattr__(name: str) -> Any:
    if name != "attach":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return import_module("eenet.attaching").attach
