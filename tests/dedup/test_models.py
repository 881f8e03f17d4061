from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_intune.dedup import InverseKeyedJaggedTensor, KeyedJagged
from lightning_intune.errors import ConfigError
from tests.dedup.ragged_data import jagged_batches, jagged_of, sessions

pytest.importorskip("torchrec.modules.embedding_modules", exc_type=ImportError)
from torchrec.models.dlrm import DLRM
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from lightning_intune.dedup.dlrm import DedupDlrm
from lightning_intune.dedup.lookup import IkjtEmbeddingBagCollection, IkjtEmbeddingCollection, expand
from lightning_intune.dedup.sequence_model import DedupSequenceModel

DIM = 8


def bags(num_keys: int, *, weighted: bool = False, shared: bool = False) -> EmbeddingBagCollection:
    pooling = PoolingType.SUM if weighted else PoolingType.MEAN
    tables = [
        EmbeddingBagConfig(name=f"t{k}", embedding_dim=DIM, num_embeddings=120, feature_names=[f"f{k}"])
        for k in range(num_keys)
    ]
    if shared:
        names = [f"f{k}" for k in range(num_keys)]
        tables.append(
            EmbeddingBagConfig(name="all", embedding_dim=4, num_embeddings=120, feature_names=names, pooling=pooling)
        )
    torch.manual_seed(0)
    return EmbeddingBagCollection(tables, is_weighted=weighted)


def close(one: Tensor, other: Tensor) -> None:
    """Within 1e-5 of the largest number of the two."""
    one, other = one.detach(), other.detach()
    assert one.shape == other.shape
    if one.numel():
        scale = max(float(other.abs().max()), 1e-3)
        assert float((one - other).abs().max()) <= 1e-5 * scale


def same_gradients(one: nn.Module, other: nn.Module) -> None:
    others = dict(other.named_parameters())
    seen = 0
    for name, parameter in one.named_parameters():
        if parameter.grad is None or others[name].grad is None:
            assert parameter.grad is None or not parameter.grad.any()
            assert others[name].grad is None or not others[name].grad.any()
            continue
        seen += 1
        close(parameter.grad, others[name].grad)
    assert seen


def grouping(data: st.DataObject, jagged: KeyedJagged) -> list[list[str]]:
    places = [data.draw(st.integers(-1, 2), label=key) for key in list(jagged.keys())]
    return [[key for key, place in zip(jagged.keys(), places, strict=True) if place == group] for group in range(3)]


IDS = jagged_batches((torch.int32, torch.int64), min_rows=1)  # TorchRec 1.8 cannot split a batch without rows


@given(jagged=IDS, data=st.data())
def test_lookups_of_unique_rows_are_those_of_all_rows_bit_for_bit(jagged: KeyedJagged, data: st.DataObject) -> None:
    collection = bags(len(jagged.keys()), shared=True)
    twin = copy.deepcopy(collection)
    ikjt = InverseKeyedJaggedTensor.from_jagged(jagged, grouping(data, jagged))
    if data.draw(st.booleans()):
        ikjt = ikjt.share_shifted()
    ours, theirs = IkjtEmbeddingBagCollection(collection)(ikjt), twin(jagged.to_kjt())
    assert ours.keys() == theirs.keys()
    assert torch.equal(ours.values(), theirs.values())
    ramp = torch.linspace(-1, 1, ours.values().numel()).reshape(ours.values().shape)
    (ours.values() * ramp).sum().backward()
    (theirs.values() * ramp).sum().backward()
    same_gradients(collection, twin)


@given(jagged=IDS, data=st.data())
def test_weighted_lookups_are_the_same_bit_for_bit(jagged: KeyedJagged, data: st.DataObject) -> None:
    count = len(jagged.values())
    weights = torch.tensor(data.draw(st.lists(st.sampled_from([0.25, 1.5]), min_size=count, max_size=count)))
    collection = bags(len(jagged.keys()), weighted=True)
    ikjt = InverseKeyedJaggedTensor.from_jagged(jagged, grouping(data, jagged), weights=weights.float())
    ours = IkjtEmbeddingBagCollection(collection)(ikjt)
    assert torch.equal(ours.values(), collection(ikjt.to_kjt()).values())


