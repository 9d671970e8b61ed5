"""Figures of generated texts."""

import pytest

from eenet.decoding.judging import Row, summarise_rows


def make_row(layers: list[int], macs: int, followed: int, nll: float) -> Row:
    return {
        "tokens": [5] * (len(layers) + 1),
        "layers": layers,
        "macs": macs,
        "followed": followed,
        "agreeing": followed,
        "nll": nll,
        "rougeL": 0.5,
        "rougeL_full": 1.0,
    }


def test_texts_of_one_token_have_no_figures_of_later_ones() -> None:
    rows = [make_row([], 0, 0, 0.0)] * 2
    found = summarise_rows(rows, rows, 4)
    missing = {"layers_mean", "layers_fraction", "macs_mean", "macs_fraction", "agreement", "perplexity"}
    assert {key for key, figure in found.items() if figure is None} == missing
    assert (found["rougeL"], found["rougeL_full"], found["same_text"]) == (0.5, 1.0, 1.0)


def test_figures_of_tokens_by_hand() -> None:
    rows, full = [make_row([1, 3], 40, 2, 0.0), make_row([], 0, 0, 0.0)], [make_row([4, 4], 80, 2, 0.0)] * 2
    found = summarise_rows(rows, full, 4)
    assert (found["layers_mean"], found["layers_fraction"], found["macs_mean"]) == (2, 0.5, 20)
    assert (found["macs_fraction"], found["agreement"]) == (0.5, 1)
    assert found["perplexity"] == pytest.approx(1)
