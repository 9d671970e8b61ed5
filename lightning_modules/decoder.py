"""Exits of a decoder, trained on tokens by the routines for classifiers and tested by generating."""

from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from eenet.decoding import DecoderNetwork, RoutedExecutor
from eenet.decoding.judging import Row, full_rows, generated_rows, routed_rows, summarise_rows
from eenet.decoding.pruning import ranks, size_for
from eenet.errors import UserError
from eenet.gates import StoppingGate
from eenet.network import ExitOutputs
from eenet.rank_zero import rank_zero_only
from eenet.reporting import not_chosen_lines, show, tell, write_json
from lightning_modules.choosing import chosen
from lightning_modules.decoupled import DecoupledExits
from lightning_modules.heading import heading
from lightning_modules.joint import JointExits
from lightning_modules.routine import ExitRoutine

SHARES = (0.95, 0.99, 0.999)
"""Shares of the validation tokens that candidates of the first exit are to hold."""

COLUMNS = {
    "layers_mean": "layers",
    "layers_fraction": "layers %",
    "macs_fraction": "MACs %",
    "agreement": "agreement %",
    "perplexity": "perplexity",
    "rougeL_full": "ROUGE-L, full text %",
    "rougeL": "ROUGE-L, reference %",
}
"""Figures of `summarise_rows` in the table, with their headings."""


