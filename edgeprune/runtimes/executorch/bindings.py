"""The C++ libraries of the package executorch, called by ctypes. Its own bindings for Python need the libraries of torch.

A name in C++ holds the types of the arguments. So a release that changes a function lacks the name, and is refused. The
layouts of structures are those of ExecuTorch 1.5 on 64-bit Linux.
"""

from __future__ import annotations

import functools
from ctypes import (
    CDLL,
    POINTER,
    Structure,
    c_bool,
    c_char_p,
    c_int,
    c_int8,
    c_int32,
    c_size_t,
    c_ssize_t,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
    string_at,
)  # fmt: skip
from importlib.metadata import version
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

from ..device import Array, Failed

LIBRARIES = "", "_threadpool", "_etdump", "_kernels_optimized", "_backend_xnnpack"  # the last two only register
MODULE, METHOD = "_ZN10executorch9extension6module6Module", "10executorch7runtime6Method"
POOL, TRACE = "_ZN10executorch9extension10threadpool", "_ZN10executorch6etdump9ETDumpGen"
STRING = "RKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE"
MMAP, CONSISTENT, TENSOR = 1, 1, 1  # values of LoadMode, Program::Verification and Tag
DTYPES = {  # by their number in torch
    **dict(enumerate("uint8 int8 int16 int32 int64 float16 float32 float64".split())),
    11: "bool",
    15: "bfloat16",
}
NUMBERS = {name: number for number, name in DTYPES.items()}
ERRORS = {
    0x10: "NotSupported", 0x12: "InvalidArgument", 0x14: "OperatorMissing", 0x20: "NotFound", 0x22: "AccessFailed",
    0x21: "MemoryAllocationFailed", 0x23: "InvalidProgram", 0x30: "DelegateInvalidCompatibility",
}  # fmt: skip

Object = c_uint64 * 1024  # room for any object of C++: a Module takes 120 words


class Span(Structure):
    """A pointer and a size: Span, ArrayRef, and the result of a trace."""

    _fields_ = (("data", c_void_p), ("size", c_size_t))


class String(Structure):
    """std::string of libstdc++."""

    _fields_ = (("data", c_char_p), ("size", c_size_t), ("rest", c_uint64 * 2))


class MethodResult(Structure):
    """Result<Method *>. It is larger than in C++: so ctypes returns it through memory, as C++ does with this class."""

    _fields_ = (("method", c_void_p), ("ok", c_bool), ("rest", c_uint64 * 4))


class Tensor(Structure):
    """TensorImpl. Strides count elements."""

    _fields_ = (
        ("sizes", POINTER(c_int32)),
        ("order", POINTER(c_uint8)),
        ("strides", POINTER(c_int32)),
        ("data", c_void_p),
        ("dims", c_ssize_t),
        ("count", c_ssize_t),
        ("most", c_size_t),
        ("type", c_int8),
        ("dynamism", c_uint8),
        ("device", c_int8 * 2),
    )


class Value(Structure):
    """EValue."""

    _fields_ = (("tensor", POINTER(Tensor)), ("tag", c_uint32))


