"""What routines are: modules that become Lightning's where they may be trained; see `eenet.late`."""

from typing import TYPE_CHECKING

from torch import nn

from eenet.late import Late

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule as Module
else:

    class Module(Late, nn.Module):
        """The base of everything that routines are made of."""

        late = "lightning.pytorch.LightningModule"
        _trainer = None
