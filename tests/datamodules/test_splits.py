import hashlib

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from datamodules.splits import (
    check_classes,
    check_labels,
    digest,
    integer_bytes,
    long_tailed,
    single_classes,
    stratified_split,
)
from eenet.errors import UserError

LABELS = np.repeat([0, 1, 2], [50, 30, 20])


def test_a_split_is_disjoint_complete_ascending_and_stratified():
    rows = np.arange(10, 100)
    stay, part = stratified_split(LABELS, rows, 0.1, seed=3, field="data")
    assert sorted([*stay, *part]) == rows.tolist()
    assert stay.tolist() == sorted(stay)
    assert part.tolist() == sorted(part)
    assert np.bincount(LABELS[part]).tolist() == [4, 3, 2]


@pytest.mark.parametrize("seed", range(5))
def test_a_split_is_scikit_learns(seed):
    generator = np.random.default_rng(seed)
    for classes, samples, fraction in ((2, 30, 0.5), (10, 1797, 0.2), (10, 1437, 0.1), (7, 203, 0.33), (40, 900, 0.1)):
        labels = generator.permutation([*np.repeat(range(classes), 2), *generator.integers(classes, size=samples)])
        rows = np.flatnonzero(generator.random(len(labels)) < 0.98)
        rows = rows[~np.isin(labels[rows], single_classes(labels[rows]))]
        expected = train_test_split(rows, test_size=fraction, stratify=labels[rows], random_state=seed)
        for found, wanted in zip(stratified_split(labels, rows, fraction, seed, "data"), expected, strict=True):
            assert found.tolist() == sorted(wanted)


def test_a_seed_that_numpy_does_not_take_is_refused():
    with pytest.raises(UserError, match=r"data\.seed = 4294967296"):
        stratified_split(LABELS, np.arange(100), 0.1, 2**32, "data.validation_fraction")


def test_a_split_is_the_same_on_every_machine():
    _, part = stratified_split(np.tile([0, 1], 10), np.arange(20), 0.2, seed=0, field="data")
    assert part.tolist() == [0, 9, 10, 15]


@pytest.mark.parametrize(
    ("labels", "fraction", "message"),
    [
        (np.array([0, 0, 0, 1]), 0.5, "class 1 has 1; `data.rare: train`"),
        (np.tile(np.arange(10), 3), 0.1, "one side would have 3, fewer than the 10 classes"),
    ],
)
def test_an_impossible_split_names_the_field(labels, fraction, message):
    with pytest.raises(UserError, match=r"data\.validation_fraction = .*" + message):
        stratified_split(labels, np.arange(len(labels)), fraction, 0, "data.validation_fraction")


def test_a_class_of_one_sample_may_stay_and_the_others_are_cut_as_without_it():
    labels = np.array([3, *LABELS, 4])
    stay, part = stratified_split(labels, np.arange(102), 0.1, 3, "data", rare="train")
    assert sorted([*stay, *part]) == list(range(102))
    assert {0, 101} <= set(stay)
    assert stay.tolist() == sorted(stay)
    without = stratified_split(labels, np.arange(1, 101), 0.1, 3, "data")[1]
    assert part.tolist() == without.tolist()


def test_the_long_tail_has_the_sizes_of_the_formula():
    labels = np.tile(np.arange(5), 200)
    rows = long_tailed(labels, 0.1, seed=0)
    assert np.bincount(labels[rows]).tolist() == [200, 112, 63, 36, 20]
    assert len(set(rows)) == len(rows)
    assert rows.tolist() == long_tailed(labels, 0.1, seed=0).tolist()
    assert rows.tolist() != long_tailed(labels, 0.1, seed=1).tolist()
    assert long_tailed(labels, 1.0, seed=0).tolist() == list(range(1000))


@pytest.mark.parametrize(
    ("labels", "problem"),
    [([], "no samples"), ([0, 1, 3], "label 3 of sample 2"), ([0, -1], "label -1 of sample 1")],
)
def test_wrong_labels_name_their_source(labels, problem):
    with pytest.raises(UserError, match=f"some/file.*{problem}"):
        check_labels(np.array(labels, dtype=np.int64), 3, "some/file")


def test_a_class_without_training_samples_is_named():
    with pytest.raises(UserError, match=r"some/file.*class 1 of 3"):
        check_classes(np.array([0, 2]), 3, "some/file")
    check_classes(np.array([0, 2, 1]), 3, "some/file")


def test_the_digest_is_sha256_of_length_prefixed_parts():
    expected = hashlib.sha256(b"\x02" + bytes(7) + b"ab" + bytes(8)).hexdigest()
    assert digest([b"ab", b""]) == expected
    assert integer_bytes(np.array([1, 258], dtype=np.int32)) == b"\x01" + bytes(7) + b"\x02\x01" + bytes(6)
