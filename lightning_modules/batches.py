"""What a routine asks of its data: batches of inputs and class numbers, and the classes' weights in the loss."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from eenet.backbones import StagedBackbone
from eenet.backbones.base import to_device
from eenet.backbones.preprocessing import model_preprocessing
from eenet.errors import UserError
from eenet.network import EarlyExitNetwork
from eenet.objectives import ClassWeights, balanced_weights, check_class_weights
from eenet.preprocessing import Preprocessing
from eenet.rank_zero import rank_zero_warn
from eenet.runs import IDENTITY, RunFolder, read_checkpoint
from lightning_modules.base import Module

PAIR = (
    "must be a pair (inputs, labels); return one from the data set's __getitem__, make it in a collate_fn, "
    "or name the keys of dicts in datamodules.OwnData"
)
CLASSES = "is not supported: a sample has one class, and batches of labels are class numbers (batch,), int64"


def settle_preprocessing(routine: Any, data: Any, saved: Mapping[str, Any] | None = None) -> None:
    """Give images the preprocessing that belongs to the weights, before anything is read.

    Args:
        routine: With the network, and perhaps the run that its backbone comes from.
        data: What `settle` is asked of, if it has that.
        saved: The checkpoint that is continued or opened.

    Raises:
        UserError: The data are to be preprocessed otherwise than those that a checkpoint was trained on.
    """
    if not hasattr(data, "settle"):
        return
    recorded = (saved or {}).get(IDENTITY, {}).get("preprocessing")
    if recorded is None and saved is None and routine.backbone_checkpoint is not None:
        path = Path(routine.backbone_checkpoint)
        file = RunFolder(path).last if path.is_dir() else path
        if file.is_file():
            found = read_checkpoint(file, "model.backbone_checkpoint", str(path))
            recorded = found[IDENTITY].get("preprocessing")
    backbone = routine.network.backbone
    own = None if recorded is None else Preprocessing.from_dict(recorded)
    data.settle(own, model_preprocessing(getattr(backbone, "backbone", backbone)), backbone.input_shape)


def first_inputs(loader: Iterable[Any], batches: int, network: EarlyExitNetwork) -> Iterator[Any]:
    """The inputs of the first batches, without labels, where the network is."""
    return (to_device(inputs, network) for inputs, _ in islice(loader, batches))


def check_fit(backbone: StagedBackbone, data: Any) -> None:
    """Refuse a backbone that cannot read the data.

    Raises:
        UserError: Another number of classes, another input shape, texts for images, or texts that may be too long.
    """
    if data.num_classes is None:  # data of one's own, whose batches are checked when they come
        return
    if backbone.num_classes != data.num_classes:
        raise UserError("backbone.num_classes", backbone.num_classes, f"{data.name} has {data.num_classes} classes")
    if (backbone.input_shape is None) != (data.input_shape is None):
        kind = "texts" if data.input_shape is None else "images"
        raise UserError("backbone", type(backbone).__name__, f"{data.name} holds {kind}, which it does not read")
    if backbone.input_shape is not None and tuple(backbone.input_shape) != data.input_shape:
        raise UserError(
            "backbone.input_shape",
            backbone.input_shape,
            f"{data.name} gives {data.input_shape} (channels, height, width); set the backbone's image_size and "
            "in_channels, or the data's image_size and channels",
        )
    if None not in (data.max_length, backbone.max_tokens) and data.max_length > backbone.max_tokens:
        raise UserError("data.max_length", data.max_length, f"the backbone takes {backbone.max_tokens} tokens at most")


class DataModel(Module):
    """Checks every batch before a step is made of it, and finds the classes' weights before a training.

    Attributes:
        class_weights: Of the losses that labels teach: `none`, `balanced` (`n / (C n_c)` in the training split), or a
            list of a weight for each class.
        class_weight: The weights, `(classes,)`; `None` where all are alike, and outside a training.
        share: What this process has of a training batch, as a multiple of the mean over all processes.
    """

    network: EarlyExitNetwork
    class_weights: ClassWeights = "none"
    class_weight: Tensor | None = None
    share: Tensor | None = None

    def meet(self, data: Any, saved: Mapping[str, Any] | None = None) -> None:
        """Settle the preprocessing, as a checkpoint has it; a `UserError` for data that the network cannot read."""
        settle_preprocessing(self, data, saved)
        self.check_data(data)

    def check_data(self, data: Any) -> None:
        """Refuse data that the network cannot read.

        Raises:
            UserError: Another number of classes, another input shape, or tokens for a classifier.
        """
        if getattr(data, "of_tokens", False):
            remedy = "tokens are for DecoderThresholds or DecoderJointExits and a network of class DecoderNetwork"
            raise UserError("model", type(self).__name__, remedy)
        check_fit(self.network.backbone, data)

    @property
    def mixed(self) -> bool:
        """Whether steps run under autocast, which reads inputs of half precision beside float32 weights."""
        return str(self.trainer.precision).endswith("mixed")

    def weigh_classes(self, weights: ClassWeights) -> None:
        """Take the weights that the user asks for; a `UserError` where they cannot be used."""
        self.class_weights = check_class_weights(weights, self.network.backbone.num_classes)

    def on_fit_start(self) -> None:
        """Say where nothing will be trained, and find the classes' weights.

        Raises:
            UserError: Balanced weights of data that have no training labels to count.
        """
        super().on_fit_start()
        for limit in ("limit_train_batches", "max_steps"):
            if getattr(self.trainer, limit) == 0:
                rank_zero_warn(f"trainer.{limit} = 0: nothing is trained, the weights stay as they begin")
        data: Any = getattr(self.trainer, "datamodule", None)
        if self.class_weights == "none":
            return
        if getattr(data, "sampler", None) == "balanced":
            rank_zero_warn(
                "model.class_weights weigh classes that data.sampler balances already; one of them is enough"
            )
        if self.class_weights != "balanced":
            self.class_weight = torch.tensor(self.class_weights, device=self.device)
            return
        if not hasattr(data, "dataset"):
            problem = f"{type(data).__name__} has no training labels to count; give a list of a weight for each class"
            raise UserError("model.class_weights", self.class_weights, problem)
        labels = torch.from_numpy(data.dataset("train").labels)
        self.class_weight = balanced_weights(labels, self.network.backbone.num_classes).to(self.device)

    def on_train_start(self) -> None:
        """Refuse a last batch of one sample now, where a loader tells its size, rather than at the end of the epoch."""
        super().on_train_start()
        for loader in pytree.tree_leaves(self.trainer.train_dataloader):
            if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset) or loader.drop_last:
                continue
            if type(loader.batch_sampler) is BatchSampler and self.trainer.num_training_batches == len(loader):
                self.check_size(len(loader.sampler) % loader.batch_sampler.batch_size)  # type: ignore[arg-type]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Refuse a batch that cannot be trained on."""
        check_batch(batch, self.network.backbone, batch_idx, self.mixed)
        labels = batch[1]
        self.check_size(len(labels))
        if (processes := self.trainer.world_size) > 1:
            own = torch.tensor(float(len(labels))) if self.class_weight is None else self.class_weight[labels].sum()
            own = own.to(self.device)
            self.share = processes * own / self.trainer.strategy.reduce(own.clone(), reduce_op="sum")

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Weigh the mean loss of a process by its samples, so that several train as one on all of their samples."""
        super().backward(loss if self.share is None else loss * self.share, *args, **kwargs)

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Refuse a batch that cannot be judged."""
        check_batch(batch, self.network.backbone, batch_idx, self.mixed)

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Refuse a batch that cannot be judged."""
        check_batch(batch, self.network.backbone, batch_idx, self.mixed)

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Refuse a batch without inputs that can be read."""
        check_inputs(batch, self.network.backbone, self.mixed)

    def check_size(self, samples: int) -> None:
        """Raise a `UserError` where a training batch of one sample is normalised over."""
        if samples == 1 and normalises_batches(self.network):
            problem = "training batches normalised over their samples need two or more; a loader with a last one of one"
            raise UserError("data.batch_size", samples, f"{problem} takes drop_last=True")


