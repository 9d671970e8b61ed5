"""What figures were measured on."""

import os
import platform


def machine() -> str:
    """System, cores that this process may use, GPU and torch.

    Example:
        >>> machine().count(", ")
        3
    """
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    cores = len(os.sched_getaffinity(0))
    return f"{platform.system()} {platform.machine()}, {cores} cores, {device}, torch {torch.__version__}"
