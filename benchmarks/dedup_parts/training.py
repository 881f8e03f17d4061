"""One training step, forward, backward and SGD: on all rows, on unique rows, and by TorchRec's stock VBE."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn
from torchrec.models.dlrm import DLRM
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from benchmarks.dedup_parts.data import FEATURES, NUM_DENSE, TABLE_ROWS
from lightning_intune.dedup import Batch, DedupDlrm, DedupSequenceModel, InverseKeyedJaggedTensor, KeyedJagged

DIM = 32
HISTORY_KEY, TARGET_KEY = "user0", "item0"
Step = Callable[[Batch], Tensor]


def collection() -> EmbeddingBagCollection:
    """A table for every feature, with sparse gradients: dense ones would cost every row of it at every step."""
    tables = [
        EmbeddingBagConfig(name=f"t_{name}", embedding_dim=DIM, num_embeddings=TABLE_ROWS, feature_names=[name])
        for name in FEATURES
    ]
    made = EmbeddingBagCollection(tables)
    for bag in made.embedding_bags.values():
        bag.sparse = True
    return made


def sequences() -> EmbeddingCollection:
    """Tables for the history and the target."""
    names = (HISTORY_KEY, TARGET_KEY)
    tables = [
        EmbeddingConfig(name=f"t_{name}", embedding_dim=DIM, num_embeddings=TABLE_ROWS, feature_names=[name])
        for name in names
    ]
    made = EmbeddingCollection(tables)
    for table in made.embeddings.values():
        table.sparse = True
    return made


def dlrm(seed: int = 0) -> DedupDlrm:
    """Ours, for plain and deduplicated batches."""
    torch.manual_seed(seed)
    return DedupDlrm(collection(), num_dense=NUM_DENSE, dense_sizes=[64, DIM], over_sizes=[256, 128, 1])


def torchrec_dlrm(ours: DedupDlrm) -> DLRM:
    """TorchRec's, with the weights of ours."""
    theirs = DLRM(
        copy.deepcopy(ours.embeddings.collection),
        dense_in_features=NUM_DENSE,
        dense_arch_layer_sizes=[64, DIM],
        over_arch_layer_sizes=[256, 128, 1],
    )
    pairs = zip(_linear(ours), _linear(theirs), strict=True)
    for mine, their in pairs:
        their.load_state_dict(mine.state_dict())
    return theirs


def sequence_model(seed: int = 0) -> DedupSequenceModel:
    """Two transformer layers over the history, target attention."""
    torch.manual_seed(seed)
    return DedupSequenceModel(
        sequences(), history=HISTORY_KEY, target=TARGET_KEY, num_dense=NUM_DENSE, max_length=64, hidden=64
    )


def _linear(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


@final
class Trained:
    """A model and its optimizer, stepped over batches; CPU seconds per step."""

    def __init__(
        self, model: nn.Module, convert: Callable[[Batch], Any], optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        self.model, self._convert = model, convert
        self._optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.01)

    def step(self, dense: Tensor, sparse: Any, labels: Tensor) -> Tensor:
        """The loss of one step."""
        self._optimizer.zero_grad(set_to_none=True)
        logits = self.model(dense, sparse)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, labels)
        loss.backward()
        self._optimizer.step()
        return loss

    def seconds(self, batches: list[Batch]) -> float:
        """Of this process's CPU, for a step over each batch."""
        inputs = [(batch.dense, self._convert(batch), batch.labels) for batch in batches]
        began_s = time.process_time()
        for one in inputs:
            self.step(*one)
        return time.process_time() - began_s


def only(batch: Batch, keys: list[str]) -> Batch:
    """The batch with those keys, still deduplicated if it was."""
    if isinstance(batch.sparse, InverseKeyedJaggedTensor):
        jagged, _ = batch.sparse.to_jagged()
        plain = _chosen(jagged, keys)
        grouped = {key for shape in batch.sparse.shapes() if shape.has_inverse for key in shape.keys}
        sparse = InverseKeyedJaggedTensor.from_jagged(plain, [[key] for key in keys if key in grouped])
    else:
        sparse = _chosen(batch.sparse, keys)
    return Batch(dense=batch.dense, sparse=sparse, labels=batch.labels)


