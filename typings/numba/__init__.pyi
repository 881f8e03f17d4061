# numba ships no types. A compiled function is called as the function it was made from.
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

def njit(**options: Any) -> Callable[[F], F]: ...
def __getattr__(name: str) -> Any: ...
