"""The compiled module: every argument explicit, every default in `xent_rs._functional`."""

from typing import Any, TypedDict, type_check_only

from numpy.typing import ArrayLike, NDArray

__version__: str

__all__ = [
    "InternalError",
    "__version__",
    "config",
    "cross_entropy",
    "cross_entropy_with_grad",
    "evaluate",
    "get_num_threads",
    "log_softmax",
    "logsumexp",
    "memory_copy",
    "memory_read",
    "panic_for_test",
    "set_num_threads",
    "set_simd_level",
    "simd_level",
    "simd_levels",
    "softmax",
]

@type_check_only
class Config(TypedDict):
    version: str
    profile: str
    cpu: str
    simd_level: str
    simd_levels: list[str]
    num_threads: int
    num_threads_source: str

class InternalError(RuntimeError): ...

def cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    ignore_index: int,
    temperature: float,
    axis: int,
    reduction: str,
    denominator: float | None,
) -> Any: ...
def cross_entropy_with_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    ignore_index: int,
    temperature: float,
    axis: int,
    reduction: str,
    denominator: float | None,
    grad_output: ArrayLike | None,
    out: NDArray[Any] | None,
) -> tuple[Any, NDArray[Any]]: ...
def logsumexp(logits: ArrayLike, axis: int, keepdims: bool, temperature: float) -> Any: ...
def softmax(logits: ArrayLike, axis: int, temperature: float, out: NDArray[Any] | None) -> NDArray[Any]: ...
def log_softmax(
    logits: ArrayLike, axis: int, temperature: float, out: NDArray[Any] | None
) -> NDArray[Any]: ...
def evaluate(
    logits: ArrayLike,
    targets: ArrayLike,
    top_k: tuple[int, ...],
    ignore_index: int,
    temperature: float,
    axis: int,
) -> tuple[float, float, list[int], int, int]: ...
def set_num_threads(n: int) -> None: ...
def get_num_threads() -> int: ...
def simd_levels() -> list[str]: ...
def simd_level() -> str: ...
def set_simd_level(name: str) -> None: ...
def config() -> Config: ...
def memory_read(array: NDArray[Any]) -> int: ...
def memory_copy(array: NDArray[Any], out: NDArray[Any]) -> None: ...
def panic_for_test() -> None: ...