def _chosen(jagged: KeyedJagged, keys: list[str]) -> KeyedJagged:
    parts = [jagged[key] for key in keys]
    return KeyedJagged(keys, torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]))


def as_it_is(batch: Batch) -> Any:
    """Ours take the sparse part itself."""
    return batch.sparse


def as_kjt(batch: Batch) -> Any:
    """TorchRec's expanded type."""
    return batch.sparse.to_kjt()


def as_vbe(batch: Batch) -> Any:
    """TorchRec's type with `inverse_indices`; a batch without repeats is plain."""
    sparse = batch.sparse
    return sparse.to_vbe_kjt() if isinstance(sparse, InverseKeyedJaggedTensor) else sparse.to_kjt()


def train_ratios(plain: list[Batch], dedup: list[Batch], runs: int) -> dict[str, dict[str, list[float]]]:
    """`train` and `vbe` by model: CPU seconds of the rival over those of unique rows, pair by pair."""
    ours = dlrm()
    contests: dict[str, dict[str, tuple[Trained, list[Batch]]]] = {
        "dlrm": {
            "dedup": (Trained(copy.deepcopy(ours), as_it_is), dedup),
            "plain": (Trained(copy.deepcopy(ours), as_it_is), plain),
            "torchrec": (Trained(torchrec_dlrm(ours), as_kjt), plain),
            "vbe": (Trained(torchrec_dlrm(ours), as_vbe), dedup),
        }
    }
    keys = [HISTORY_KEY, TARGET_KEY]
    few_plain, few_dedup = [only(batch, keys) for batch in plain], [only(batch, keys) for batch in dedup]
    model = sequence_model()
    contests["sequence"] = {
        "dedup": (Trained(copy.deepcopy(model), as_it_is), few_dedup),
        "plain": (Trained(copy.deepcopy(model), as_it_is), few_plain),
    }
    ratios: dict[str, dict[str, list[float]]] = {"train": {}, "vbe": {}}
    for name, sides in contests.items():
        took_s: dict[str, list[float]] = {side: [] for side in sides}
        for run in range(runs + 1):
            for side in list(sides) if run % 2 else list(reversed(sides)):
                took_s[side].append(sides[side][0].seconds(sides[side][1]))
        rival = min(took_s.keys() & {"plain", "torchrec"}, key=lambda side: statistics.median(took_s[side][1:]))
        # An unsharded EmbeddingCollection ignores inverse_indices: for sequences stock VBE is the plain way.
        vbe = "vbe" if "vbe" in sides else "plain"
        for kind, against in (("train", rival), ("vbe", vbe)):
            pairs = zip(took_s[against][1:], took_s["dedup"][1:], strict=True)  # the first warms caches
            ratios[kind][name] = [theirs / ours_s for theirs, ours_s in pairs]
    return ratios


def errors(plain: Batch, dedup: Batch) -> tuple[float, float]:
    """The largest error of an output and of a gradient against the plain twin, relative to its tensor's largest."""
    forward, backward = 0.0, 0.0
    keys = [HISTORY_KEY, TARGET_KEY]
    for model, one, other in (
        (dlrm(), plain, dedup),
        (sequence_model(), only(plain, keys), only(dedup, keys)),
    ):
        twin = copy.deepcopy(model)
        outs = [net(batch.dense, batch.sparse) for net, batch in ((twin, one), (model, other))]
        for out, batch in zip(outs, (one, other), strict=True):
            nn.functional.binary_cross_entropy_with_logits(out, batch.labels).backward()
        forward = max(forward, _error(outs[1].detach(), outs[0].detach()))
        for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            if mine.grad is not None and theirs.grad is not None:
                backward = max(backward, _error(mine.grad.to_dense(), theirs.grad.to_dense()))
    return forward, backward


def _error(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-30))
