"""Filling the stores of features that a training reads, before it and without a trainer."""

from dataclasses import replace
from typing import Any

from eenet.cluster import Cluster
from eenet.errors import UserError
from eenet.features import FeatureOptions
from lightning_modules.batches import first_inputs
from lightning_modules.checkpoints import load_backbone
from lightning_modules.routine import ExitRoutine


def extract(routine: ExitRoutine, data: Any, cluster: Cluster | None = None) -> None:
    """Extract the features of training and validation samples to the disk, where `fit` finds them.

    Args:
        routine: One with a frozen backbone; its `features` say in which folder, of how many views and in what dtype.
        data: Its data.
        cluster: Extracts in the place of this process.

    Raises:
        UserError: The routine trains its backbone, the data have no stores, or there is no such cluster.
    """
    if not routine.freeze_backbone:
        raise UserError("model", type(routine).__name__, "trains its backbone, whose features change")
    if not hasattr(data, "keep_features"):
        raise UserError("data", type(data).__name__, "have no store of features, as they are no `SplitData`")
    routine.meet(data)
    data.prepare_data()
    data.setup("fit")
    network = routine.network
    if routine.backbone_checkpoint is not None:
        load_backbone(network.backbone, routine.backbone_checkpoint)
    network.prepare(lambda split, batches: first_inputs(data.loader(split), batches, network))
    data.keep_features(network, replace(routine.features or FeatureOptions(), store="disk"))
    data.kept.fill(cluster)
