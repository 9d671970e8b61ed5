"""The packages that are installed beside `eenet`, where a folder or file of the same name is found before them."""

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from itertools import takewhile
from pathlib import Path
from types import ModuleType

ALIASES = {"datamodules": "eenet.data", "lightning_modules": "eenet.lightning"}
_BESIDE = Path(__file__).parents[1]


def settle() -> list[str]:
    """Load the packages that something hides, and look for modules in the folders of their names too.

    Returns:
        A line for each that was hidden until now.
    """
    lines = []
    before = list(takewhile(lambda entry: Path(entry).absolute() != _BESIDE, sys.path))
    for name, alias in ALIASES.items():
        spec = PathFinder.find_spec(name, before)
        if spec is None:
            continue
        known, package = sys.modules.get(name), own_package(name)
        folders = [str(Path(folder).absolute()) for folder in spec.submodule_search_locations or ()]
        package.__path__.extend(folder for folder in folders if folder not in package.__path__)
        if package is known or spec.origin is None:  # a folder without `__init__.py` hides nothing
            continue
        remedy = f"name yours by their file, as {name}.my_file.MyClass, or rename the folder"
        lines.append(
            f"{folders[0] if folders else spec.origin} has the name of a package of eenet, whose classes are {name}.* "
            f"and {alias}.*; {remedy if folders else 'rename it'}"
        )
    return lines


def own_package(name: str) -> ModuleType:
    """One of the packages, whatever hides it; it takes over the names of one that was imported in its place."""
    found = sys.modules.get(name)
    if found is not None and str(_BESIDE / name) in getattr(found, "__path__", ()):
        return found
    spec = PathFinder.find_spec(name, [str(_BESIDE)])
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    for key, value in vars(found).items() if found is not None else ():
        if key not in module.__all__:  # of which not all are there before they are used
            vars(module).setdefault(key, value)
    return module