class DecoderRoutine(ExitRoutine):
    """Training and validation are those of a classifier whose samples are tokens; a test generates.

    `results.json` then holds `points`, a row of `eenet.decoding.judging.summarise_rows` for the full model and for each
    operating point, and their `texts`. Keys and values of skipped layers are projected.
    """

    network: DecoderNetwork
    reads = "Continuations"
    """The data module whose batches it is trained on."""

    def check_data(self, data: Any) -> None:
        """Give data made of tokens, or of whole texts, the network that reads them.

        Raises:
            UserError: One of them is not for decoders, another tokenizer, too long texts, or stored features.
        """
        texts = self.reads == "ContinuedTexts"
        if not getattr(data, "of_tokens", False) or getattr(data, "of_texts", False) != texts:
            raise UserError(
                "data", type(data).__name__, f"{type(self).__name__} is trained on datamodules.{self.reads}"
            )
        if not isinstance(self.network, DecoderNetwork):
            remedy = "tokens are for DecoderThresholds or DecoderJointExits and a network of class DecoderNetwork"
            raise UserError("model", type(self).__name__, remedy)
        backbone = self.network.backbone
        if data.num_classes > backbone.num_classes:
            problem = f"has {data.num_classes} tokens and the backbone {backbone.num_classes}; name the backbone's own"
            raise UserError("data.tokenizer", type(data.tokenizer).__name__, problem)
        if data.max_length is not None and data.max_length > backbone.max_tokens:
            remedy = f"prompt and new tokens are more than the backbone's {backbone.max_tokens}"
            raise UserError("data.task.max_prompt_tokens", data.max_length, remedy)
        if isinstance(self.network.gate, StoppingGate):
            remedy = "is for finished runs of decoders: eenet calibrate --policy stopping"
            raise UserError("model.network.gate", "StoppingGate", remedy)
        if self.features is not None:
            raise UserError(
                "model.features", self.features.store, "must be off: tokens' features are kept in memory anyway"
            )
        data.network = self.network

    def setup(self, stage: str) -> None:
        """Refuse a network for classifiers."""
        if not isinstance(self.network, DecoderNetwork):
            kind = type(self.network).__name__
            raise UserError("model.network", kind, "must be eenet.decoding.network.DecoderNetwork")
        super().setup(stage)

    def on_validation_epoch_start(self) -> None:
        """Forget the tokens of an earlier validation."""
        super().on_validation_epoch_start()
        self._ranks: list[Tensor] = []

    def record(self, outputs: ExitOutputs, labels: Tensor) -> None:
        """As for classifiers, and how likely the first exit finds each token that follows."""
        super().record(outputs, labels)
        if self.network.exit_stages and not self.trainer.testing:
            self._ranks.append(ranks(outputs.logits[:, 0], labels).cpu())

    def finish_validation(self, records: dict[str, Tensor]) -> None:
        """Log how many candidates of the first exit hold a share of the tokens that follow: `val/vocabulary_99`."""
        super().finish_validation(records)
        if self._ranks and not self.trainer.sanity_checking:
            found = torch.cat(self._ranks)
            sizes = {f"val/vocabulary_{100 * share:g}": float(size_for(found, share)) for share in SHARES}
            self.log_dict(sizes, rank_zero_only=True)

    def on_test_batch_start(self, batch: list[int], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Nothing to check: a batch is numbers of prompts."""

    def on_predict_batch_start(self, batch: list[int], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Nothing to check: a batch is numbers of prompts."""

    def on_test_start(self) -> None:
        """Make the operating points ready."""
        self._prepare_points()
        self._rows: dict[str, list[Row]] = {name: [] for name in ("full", *self._points)}

    def test_step(self, batch: list[int], batch_idx: int) -> None:
        """Generate after some test prompts with the full model and at every operating point."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        sequences, decode = data.prompts("test"), data.decode
        full = full_rows(self.network, sequences, batch, decode)
        self._rows["full"] += full
        for name, (point, network) in self._points.items():
            self._rows[name] += routed_rows(network, point.policy, sequences, batch, decode, full)  # type: ignore[arg-type]

    def on_test_epoch_end(self) -> None:
        """Log the figures, write `results.json` and print the table."""
        full, layers = self._rows["full"], self.network.backbone.num_stages
        rows = {name: summarise_rows(rows, full, layers) for name, rows in self._rows.items()}
        figures = {f"test/{key}/{name}": row[key] for name, row in rows.items() for key in COLUMNS}
        self.log_dict({key: figure for key, figure in figures.items() if figure is not None})
        marked = {name: chosen(rows[name], point) for name, (point, _) in self._points.items()}
        points = {"full": rows["full"]} | dict(zip(self.operating_points(), self.all_rows(marked), strict=True))
        results = {**heading(self, "test"), "prompts": len(full), "points": points, "texts": self._rows}
        self._report(results)

    def predict_step(self, batch: list[int], batch_idx: int) -> Any:
        """Texts at the principal operating point."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        point, network = next(iter(self._points.values()))
        executor = RoutedExecutor(network, point.policy)  # type: ignore[arg-type]
        return [row["text"] for row in generated_rows(executor, data.prompts("test"), batch, data.decode)]

    @rank_zero_only
    def _report(self, results: dict[str, Any]) -> None:
        title = f"{self.method} on {results['prompts']} test prompts of {results['data']}, seed {results['seed']}"
        table = Table("", *COLUMNS.values(), title=title)
        for name, row in results["points"].items():
            if not row.get("chosen", True):
                table.add_row(f"{name} (not chosen)", *["-"] * len(COLUMNS))
                continue
            figures = ((row[key], 1 if key in ("layers_mean", "perplexity") else 100) for key in COLUMNS)
            table.add_row(name, *("-" if figure is None else f"{figure * unit:.2f}" for figure, unit in figures))
        show(table)
        tell(*not_chosen_lines(results["points"].values()))
        if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            path = self.result_file("results.json")
            write_json(path, results)
            tell(f"results: {path}")


class DecoderThresholds(DecoderRoutine, DecoupledExits):
    """CALM (Schuster et al. 2022): a decoder's exits trained alone; tokens leave where they are confident enough.

    Arguments are those of `DecoupledExits`; `supervision` chooses cross-entropies or, beside them, the divergence from
    the full model's distribution. The gate measures `max_probability`, `margin` or `entropy`, or is a `SaturationGate`.
    """


class DecoderJointExits(DecoderRoutine, JointExits):
    """JEI-DNN with tokens as samples: a decoder's exits and gates learned jointly.

    Arguments are those of `JointExits`.
    """
