"""A device that is no processor to look at and computes on the processor: what a run asks of an accelerator is seen without one.

Importing it makes ``pretend`` the process's accelerator, for good. Its tensors cannot be mixed with the processor's or read without being
brought there, as those of any accelerator, and every way that is for accelerators only is taken. It says nothing about speed, about memory
or about kernels that a real device has of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

aten = torch.ops.aten
NAME = "pretend"

# An accelerator takes the processor's tensors here: to bring them over, and as indices. Numbers (no dimensions) it takes everywhere.
_BRINGS = {aten.copy_.default, aten._to_copy.default}
_INDEXES = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class _Module(_DummyBackendModule):
    """What torch asks the device's module for when layers are computed again in the backward pass."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float32, torch.bfloat16]

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)


class _Generator(torch.Generator):
    """Draws on the processor, wherever it is asked to."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        return super().__new__(cls, device="cpu")


class Pretend(Tensor):
    """A tensor on the device; ``inner`` is what it holds."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Pretend:
        made: Pretend = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype, layout=inner.layout,
            device=torch.device(NAME, 0))
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})

    @property
    def data(self) -> Any:
        return self.detach()

    @data.setter
    def data(self, value: Any) -> None:
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.inner = value.inner

    def tolist(self) -> Any:
        return self.inner.tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operation gives: on the device if one of its tensors is there, unless it names another."""
    tensors = _tensors((*args, *kwargs.values()))
    here = any(isinstance(tensor, Pretend) for tensor in tensors)
    if here and func not in _BRINGS:
        bound = tensors if func not in _INDEXES else _tensors((args[0], *args[2:]))
        strangers = [tuple(tensor.shape) for tensor in bound if not isinstance(tensor, Pretend) and tensor.dim()]
        if strangers:
            raise RuntimeError(f"{func} was given tensors of the processor, {strangers}, beside the accelerator's")
    if func is aten._fused_sdp_choice.default:
        return 0  # attention in single operations
    if func is aten.copy_.default:
        _inner(args[0]).copy_(_inner(args[1]))
        return args[0]
    if kwargs.get("device") is not None:
        here = torch.device(kwargs["device"]).type == NAME
        kwargs = kwargs | {"device": torch.device("cpu")}
    result = func(*_each(_inner, args), **{name: _each(_inner, value) for name, value in kwargs.items()})
    if not here:
        return result
    known = {id(tensor.inner): tensor for tensor in tensors if isinstance(tensor, Pretend)}  # what is changed in place stays what it is

    def outer(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or isinstance(leaf, Pretend):
            return leaf
        same = known.get(id(leaf))
        return Pretend(leaf) if same is None or same.shape != leaf.shape else same

    return _each(outer, result)


def _inner(leaf: Any) -> Any:
    return leaf.inner if isinstance(leaf, Pretend) else leaf


def _tensors(values: Any) -> list[Tensor]:
    """All tensors of an operation's arguments, those in lists too."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _tensors(value)
    return found


def _each(change: Callable[[Any], Any], value: Any) -> Any:
    """An argument or a result with each of its leaves changed."""
    if isinstance(value, (list, tuple)):
        return type(value)([_each(change, one) for one in value])
    return change(value)


_setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
torch.Generator = _Generator  # type: ignore[misc]
torch.accelerator.synchronize = lambda *device: None  # type: ignore[assignment]
torch.accelerator.empty_cache = lambda: None
torch.__future__.set_swap_module_params_on_conversion(True)  # or moving a model would untie its tied weights, which is this class's doing


@torch.library.impl("aten::empty.memory_format", "privateuseone")
def _empty(size: Any, *, dtype: Any = None, **options: Any) -> Tensor:
    return Pretend(torch.empty(size, dtype=dtype, device="cpu"))


@torch.library.impl("aten::empty_strided", "privateuseone")
def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **options: Any) -> Tensor:
    return Pretend(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))


@torch.library.impl("aten::eye", "privateuseone")
def _eye(n: int, *, dtype: Any = None, **options: Any) -> Tensor:
    return Pretend(torch.eye(n, dtype=dtype, device="cpu"))


@torch.library.impl("aten::_copy_from", "privateuseone")
def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    _inner(target).copy_(_inner(source))
    return target
