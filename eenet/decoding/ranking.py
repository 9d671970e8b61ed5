"""How much each layer of a decoder moves the hidden state, which ranks the layers that a plan may drop."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from eenet.backbones.gpt import Gpt


@torch.no_grad()
def layer_movement(gpt: Gpt, batches: Iterable[Mapping[str, Tensor]]) -> list[float]:
    """Measure on a calibration text how far each layer turns the hidden state that it is given.

    The score of a layer is 1 minus the cosine similarity of its input and output, averaged over tokens: what its
    removal alone does to the hidden state at its place (the block influence of ShortGPT, Men et al. 2024).

    Args:
        gpt: The decoder, in evaluation mode.
        batches: Tokenized texts, `input_ids` and `attention_mask`, padded on either side.

    Returns:
        One score for each layer, from 0 to 2; `ranked_skipping` drops the lowest.
    """
    totals, tokens = [0.0] * gpt.num_stages, 0
    for batch in batches:
        state = gpt.embed(batch)
        real = state["attention_mask"].bool()
        tokens += int(real.sum())
        for layer in range(gpt.num_stages):
            before, state = state["hidden"][real], gpt.run_stage(layer, state)
            movement = 1 - functional.cosine_similarity(before.double(), state["hidden"][real].double(), dim=-1)
            totals[layer] += float(movement.sum())
    return [total / tokens for total in totals]
