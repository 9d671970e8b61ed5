"""The routines of `lightning_modules`, by a name that no folder of a user's project hides; see `eenet.beside`."""

from typing import Any

from eenet.beside import own_package


def __getattr__(name: str) -> Any:
    return getattr(own_package("lightning_modules"), name)


def __dir__() -> list[str]:
    return own_package("lightning_modules").__all__
