"""Any classifier as a staged backbone: its graph captured, cut where few tensors are needed later, and proved."""

from eenet.backbones.traced.backbone import Traced

__all__ = ["Traced"]
