"""Says on every page which version of eenet it describes."""

from typing import Any

from eenet import __version__


def on_config(config: Any) -> Any:
    """Put it into the foot of the pages."""
    config["copyright"] = f"eenet {__version__}, Apache-2.0"
    return config
