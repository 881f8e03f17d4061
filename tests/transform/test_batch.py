"""The batch moves, pickles and maps whole, in pure torch."""

from __future__ import annotations

import pickle
import sys

import pytest
import torch
import torch.utils._pytree as pytree
from hypothesis import given
from hypothesis import strategies as st

from lightning_intune.dedup import Batch, KeyedJagged
from lightning_intune.errors import ConfigError


def jagged(rows_by_key: dict[str, list[list[int]]]) -> KeyedJagged:
    values = [value for rows in rows_by_key.values() for row in rows for value in row]
    lengths = [len(row) for rows in rows_by_key.values() for row in rows]
    return KeyedJagged(list(rows_by_key), torch.tensor(values), torch.tensor(lengths, dtype=torch.int32))


def batch(*, weighted: bool = True) -> Batch:
    return Batch(
        dense=torch.ones(2, 3),
        sparse=jagged({"a": [[1, 2], []], "b": [[3], [4]]}),
        labels=torch.zeros(2, 1),
        weights=torch.ones(2) if weighted else None,
    )


JAGGED = st.integers(1, 4).flatmap(
    lambda rows: st.dictionaries(
        st.text(min_size=1, max_size=3),
        st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=rows, max_size=rows),
        min_size=1,
        max_size=4,
    )
)


@given(rows_by_key=JAGGED)
def test_each_key_gives_back_its_rows(rows_by_key: dict[str, list[list[int]]]) -> None:
    made = jagged(rows_by_key)
    assert made.stride() == len(next(iter(rows_by_key.values())))
    for key, rows in rows_by_key.items():
        values, lengths = made[key]
        assert [part.tolist() for part in torch.split(values, lengths.tolist())] == rows


@given(rows_by_key=JAGGED)
def test_torchrec_sees_the_same_rows(rows_by_key: dict[str, list[list[int]]]) -> None:
    pytest.importorskip("torchrec", exc_type=ImportError)
    made = jagged(rows_by_key)
    theirs = made.to_kjt()
    assert theirs.keys() == made.keys()
    assert theirs.stride() == made.stride()
    assert theirs.offsets().tolist() == made.offsets().tolist()
    for key, rows in rows_by_key.items():
        assert [row.tolist() for row in theirs[key].to_dense()] == rows


def test_lengths_that_do_not_divide_over_the_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="3 lengths do not divide over 2 keys"):
        KeyedJagged(["a", "b"], torch.zeros(3), torch.ones(3))


def test_an_unknown_key_names_the_known_ones() -> None:
    with pytest.raises(KeyError, match=r"'c' is not among the keys \['a', 'b'\]"):
        batch().sparse["c"]


def test_a_batch_shows_its_shapes() -> None:
    assert repr(batch(weighted=False)) == (
        "Batch(dense=[2, 3] float32, sparse=KeyedJagged(keys=['a', 'b'], values=[4] int64, stride=2), "
        "labels=[2, 1] float32, weights=None)"
    )


def test_its_length_is_its_rows_and_its_bytes_are_the_tensors() -> None:
    assert len(batch()) == 2
    # dense 2*3*4, values 4*8, lengths 4*4, labels 2*4, weights 2*4
    assert batch().nbytes == 24 + 32 + 16 + 8 + 8


@pytest.mark.parametrize("weighted", [True, False])
def test_a_batch_survives_pickling(weighted: bool) -> None:
    assert repr(pickle.loads(pickle.dumps(batch(weighted=weighted)))) == repr(batch(weighted=weighted))


@pytest.mark.parametrize("weighted", [True, False])
def test_tree_map_reaches_every_tensor_and_builds_a_batch_again(weighted: bool) -> None:
    doubled = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor * 2, batch(weighted=weighted))
    assert isinstance(doubled, Batch)
    assert doubled.sparse.values().tolist() == [2, 4, 6, 8]
    assert doubled.sparse.lengths().tolist() == [4, 0, 2, 2]
    assert doubled.dense.sum() == 12
    assert (doubled.weights is None) != weighted


def test_it_moves_whole_to_another_device() -> None:
    moved = batch().to("meta", non_blocking=True)
    leaves = [leaf for leaf in pytree.tree_leaves(moved) if leaf is not None]  # it has no loss scale
    assert len(leaves) == 5
    assert {leaf.device.type for leaf in leaves} == {"meta"}


def test_lightning_moves_it_without_being_told_how() -> None:
    from lightning.fabric.utilities import move_data_to_device

    assert move_data_to_device(batch(), torch.device("meta")).sparse.values().device.type == "meta"


@pytest.mark.gpu
def test_pinned_memory_copies_on_a_stream_of_its_own() -> None:
    pinned = batch().pin_memory()
    assert all(leaf.is_pinned() for leaf in pytree.tree_leaves(pinned))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        moved = pinned.to("cuda", non_blocking=True)
    torch.cuda.current_stream().wait_stream(stream)
    moved.record_stream(torch.cuda.current_stream())
    assert moved.sparse["a"][0].tolist() == [1, 2]


def test_without_torchrec_all_but_the_conversion_works_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchrec.sparse.jagged_tensor", None)
    made = batch().sparse
    with pytest.raises(ConfigError, match=r"(?s)TorchRec cannot be imported.*Install `lightning-intune\[torchrec\]`"):
        made.to_kjt()
