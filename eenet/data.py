"""The data modules of `datamodules`, by a name that no folder of a user's project hides; see `eenet.beside`."""

from typing import Any

from eenet.beside import own_package


def __getattr__(name: str) -> Any:
    return getattr(own_package("datamodules"), name)


def __dir__() -> list[str]:
    return own_package("datamodules").__all__
