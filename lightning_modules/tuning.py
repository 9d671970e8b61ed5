"""Fine-tuning a decoder to run some of its layers: for one plan, or for any of several drawn batch by batch."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from eenet.backbones import Gpt
from eenet.backbones.tuned import Tuned, adapters, add_adapter, model_digest, save_tuned
from eenet.decoding import Executor, parse_plan
from eenet.decoding.executor import Prompt, check_treatment
from eenet.decoding.layerskip import ExitCurriculum, exit_weights, exits_loss
from eenet.decoding.sequences import TextBatch
from eenet.decoding.tuning import PlanDraws, plan_loss
from eenet.described import describe
from eenet.errors import UserError
from lightning_modules.schedules import OptimizerCallable
from lightning_modules.texts import TextRoutine

Kind = Literal["full", "lora"]
FOLDER = "tuned"
"""The folder, in a run's, of what was tuned."""


class PlanTuning(TextRoutine):
    """Language-model training of what follows the prompts, with a plan's layers alone (arXiv 2410.20022).

    With one plan this is the authors' fine-tuning per budget; with several, or with drawn ones, each batch runs another
    plan, as in stochastic depth (Huang et al. 2016) and LayerSkip (Elhoushi et al. 2024), and one model serves all
    budgets. With `exits` every layer's state also learns to predict through the model's own norm and head; with
    `plans: ["drop:RATE"]` that is LayerSkip's recipe.

    Layers that a batch skips are frozen: what a prompt runs through them gives their weights no gradient.

    When the training ends, the run folder gets `tuned`: the tuned weights beside the name of their base model, or a
    LoRA adapter that peft reads too. `Gpt`, and with it every command, takes the run folder for a model.

    Args:
        backbone: The decoder, with its language-model head (`task: tokens`) and pretrained weights of `float32`.
        plans: What a batch's plan is drawn from, see `eenet.decoding.tuning.PlanDraws`.
        judged: Plans that validation and test judge; by default those of `plans` that are none to draw.
        tuning: `full` weights, of everything but layers outside of all plans, or a `lora` adapter of the plans' layers.
        rank: Of the adapter.
        alpha: Of the adapter: it is scaled by `alpha / rank`.
        prompt: Which layers a prompt's tokens run: `full` for all, or `plan`.
        exits: Which layers' losses count beside the last one's: `all`, `rotational:R` or `gradual`, see
            `eenet.decoding.layerskip.ExitCurriculum`; by default none.
        exit_scale: How much they count, see `eenet.decoding.layerskip.exit_weights`.
        optimizer: Makes the optimizer; its learning rate is the schedule's peak.
        warmup: Share of all steps over which the learning rate rises to its peak.

    Raises:
        UserError: A decoder without pretrained weights or of another precision, plans that it cannot run, nothing to
            judge, or peft is missing.
    """

    method = "plan_tuning"

    def __init__(
        self,
        backbone: Gpt,
        plans: list[str],
        judged: list[str] | None = None,
        tuning: Kind = "full",
        rank: int = 8,
        alpha: int = 16,
        prompt: Prompt = "full",
        exits: str | None = None,
        exit_scale: float = 1.0,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-4, weight_decay=0.0),
        warmup: float = 0.1,
    ) -> None:
        super().__init__(backbone, optimizer, warmup)
        base = describe(backbone)["init_args"].get("pretrained")
        if base is None:
            raise UserError("backbone.pretrained", None, "names the model whose weights are tuned")
        if tuning not in get_args(Kind):
            raise UserError("model.tuning", tuning, f"must be {' or '.join(get_args(Kind))}")
        if rank < 1:
            raise UserError("model.rank", rank, "must be at least 1")
        if backbone.model.dtype != torch.float32:
            problem = "tuned weights are float32; trainer.precision: bf16-mixed is quicker"
            raise UserError("backbone.dtype", str(backbone.model.dtype), problem)
        check_treatment(prompt, "projected")
        self.draws = PlanDraws(tuple(plans), backbone.num_stages)
        self.judged = [parse_plan(text, backbone.num_stages) for text in judged or ()] or self.draws.plans
        if not self.judged:
            raise UserError("model.judged", judged, "name a plan to validate with, as all of `plans` are drawn")
        self.prompt, self.exit_scale = prompt, exit_scale
        if exit_scale <= 0:
            raise UserError("model.exit_scale", exit_scale, "must be above 0; leave `exits` out for no losses of exits")
        self.exits = None if exits is None else ExitCurriculum.parse(exits, backbone.num_stages)
        self.tuned = Tuned(
            base, model_digest(backbone.model), backbone.num_stages, self.draws.layers, tuple(plans), tuning
        )
        if tuning == "lora":
            backbone.requires_grad_(False)
            add_adapter(backbone.model, self.draws.layers, rank, alpha)
        for number, layer in enumerate(backbone.layers):
            if number not in self.draws.layers:
                layer.requires_grad_(False)

    def cross_entropies(self, texts: TextBatch) -> dict[str, Tensor]:
        """Cross-entropies under every judged plan."""
        return {str(plan): plan_loss(self.gpt, texts, plan, self.prompt) for plan in self.judged}

    @cached_property
    def _executors(self) -> dict[str, Executor]:
        return {str(plan): Executor(self.gpt, plan, self.network.decoder_costs, self.prompt) for plan in self.judged}

    def executors(self) -> Mapping[str, Executor]:
        """What generates with every judged plan."""
        return self._executors

    @contextmanager
    def merged(self) -> Iterator[None]:
        """While the adapter is part of the weights."""
        held = adapters(self.gpt.model).values()
        for module in held:
            module.merge()
        yield
        for module in held:
            module.unmerge()

    def training_step(self, batch: TextBatch, batch_idx: int) -> Tensor:
        """Mean cross-entropy of what follows the prompts under a plan that is drawn, with that of the open exits."""
        plan = self.draws.draw(lambda: torch.rand(()).item())
        if self.exits is None:
            loss = plan_loss(self.gpt, batch, plan, self.prompt).mean()
        else:
            done = self.global_step / max(int(self.trainer.estimated_stepping_batches), 1)
            weights = exit_weights(self.gpt.num_stages, self.exit_scale, self.exits.open(self.global_step, done))
            loss = exits_loss(self.gpt, batch, plan, weights, self.prompt)
        self.log_losses("tuning", batch_idx, loss)
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say what the weights are for."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["base_digest"] = self.tuned.base_digest

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise a `UserError` for weights that were tuned on another base model."""
        super().on_load_checkpoint(checkpoint)
        if checkpoint["base_digest"] != self.tuned.base_digest:
            problem = "is not what the checkpoint's weights were tuned on; take the model as it was"
            raise UserError("backbone.pretrained", self.tuned.base, problem)

    def on_train_end(self) -> None:
        """Write what was tuned."""
        super().on_train_end()
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            save_tuned(self.gpt.model, self.tuned, Path(self.run_folder) / FOLDER)