def test_a_weighted_collection_wants_weights_and_every_feature() -> None:
    jagged = jagged_of(["f0"], [[1], [1]])
    with pytest.raises(ConfigError, match="has no weights"):
        IkjtEmbeddingBagCollection(bags(1, weighted=True))(jagged)
    with pytest.raises(KeyError, match="no feature 'f1'"):
        IkjtEmbeddingBagCollection(bags(2))(jagged)


def sequences(num_keys: int) -> EmbeddingCollection:
    torch.manual_seed(0)
    tables = [
        EmbeddingConfig(name=f"t{k}", embedding_dim=DIM, num_embeddings=120, feature_names=[f"f{k}"])
        for k in range(num_keys)
    ]
    return EmbeddingCollection(tables)


@given(jagged=IDS, shared=st.booleans())
def test_sequence_lookups_are_the_same_bit_for_bit(jagged: KeyedJagged, shared: bool) -> None:
    collection = sequences(len(jagged.keys()))
    ikjt = InverseKeyedJaggedTensor.from_jagged(jagged, [jagged.keys()])
    ikjt = ikjt.share_shifted() if shared else ikjt
    theirs = collection(jagged.to_kjt())
    for key in list(jagged.keys()):
        rows = IkjtEmbeddingCollection(collection)(ikjt, key)
        parts = list(torch.split(rows.values, rows.lengths.tolist()))
        picked = range(len(parts)) if rows.inverse is None else rows.inverse.tolist()
        ours = torch.cat([parts[i] for i in picked])
        assert torch.equal(ours, theirs[key].values())


# DLRM


def dlrm(num_keys: int) -> DedupDlrm:
    torch.manual_seed(1)
    return DedupDlrm(bags(num_keys), num_dense=3, dense_sizes=[6, DIM], over_sizes=[10, 5, 1])


def torchrec_dlrm(ours: DedupDlrm) -> DLRM:
    """TorchRec's own model with our weights."""
    theirs = DLRM(
        copy.deepcopy(ours.embeddings.collection), dense_in_features=3, dense_arch_layer_sizes=[6, DIM],
        over_arch_layer_sizes=[10, 5, 1],
    )  # fmt: skip
    linear = [module for module in ours.modules() if isinstance(module, nn.Linear)]
    target = [module for module in theirs.modules() if isinstance(module, nn.Linear)]
    assert len(linear) == len(target) == 5
    for mine, their in zip(linear, target, strict=True):
        their.load_state_dict(mine.state_dict())
    return theirs


@given(jagged=IDS, data=st.data())
def test_dlrm_on_unique_rows_is_torchrecs_on_all_rows(jagged: KeyedJagged, data: st.DataObject) -> None:
    rows = jagged.stride()
    ours = dlrm(len(jagged.keys()))
    theirs = torchrec_dlrm(ours)
    plain = copy.deepcopy(ours)
    dense = torch.linspace(-1, 1, 3 * rows).reshape(rows, 3)
    ikjt = InverseKeyedJaggedTensor.from_jagged(jagged, grouping(data, jagged))
    out, twin, reference = ours(dense, ikjt), plain(dense, jagged), theirs(dense, jagged.to_kjt())
    close(out, reference)
    close(twin, reference)
    for result in (out, twin, reference):
        (result * torch.linspace(1, 2, rows).unsqueeze(1)).sum().backward()
    same_gradients(ours, plain)
    same_gradients(ours.embeddings.collection, theirs.sparse_arch.embedding_bag_collection)


def test_dlrm_wants_tables_of_one_width() -> None:
    with pytest.raises(ConfigError, match="one width"):
        DedupDlrm(bags(2, shared=True), num_dense=3, dense_sizes=[DIM], over_sizes=[1])
    with pytest.raises(ConfigError, match="one width"):
        DedupDlrm(bags(2), num_dense=3, dense_sizes=[DIM + 1], over_sizes=[1])