P = c_void_p
# The name in C++, the type of the result, and those of the arguments.
FUNCTIONS: dict[str, tuple[str, Any, tuple[Any, ...]]] = {
    "open": (
        f"{MODULE}C1E{STRING}NS2_8LoadModeESt10unique_ptrINS_7runtime11EventTracerESt14default_deleteISE_EE"
        "SC_INSD_15MemoryAllocatorESF_ISI_EESK_b",
        None,
        (P, P, c_int, P, P, P, c_bool),
    ),
    "close": (f"{MODULE}D1Ev", None, (P,)),
    "load": (f"{MODULE}4loadENS_7runtime7Program12VerificationE", c_int, (P, c_int)),
    "load_method": (
        f"{MODULE}11load_methodE{STRING}PNS_7runtime21HierarchicalAllocatorEPNSB_11EventTracerE"
        "PKNSB_21LoadBackendOptionsMapESt6vectorINSB_6KernelESaISK_EE",
        c_int,
        (P, P, P, P, P, P),
    ),
    "method": (f"{MODULE}6methodE{STRING}", MethodResult, (P, P)),
    "set_inputs": (f"_ZN{METHOD}10set_inputsERKNS0_8ArrayRefINS0_6EValueEEE", c_int, (P, P)),
    "execute": (f"_ZN{METHOD}7executeEv", c_int, (P,)),
    "outputs_size": (f"_ZNK{METHOD}12outputs_sizeEv", c_size_t, (P,)),
    "get_output": (f"_ZNK{METHOD}10get_outputEm", POINTER(Value), (P, c_size_t)),
    "threadpool": (f"{POOL}14get_threadpoolEv", P, ()),
    "threads": ("_ZNK" + POOL[3:] + "10ThreadPool16get_thread_countEv", c_size_t, (P,)),
    "set_threads": (f"{POOL}10ThreadPool24_unsafe_reset_threadpoolEj", c_bool, (P, c_uint32)),
    "open_trace": (f"{TRACE}C1ENS_7runtime4SpanIhEE", None, (P, Span)),
    "trace": (f"{TRACE}15get_etdump_dataEv", Span, (P,)),
}


@functools.lru_cache(maxsize=None)
def functions() -> Any:
    """The functions of `FUNCTIONS`. Raises `Failed` where the package is missing, or has others."""
    try:
        release, found = version("executorch"), find_spec("executorch")
        if found is None or not found.submodule_search_locations:
            raise ImportError("its folder is missing")
        folder = next(iter(found.submodule_search_locations))
        libraries = [CDLL(f"{folder}/lib/libexecutorch{name}.so") for name in LIBRARIES]
    except (ImportError, OSError) as error:
        raise Failed("runtime-missing", f"executorch cannot be loaded: {error}") from error
    called = SimpleNamespace(version=release)
    for name, (symbol, result, arguments) in FUNCTIONS.items():
        function = next((getattr(one, symbol) for one in libraries if hasattr(one, symbol)), None)
        if function is None:
            raise Failed(
                "runtime-missing",
                f"executorch {release} lacks a function that 1.5 has ({name}); install executorch 1.5",
            )
        function.restype, function.argtypes = result, arguments
        setattr(called, name, function)
    return called


def text(content: str) -> String:
    """A text of Python for C++. It must outlive the call."""
    data = content.encode()
    return String(data, len(data))


def tensor(array: Array) -> Tensor:
    """A tensor on the memory of an array in C order, which must outlive it."""
    if array.dtype.name not in NUMBERS:
        raise Failed("run", f"executorch has no type {array.dtype.name}")
    dims, strides = array.ndim, [stride // array.itemsize for stride in array.strides]
    sizes = (c_int32 * dims)(*array.shape), (c_uint8 * dims)(*range(dims)), (c_int32 * dims)(*strides)
    return Tensor(*sizes, array.ctypes.data, dims, array.size, array.size, NUMBERS[array.dtype.name])


def copied(value: Value) -> Array:
    """The array of a tensor: a copy."""
    import numpy

    if value.tag != TENSOR:
        raise Failed("run", "an output of the model is no tensor")
    found = value.tensor.contents
    name, dims = DTYPES.get(found.type, ""), found.dims
    if name in ("", "bfloat16"):
        raise Failed("run", f"an output of the model has the type {name or found.type}, which NumPy lacks")
    dtype = numpy.dtype(name)
    shape, strides = (list(places[:dims]) if dims else [] for places in (found.sizes, found.strides))
    data = string_at(found.data, found.count * dtype.itemsize) if found.count else b""
    return numpy.ndarray(shape, dtype, data, strides=[stride * dtype.itemsize for stride in strides]).copy()
