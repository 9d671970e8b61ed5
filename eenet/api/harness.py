"""A decoder as a model of the lm-evaluation-harness."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, TypedDict

from typing_extensions import Unpack

from eenet.api.decoders import open_executor
from eenet.decoding import Fill
from eenet.decoding.executor import Keys, Prompt
from eenet.errors import UserError

if TYPE_CHECKING:
    from eenet.decoding.harness import HarnessModel


class Treatment(TypedDict, total=False):
    """Which layers tokens run, and on which device, as in `eenet.generate`."""

    plan: str
    prompt_layers: Prompt
    keys: Keys
    confidence: float | None
    gates: str | None
    fill: Fill
    point: str | None
    checkpoint: str
    download: bool
    device: str
    dtype: str


def harness(model: str, *, batch_size: int = 1, **treatment: Unpack[Treatment]) -> "HarnessModel":
    """A decoder, or a run's exits, for `lm_eval.simple_evaluate(model=...)`.

    Tokens that are scored run what generated tokens run, see `eenet.decoding.harness.HarnessModel`.

    Args:
        model: As for `eenet.generate`.
        batch_size: Requests that run together.
        treatment: Which layers tokens run; all by default.

    Raises:
        UserError: `lm-eval` is not installed, the model has no end-of-text token, or what `eenet.generate` refuses.
    """
    if find_spec("lm_eval") is None:
        raise UserError("harness", "lm-eval", "is not installed: pip install 'eenet[harness]'")
    if batch_size < 1:
        raise UserError("batch_size", batch_size, "must be at least 1")
    executor, tokenizer, _ = open_executor(model, **treatment)
    if tokenizer.eos_token_id is None:
        raise UserError("model", model, "its tokenizer has no token that ends a text, which the harness asks for")
    from eenet.decoding.harness import HarnessModel

    return HarnessModel(executor, tokenizer, batch_size)
