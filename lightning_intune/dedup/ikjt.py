"""Jagged features whose repeated rows are stored once, with one `inverse` for each group of features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, final

import torch
import torch.utils._pytree as pytree  # private by name only: torch documents no other registry
from torch import Tensor

from lightning_intune.dedup.groups import GroupShape, UniqueRows
from lightning_intune.dedup.jagged import KeyedJagged
from lightning_intune.dedup.ragged import gather_rows, packed_starts

if TYPE_CHECKING:
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


@final
class InverseKeyedJaggedTensor:
    """F jagged features of B rows, in groups; each group stores its unique rows once (RecD, arXiv 2211.05239).

    `values` [N], `lengths` and, where given, `weights` [N] and `starts` hold one group after the other, in it one key
    after the other, each over the group's U rows; `inverse` [G * B] int64 holds, for each group that has one, the
    stored row of every row of the batch. Row r of a key lies at `starts[r]` among the key's own values, for
    `lengths[r]` of them: lists that are one another's continuation share one buffer. Without `starts` rows are packed.

    The names are those of TorchRec's `KeyedJaggedTensor`; `ikjt[key]` and `to_kjt` give the *expanded* B rows, so that
    code which knows nothing of groups reads the same. Treat it as a value: methods return new objects, share memory.

    >>> jagged = KeyedJagged(["a"], torch.tensor([7, 8, 7, 8, 9]), torch.tensor([2, 2, 0, 1], dtype=torch.int32))
    >>> ikjt = InverseKeyedJaggedTensor.from_jagged(jagged, [["a"]])
    >>> ikjt.values().tolist(), ikjt.lengths().tolist(), ikjt.inverse("a").tolist()
    ([7, 8, 9], [2, 0, 1], [0, 0, 1, 2])
    """

    __slots__ = ("_inverse", "_keys", "_lengths", "_shapes", "_starts", "_stride", "_values", "_weights")

    def __init__(
        self,
        shapes: Sequence[GroupShape],
        values: Tensor,
        lengths: Tensor,
        inverse: Tensor,
        *,
        stride: int,
        keys: Sequence[str] | None = None,
        weights: Tensor | None = None,
        starts: Tensor | None = None,
    ) -> None:
        self._shapes, self._stride = tuple(shapes), stride
        self._values, self._lengths, self._inverse = values, lengths, inverse
        self._weights, self._starts = weights, starts
        stored = [key for shape in self._shapes for key in shape.keys]
        self._keys = tuple(stored if keys is None else keys)
        self._check(stored)

    def _check(self, stored: list[str]) -> None:
        num_lengths = sum(len(shape.keys) * shape.num_rows for shape in self._shapes)
        num_values = sum(sum(shape.num_values) for shape in self._shapes)
        num_inverse = sum(shape.has_inverse for shape in self._shapes) * self._stride
        wants = {"values": num_values, "lengths": num_lengths, "inverse": num_inverse}
        has = {"values": len(self._values), "lengths": len(self._lengths), "inverse": len(self._inverse)}
        for name, tensor, count in (("weights", self._weights, num_values), ("starts", self._starts, num_lengths)):
            if tensor is not None:
                wants[name], has[name] = count, len(tensor)
        wrong = next((name for name in wants if wants[name] != has[name]), None)
        if wrong is not None:
            raise ValueError(f"{has[wrong]} {wrong}, and the groups' shapes say {wants[wrong]}")
        if sorted(self._keys) != sorted(stored) or len(set(stored)) < len(stored):
            raise ValueError(f"keys {list(self._keys)} are not, each once, those of the groups: {stored}")
        odd = next((shape for shape in self._shapes if not shape.has_inverse and shape.num_rows != self._stride), None)
        if odd is not None:
            raise ValueError(f"group {odd.keys} has no inverse and stores {odd.num_rows} rows of {self._stride}")

    # What it holds

    def keys(self) -> list[str]:
        """The features' names, in the order of the batch they came from."""
        return list(self._keys)

    def groups(self) -> list[list[str]]:
        """The keys of each group, in the order they are stored; a group may have no `inverse`."""
        return [list(shape.keys) for shape in self._shapes]

    def values(self) -> Tensor:
        """[N], the stored values of all groups."""
        return self._values

    def lengths(self) -> Tensor:
        """Int32, the stored rows' lengths of all groups."""
        return self._lengths

    def weights(self) -> Tensor | None:
        """[N] per stored value; None: there are none."""
        return self._weights

    def starts(self) -> Tensor | None:
        """Int64 as `lengths`, each row's first value among its key's; None: packed."""
        return self._starts

    def stride(self) -> int:
        """B, the rows of the batch."""
        return self._stride

    def inverse(self, key: str) -> Tensor:
        """[B] int64: the stored row of every row, for one key."""
        group, _ = self._place(key)
        found = self._inverse_of(group)
        return torch.arange(self._stride, device=self._values.device) if found is None else found

    def inverse_entries(self) -> Tensor:
        """[G * B] int64, one entry after the other of the groups that have one."""
        return self._inverse

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.nbytes for tensor in self._tensors() if tensor is not None)

    @property
    def dedup_factor(self) -> float:
        """Rows of the batch, over all keys, for each row that is stored; 1 for an empty batch."""
        stored = sum(len(shape.keys) * shape.num_rows for shape in self._shapes)
        return len(self._keys) * self._stride / stored if stored else 1.0

    # Rows

    def unique(self, group: int) -> UniqueRows:
        """Group number `group`, its rows packed."""
        shape = self._shapes[group]
        begin, lengths_begin = self._begins(group)
        count = sum(shape.num_values)
        values = self._values[begin : begin + count]
        lengths = self._lengths[lengths_begin : lengths_begin + len(shape.keys) * shape.num_rows]
        weights = None if self._weights is None else self._weights[begin : begin + count]
        if self._starts is not None:
            starts = self._absolute_starts(group)
            values, weights = gather_rows(values, starts, lengths, weights)
        return UniqueRows(
            jagged=KeyedJagged(shape.keys, values, lengths), inverse=self._inverse_of(group), weights=weights
        )

    def unique_key(self, key: str) -> UniqueRows:
        """One key's stored rows, packed, and its inverse."""
        values, lengths, weights = self._stored(key)
        group, _ = self._place(key)
        return UniqueRows(jagged=KeyedJagged([key], values, lengths), inverse=self._inverse_of(group), weights=weights)

    def slices(self, key: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One key as its buffer [n], each stored row's start [U] and length [U] in it, and the inverse [B].

        A lookup over the buffer costs n rows, however often the stored rows overlap.
        """
        group, place = self._place(key)
        buffer, lengths, _ = self._raw(group, place)
        starts = self._raw_starts(group, place)
        return buffer, packed_starts(lengths) if starts is None else starts, lengths, self.inverse(key)

    def __getitem__(self, key: str) -> tuple[Tensor, Tensor]:
        """One feature's values [n] and lengths [B], expanded; KeyError names the keys there are."""
        values, lengths, _ = self._expanded(key)
        return values, lengths

    def _expanded(self, key: str) -> tuple[Tensor, Tensor, Tensor | None]:
        group, place = self._place(key)
        inverse = self._inverse_of(group)
        if inverse is None:
            return self._stored(key)
        values, lengths, weights = self._raw(group, place)
        starts = self._raw_starts(group, place)
        starts = packed_starts(lengths) if starts is None else starts
        lengths = lengths.index_select(0, inverse)
        values, weights = gather_rows(values, starts.index_select(0, inverse), lengths, weights)
        return values, lengths, weights

    def _stored(self, key: str) -> tuple[Tensor, Tensor, Tensor | None]:
        group, place = self._place(key)
        values, lengths, weights = self._raw(group, place)
        starts = self._raw_starts(group, place)
        if starts is not None:
            values, weights = gather_rows(values, starts, lengths, weights)
        return values, lengths, weights

    def _place(self, key: str) -> tuple[int, int]:
        for group, shape in enumerate(self._shapes):
            if key in shape.keys:
                return group, shape.keys.index(key)
        raise KeyError(f"'{key}' is not among the keys {list(self._keys)}")

    def _begins(self, group: int) -> tuple[int, int]:
        """Where a group begins in `values` and in `lengths`."""
        before = self._shapes[:group]
        return sum(sum(shape.num_values) for shape in before), sum(len(s.keys) * s.num_rows for s in before)

    def _raw(self, group: int, place: int) -> tuple[Tensor, Tensor, Tensor | None]:
        shape = self._shapes[group]
        begin, lengths_begin = self._begins(group)
        begin, lengths_begin = begin + sum(shape.num_values[:place]), lengths_begin + place * shape.num_rows
        span = slice(begin, begin + shape.num_values[place])
        weights = None if self._weights is None else self._weights[span]
        return self._values[span], self._lengths[lengths_begin : lengths_begin + shape.num_rows], weights

    def _raw_starts(self, group: int, place: int) -> Tensor | None:
        if self._starts is None:
            return None
        begin = self._begins(group)[1] + place * self._shapes[group].num_rows
        return self._starts[begin : begin + self._shapes[group].num_rows]

    def _absolute_starts(self, group: int) -> Tensor:
        """The starts of a group's rows among the group's values."""
        shape, parts, begin = self._shapes[group], list[Tensor](), 0
        for place, count in enumerate(shape.num_values):
            starts = self._raw_starts(group, place)
            assert starts is not None, "asked for only where there are some"
            parts.append(starts + begin)
            begin += count
        return torch.cat(parts)

    def _inverse_of(self, group: int) -> Tensor | None:
        if not self._shapes[group].has_inverse:
            return None
        number = sum(shape.has_inverse for shape in self._shapes[:group])
        return self._inverse[number * self._stride : (number + 1) * self._stride]

    # Conversions

    @staticmethod
    def from_jagged(
        jagged: KeyedJagged,
        groups: Sequence[Sequence[str]],
        *,
        weights: Tensor | None = None,
    ) -> InverseKeyedJaggedTensor:
        """Find the repeated rows of each group on the CPU, and store them once; other keys stay as they are.

        Rows are equal where all their bytes are: 0.0 is not -0.0, and a NaN equals itself. `weights` [N] count as part
        of their values. ConfigError for a name that is no key, or in two groups.
        """
        from lightning_intune.dedup.detect import deduplicate

        return deduplicate(jagged, groups, weights=weights)

    @staticmethod
    def from_kjt(kjt: KeyedJaggedTensor, groups: Sequence[Sequence[str]] | None = None) -> InverseKeyedJaggedTensor:
        """From TorchRec's type. With `inverse_indices` its own rows are taken as unique; else `groups` are searched.

        `groups` None: every key on its own. ConfigError for a KJT whose strides vary and which has no inverse.
        """
        from lightning_intune.dedup.torchrec_types import from_kjt

        return from_kjt(kjt, groups)

    def to_jagged(self) -> tuple[KeyedJagged, Tensor | None]:
        """All B rows of every key, expanded, and their weights."""
        parts = [self._expanded(key) for key in self._keys]
        weights = [weight for _, _, weight in parts if weight is not None]
        if not parts:
            return KeyedJagged([], self._values, self._lengths), self._weights
        jagged = KeyedJagged(
            self._keys, torch.cat([values for values, _, _ in parts]), torch.cat([lengths for _, lengths, _ in parts])
        )
        return jagged, torch.cat(weights) if weights else None

    def to_kjt(self) -> KeyedJaggedTensor:
        """TorchRec's type with all B rows of every key. ConfigError where TorchRec cannot be imported."""
        from lightning_intune.dedup.torchrec_types import to_kjt

        return to_kjt(*self.to_jagged())

    def to_vbe_kjt(self) -> KeyedJaggedTensor:
        """TorchRec's type with the stored rows, a stride per key, and `inverse_indices`.

        TorchRec 1.8: `permute`, `split` and `flatten_lengths` of the result silently drop `inverse_indices`.
        """
        from lightning_intune.dedup.torchrec_types import to_vbe_kjt

        return to_vbe_kjt(self)

    def share_shifted(self) -> InverseKeyedJaggedTensor:
        """The same with `starts`: stored lists that continue one another share one buffer. On the CPU."""
        from lightning_intune.dedup.shifted import share_shifted

        return share_shifted(self)

    def shapes(self) -> tuple[GroupShape, ...]:
        """What is known of each group without looking at the tensors."""
        return self._shapes

    # Devices

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> InverseKeyedJaggedTensor:
        """The same on `device`; with `non_blocking` the copy of pinned memory overlaps with the host."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> InverseKeyedJaggedTensor:
        """A copy in page-locked memory."""
        return self._map(Tensor.pin_memory)

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory until `stream` has done what was asked of it so far."""
        for tensor in self._tensors():
            if tensor is not None:
                tensor.record_stream(stream)

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        return self._values, self._lengths, self._inverse, self._weights, self._starts

    def _map(self, function: Callable[[Tensor], Tensor]) -> InverseKeyedJaggedTensor:
        leaves = [None if tensor is None else function(tensor) for tensor in self._tensors()]
        return _unflatten(leaves, (self._shapes, self._stride, self._keys))

    def __reduce__(self) -> tuple[Any, ...]:
        return _unflatten, (list(self._tensors()), (self._shapes, self._stride, self._keys))

    def __repr__(self) -> str:
        groups = ", ".join(
            f"{list(shape.keys)}: {shape.num_rows if shape.has_inverse else 'all'} rows" for shape in self._shapes
        )
        values = f"{list(self._values.shape)} {str(self._values.dtype).removeprefix('torch.')}"
        extra = "".join(
            f", {name}" for name, tensor in (("weights", self._weights), ("starts", self._starts)) if tensor is not None
        )
        return (
            f"InverseKeyedJaggedTensor({{{groups}}}, values={values}{extra}, stride={self._stride}, "
            f"dedup_factor={self.dedup_factor:.2f})"
        )


def _flatten(ikjt: InverseKeyedJaggedTensor) -> tuple[list[Any], Any]:
    leaves = [ikjt._values, ikjt._lengths, ikjt._inverse, ikjt._weights, ikjt._starts]  # pyright: ignore[reportPrivateUsage]
    return leaves, (ikjt._shapes, ikjt._stride, ikjt._keys)  # pyright: ignore[reportPrivateUsage]


def _unflatten(leaves: Any, context: Any) -> InverseKeyedJaggedTensor:
    ikjt = object.__new__(InverseKeyedJaggedTensor)  # unchecked: pytree fills the shape with non-tensors too
    ikjt._values, ikjt._lengths, ikjt._inverse, ikjt._weights, ikjt._starts = leaves  # pyright: ignore[reportPrivateUsage]
    ikjt._shapes, ikjt._stride, ikjt._keys = context  # pyright: ignore[reportPrivateUsage]
    return ikjt


pytree.register_pytree_node(
    InverseKeyedJaggedTensor,
    _flatten,
    _unflatten,
    serialized_type_name="lightning_intune.InverseKeyedJaggedTensor",
)
