from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from hypothesis import given
from hypothesis import strategies as st

from lightning_intune.dedup import Batch, InverseKeyedJaggedTensor, KeyedJagged
from lightning_intune.dedup.detect import deduplicate
from lightning_intune.errors import ConfigError
from tests.dedup.ragged_data import jagged_batches, jagged_of, rows_of, sessions

torchrec = pytest.importorskip("torchrec.sparse.jagged_tensor", exc_type=ImportError)

BATCHES = jagged_batches()


def grouping(data: st.DataObject, jagged: KeyedJagged) -> list[list[str]]:
    """Some of the keys, in groups."""
    places = [data.draw(st.integers(-1, 2), label=key) for key in list(jagged.keys())]
    return [[key for key, place in zip(jagged.keys(), places, strict=True) if place == group] for group in range(3)]


def same_rows(one: Any, other: KeyedJagged) -> None:
    assert list(one.keys()) == other.keys()
    for key in list(other.keys()):
        assert torch.equal(one[key][0], other[key][0])
        assert torch.equal(one[key][1], other[key][1])
        assert one[key][0].dtype == other[key][0].dtype


@given(jagged=BATCHES, data=st.data())
def test_what_is_stored_once_reads_as_it_was_by_both_engines(jagged: KeyedJagged, data: st.DataObject) -> None:
    groups = grouping(data, jagged)
    compiled = deduplicate(jagged, groups, engine="numba")
    plain = deduplicate(jagged, groups, engine="arrow")
    same_rows(compiled, jagged)
    assert compiled.shapes() == plain.shapes()
    for one, other in zip(pytree.tree_leaves(compiled), pytree.tree_leaves(plain), strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
    for group, keys in enumerate(compiled.groups()):
        unique = compiled.unique(group)
        rows = list(zip(*(map(str, rows_of(unique.jagged, key)) for key in keys), strict=True))
        assert unique.inverse is None or len(set(rows)) == len(rows)


@given(jagged=BATCHES, data=st.data())
def test_every_conversion_goes_round(jagged: KeyedJagged, data: st.DataObject) -> None:
    ikjt = InverseKeyedJaggedTensor.from_jagged(jagged, grouping(data, jagged))
    same_rows(pickle.loads(pickle.dumps(ikjt)), jagged)
    leaves, spec = pytree.tree_flatten(ikjt)
    same_rows(pytree.tree_unflatten(leaves, spec), jagged)
    same_rows(ikjt.share_shifted(), jagged)
    same_rows(ikjt.share_shifted().share_shifted(), jagged)
    expanded, weights = ikjt.to_jagged()
    assert torch.equal(expanded.values(), jagged.values())
    assert torch.equal(expanded.lengths(), jagged.lengths())
    assert weights is None
    kjt = ikjt.share_shifted().to_kjt()
    assert torch.equal(kjt.values(), jagged.values())
    same_rows(InverseKeyedJaggedTensor.from_kjt(kjt), jagged)
    back = InverseKeyedJaggedTensor.from_kjt(ikjt.to_vbe_kjt())
    assert sorted(back.keys()) == sorted(jagged.keys())
    for key in list(jagged.keys()):
        assert torch.equal(back[key][0], jagged[key][0])
    assert back.stride() == jagged.stride()


@given(jagged=jagged_batches((torch.int64,)), data=st.data())
def test_weights_are_part_of_a_row(jagged: KeyedJagged, data: st.DataObject) -> None:
    count = len(jagged.values())
    weights = torch.tensor(data.draw(st.lists(st.sampled_from([0.5, 1.0]), min_size=count, max_size=count)))
    weights = weights.to(torch.float32)
    ikjt = InverseKeyedJaggedTensor.from_jagged(jagged, [[key] for key in list(jagged.keys())], weights=weights)
    expanded, found = ikjt.to_jagged()
    assert torch.equal(expanded.values(), jagged.values())
    assert found is not None
    assert torch.equal(found, weights)
    kjt = ikjt.to_kjt()
    assert torch.equal(kjt.weights(), weights)
    again, found = InverseKeyedJaggedTensor.from_kjt(ikjt.to_vbe_kjt()).to_jagged()
    assert found is not None
    assert torch.equal(found.sort().values, weights.sort().values)
    assert len(again.values()) == count


def test_a_group_by_hand() -> None:
    jagged = jagged_of(["a", "b", "c"], [[1, 2], [1, 2], [3], [4], [4], [], [5], [6], [7]])
    ikjt = InverseKeyedJaggedTensor.from_jagged(jagged, [["b", "a"]])
    assert ikjt.groups() == [["b", "a"], ["c"]]
    assert ikjt.keys() == ["a", "b", "c"]
    assert ikjt.inverse("a").tolist() == ikjt.inverse("b").tolist() == [0, 0, 1]
    assert ikjt.inverse("c").tolist() == [0, 1, 2]
    assert ikjt.values().tolist() == [4, 1, 2, 3, 5, 6, 7]
    assert ikjt.lengths().tolist() == [1, 0, 2, 1, 1, 1, 1]
    assert ikjt.dedup_factor == pytest.approx(9 / 7)
    assert repr(ikjt) == (
        "InverseKeyedJaggedTensor({['b', 'a']: 2 rows, ['c']: all rows}, values=[7] int64, stride=3, dedup_factor=1.29)"
    )


def test_rows_that_never_repeat_are_stored_without_an_inverse() -> None:
    ikjt = InverseKeyedJaggedTensor.from_jagged(jagged_of(["a"], [[1], [2], [3]]), [["a"]])
    assert ikjt.inverse_entries().numel() == 0
    assert ikjt.dedup_factor == 1.0
    same_rows(ikjt, jagged_of(["a"], [[1], [2], [3]]))


def test_rows_that_are_all_equal_are_stored_once() -> None:
    ikjt = InverseKeyedJaggedTensor.from_jagged(jagged_of(["a"], [[1, 2]] * 50), [["a"]])
    assert ikjt.values().tolist() == [1, 2]
    assert ikjt.nbytes == 2 * 8 + 4 + 50 * 8


def test_shifted_lists_share_one_buffer_that_is_looked_up_once() -> None:
    ikjt = InverseKeyedJaggedTensor.from_jagged(jagged_of(["a"], [[1, 2, 3], [2, 3, 4], [3, 4, 5], [3, 4, 5]]), [["a"]])
    shared = ikjt.share_shifted()
    buffer, starts, lengths, inverse = shared.slices("a")
    assert buffer.tolist() == [1, 2, 3, 4, 5]
    assert starts.tolist() == [0, 1, 2]
    assert lengths.tolist() == [3, 3, 3]
    assert inverse.tolist() == [0, 1, 2, 2]
    assert shared.unique(0).jagged.values().tolist() == [1, 2, 3, 2, 3, 4, 3, 4, 5]


def test_a_batch_carries_it() -> None:
    jagged = sessions(6, 4)
    ikjt = InverseKeyedJaggedTensor.from_jagged(jagged, [jagged.keys()])
    rows = jagged.stride()
    batch = Batch(dense=torch.ones(rows, 1), sparse=ikjt, labels=torch.ones(rows, 1))
    moved = pickle.loads(pickle.dumps(pytree.tree_map(lambda leaf: leaf, batch.to("cpu", True))))
    same_rows(moved.sparse, jagged)
    assert moved.nbytes == batch.nbytes < Batch(dense=batch.dense, sparse=jagged, labels=batch.labels).nbytes
    assert "dedup_factor" in repr(batch)


def test_to_moves_every_tensor() -> None:
    ikjt = InverseKeyedJaggedTensor.from_jagged(sessions(3, 4), [["f0"], ["f1"]]).share_shifted()
    moved = ikjt.to("meta", non_blocking=True)
    assert {leaf.device.type for leaf in pytree.tree_leaves(moved) if leaf is not None} == {"meta"}
    assert moved.stride() == ikjt.stride()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_it_reads_as_on_the_host() -> None:
    jagged = sessions(20, 6)
    ikjt = InverseKeyedJaggedTensor.from_jagged(jagged, [jagged.keys()]).share_shifted().pin_memory()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        moved = ikjt.to("cuda", non_blocking=True)
    torch.cuda.current_stream().wait_stream(stream)
    moved.record_stream(torch.cuda.current_stream())
    same_rows(moved.to("cpu"), jagged)
    assert torch.equal(moved["f0"][0].cpu(), jagged["f0"][0])


@pytest.mark.parametrize(
    ("groups", "says"),
    [([["a"], ["a"]], "two groups"), ([["x"]], "'x' is not among"), (["a"], "holds a text"), ("a", "holds a text")],
)
def test_groups_that_make_no_sense_are_refused(groups: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        InverseKeyedJaggedTensor.from_jagged(jagged_of(["a"], [[1]]), groups)


def test_tensors_that_do_not_fit_their_shapes_are_refused() -> None:
    ikjt = InverseKeyedJaggedTensor.from_jagged(jagged_of(["a"], [[1], [1]]), [["a"]])
    shapes, empty = ikjt.shapes(), torch.empty(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="0 inverse, and the groups' shapes say 2"):
        InverseKeyedJaggedTensor(shapes, ikjt.values(), ikjt.lengths(), empty, stride=2)
    with pytest.raises(ValueError, match="0 values"):
        InverseKeyedJaggedTensor(shapes, empty, ikjt.lengths(), ikjt.inverse("a"), stride=2)
    with pytest.raises(ValueError, match="not, each once"):
        InverseKeyedJaggedTensor(shapes, ikjt.values(), ikjt.lengths(), ikjt.inverse("a"), stride=2, keys=["b"])
    with pytest.raises(KeyError, match="'b' is not among"):
        ikjt["b"]


def test_a_kjt_that_lost_its_inverse_is_refused() -> None:
    kjt = InverseKeyedJaggedTensor.from_jagged(jagged_of(["a", "b"], [[1], [1], [2], [3]]), [["a"]]).to_vbe_kjt()
    with pytest.raises(ConfigError, match="inverse_indices"):
        InverseKeyedJaggedTensor.from_kjt(kjt.permute([1, 0]))