def normalises_batches(network: nn.Module) -> bool:
    """Whether a batch normalisation of a network is in training mode."""
    return any(isinstance(module, _BatchNorm) and module.training for module in network.modules())


def check_batch(batch: Any, backbone: StagedBackbone, batch_idx: int = 0, mixed: bool = False) -> None:
    """Refuse a batch that is not one of inputs and class numbers.

    Args:
        batch: What a loader gives.
        backbone: Reads the inputs.
        batch_idx: Of the batch in its epoch. Classes are compared with their number in the first batch and, where that
            costs no synchronisation, in all.
        mixed: See `check_inputs`.

    Raises:
        UserError: The batch is no pair, the labels are no class numbers, or the inputs do not fit the backbone.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise UserError("data", describe(batch), f"a batch {PAIR}")
    labels, samples = batch[1], check_inputs(batch, backbone, mixed)
    if samples == 0:
        raise UserError("data", describe(batch[0]), "a batch holds no samples; leave it out in the data")
    check_class_numbers(labels, samples, backbone.num_classes)
    if batch_idx == 0 or labels.device.type == "cpu":
        low, high = (value.item() for value in labels.aminmax())
        if low < 0 or high >= backbone.num_classes:
            problem = f"a label is not one of the {backbone.num_classes} classes, counted from 0; renumber the labels"
            raise UserError("data", low if low < 0 else high, f"{problem} or set the backbone's num_classes")


def check_inputs(batch: Any, backbone: StagedBackbone, mixed: bool = False) -> int:
    """Refuse a batch whose first part a backbone cannot read.

    Args:
        batch: What a loader gives; what comes after the inputs is not looked at.
        backbone: Reads the inputs.
        mixed: Whether it runs under autocast.

    Returns:
        The number of inputs.

    Raises:
        UserError: The batch is no tuple or list, or its inputs hold no tensor or do not fit the backbone.
    """
    if not isinstance(batch, tuple | list) or not batch:
        raise UserError("data", describe(batch), f"a batch {PAIR}")
    inputs, shape = batch[0], backbone.input_shape
    rows = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    if not rows:
        raise UserError("data", describe(inputs), "the inputs of a batch hold no tensor")
    if isinstance(inputs, dict) and shape is not None:
        wanted = f"the inputs of a batch must be one tensor (batch, {', '.join(map(str, shape))}), not a mapping"
        raise UserError("data", describe(inputs), f"{wanted}; take it out in the data set or a collate_fn")
    if isinstance(inputs, Tensor) and shape is not None:
        if tuple(inputs.shape[1:]) != tuple(shape):
            problem = f"a batch's inputs must be (batch, {', '.join(map(str, shape))}), as the backbone is made for"
            raise UserError("data", describe(inputs), problem)
        fits = inputs.dtype == torch.float32 or (mixed and inputs.dtype in (torch.float16, torch.bfloat16))
        single = next(backbone.parameters()).dtype == torch.float32
        if (single and not fits) or not inputs.is_floating_point():
            raise UserError("data", describe(inputs), "a batch's inputs must be float32; make them so in the data set")
    return len(rows[0])


def check_class_numbers(labels: Any, samples: int, num_classes: int) -> None:
    """Refuse labels that are not one whole number, int64, for each sample of a batch.

    Args:
        labels: `(batch,)`.
        samples: Number of inputs.
        num_classes: Number of classes.

    Raises:
        UserError: With what makes class numbers of them, where that is known.
    """
    wanted = f"a batch's labels must be {samples} class numbers from 0 to {num_classes - 1}, int64"
    if not isinstance(labels, Tensor):
        raise UserError("data", describe(labels), wanted)
    if labels.ndim == 2 and labels.shape[1] > 1 and bool((labels != 0).sum(1).ne(1).any()):
        raise UserError("data", describe(labels), f"several classes for a sample (multi-label) {CLASSES}")
    if labels.is_floating_point() and bool((labels != labels.round()).any()):
        raise UserError("data", describe(labels), f"predicting a number (regression) {CLASSES}")
    if labels.shape == (samples, num_classes) and num_classes > 1:
        raise UserError("data", describe(labels), f"{wanted}; of one-hot rows, labels.argmax(1) are such")
    if labels.shape != (samples,):
        remedy = "; labels.squeeze(1) are such" if labels.shape == (samples, 1) else ""
        raise UserError("data", describe(labels), wanted + remedy)
    if labels.dtype != torch.int64:
        raise UserError("data", describe(labels), f"{wanted}; labels.long() are such if they hold whole numbers")


def describe(value: Any) -> str:
    """A part of a batch in a few words.

    Example:
        >>> describe({"x": 1, "y": 2}), describe(torch.zeros(2, 3)), describe([1, 2, 3])
        ('dict of x, y', 'float32 (2, 3)', 'list of 3')
    """
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    kind = type(value).__name__
    if isinstance(value, dict):
        return f"{kind} of {', '.join(map(str, value))}"
    return f"{kind} of {len(value)}" if isinstance(value, tuple | list) else kind