# Attention


def sequence_model(**other: Any) -> DedupSequenceModel:
    collection = sequences(2)
    torch.manual_seed(1)
    options: dict[str, Any] = {"history": "f0", "target": "f1", "num_dense": 2, "max_length": 9} | other
    return DedupSequenceModel(collection, **options)


@given(
    histories=st.lists(st.lists(st.integers(0, 9), max_size=12), min_size=1, max_size=4),
    picks=st.lists(st.integers(0, 3), min_size=1, max_size=10),
    shared=st.booleans(),
)
def test_attention_over_unique_rows_is_that_over_all(
    histories: list[list[int]], picks: list[int], shared: bool
) -> None:
    rows = [histories[pick % len(histories)] for pick in picks]
    jagged = jagged_of(["f0", "f1"], [*rows, *([pick] for pick in picks)])
    ikjt = InverseKeyedJaggedTensor.from_jagged(jagged, [["f0"]])
    ours = sequence_model()
    plain = copy.deepcopy(ours)
    dense = torch.linspace(-1, 1, 2 * len(picks)).reshape(-1, 2)
    out, twin = ours(dense, ikjt.share_shifted() if shared else ikjt), plain(dense, jagged)
    close(out, twin)
    for result in (out, twin):
        (result * torch.linspace(1, 2, len(picks)).unsqueeze(1)).sum().backward()
    same_gradients(ours, plain)


def test_an_empty_history_answers_nothing_and_harms_no_gradient() -> None:
    jagged = jagged_of(["f0", "f1"], [[], [], [1, 2], [3], [4], [5]])
    model = sequence_model()
    out = model(torch.zeros(3, 2), InverseKeyedJaggedTensor.from_jagged(jagged, [["f0"]]))
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    by_hand = model.top(torch.cat([torch.zeros(2, DIM), model.lookup(jagged, "f1").values[:2], torch.zeros(2, 2)], 1))
    close(out[:2], by_hand)


def test_a_target_of_several_values_is_refused() -> None:
    with pytest.raises(ValueError, match="'f1' has 3 values for 2 rows"):
        sequence_model()(torch.zeros(2, 2), jagged_of(["f0", "f1"], [[1], [1], [2, 3], [4]]))
    with pytest.raises(ConfigError, match="max_length=0"):
        sequence_model(max_length=0)


def test_expanding_adds_the_gradients_of_equal_rows() -> None:
    values = torch.tensor([[1.0], [2.0]], requires_grad=True)
    out = expand(values, torch.tensor([0, 1, 0]))
    (out * torch.tensor([[1.0], [10.0], [100.0]])).sum().backward()
    assert out.tolist() == [[1.0], [2.0], [1.0]]
    assert values.grad is not None
    assert values.grad.tolist() == [[101.0], [10.0]]


def test_sessions_train_the_same_on_unique_rows() -> None:
    jagged = sessions(30, 8)
    rows = jagged.stride()
    ours, dense = dlrm(2), torch.linspace(-1, 1, 3 * rows).reshape(rows, 3)
    plain = copy.deepcopy(ours)
    ikjt = InverseKeyedJaggedTensor.from_jagged(jagged, [["f0"], ["f1"]])
    for model, sparse in ((ours, ikjt), (plain, jagged)):
        step = torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(5):
            step.zero_grad()
            model(dense, sparse).square().mean().backward()
            step.step()
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        close(one, other)


def test_a_batch_without_rows_has_no_logits() -> None:
    empty = jagged_of(["f0", "f1"], [])
    for sparse in (empty, InverseKeyedJaggedTensor.from_jagged(empty, [["f0"], ["f1"]])):
        assert dlrm(2)(torch.zeros(0, 3), sparse).shape == (0, 1)
        assert sequence_model()(torch.zeros(0, 2), sparse).shape == (0, 1)
        assert IkjtEmbeddingBagCollection(bags(2))(sparse).values().shape == (0, 2 * DIM)
