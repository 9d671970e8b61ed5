"""The packages that are installed beside `eenet`, where a folder of the same name is found before them."""

import sys
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType

PACKAGES = ("datamodules", "lightning_modules")
_BESIDE = Path(__file__).parents[1]


def hidden() -> dict[str, str]:
    """The packages that a folder hides, with that folder."""
    found = {}
    for name in PACKAGES:
        spec = None if name in sys.modules else find_spec(name)
        places = [] if spec is None else [str(Path(place)) for place in spec.submodule_search_locations or ()]
        if places and str(_BESIDE / name) not in places:
            found[name] = places[0]
    return found


def settle() -> list[str]:
    """Load the hidden packages all the same, and look for modules in the folders that hide them too.

    Returns:
        A line for each.
    """
    lines = []
    for name, folder in hidden().items():
        own_package(name).__path__.append(folder)
        alias = {"datamodules": "eenet.data", "lightning_modules": "eenet.lightning"}[name]
        lines.append(
            f"{folder} has the name of a package of eenet, whose classes are {name}.* and {alias}.*; name yours by "
            f"their file, as {name}.my_file.MyClass, or rename the folder"
        )
    return lines


def own_package(name: str) -> ModuleType:
    """One of the packages, whatever hides it."""
    if name in sys.modules and str(_BESIDE / name) in list(sys.modules[name].__path__):
        return sys.modules[name]
    spec = PathFinder.find_spec(name, [str(_BESIDE)])
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
