"""PyTorch state dicts as arrays, and as weights of the zoo, without PyTorch and without running a
pickle: the file's opcodes are read by an interpreter that knows tensors, containers and numbers,
and can neither import nor call anything."""

from __future__ import annotations

import dataclasses
import io
import math
import os
import pickletools
import re
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from advjax.models.classifier import Classifier

_MAGIC = 0x1950A86A20F9469CFC6C  # first number in a file of torch.save before 1.6
_BFLOAT16 = "bfloat16"
_DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": _BFLOAT16,
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
}


def load_torch(path: str | os.PathLike[str], key: str | None = None) -> dict[str, np.ndarray]:
    """The tensors of a state dict that ``torch.save`` wrote, in either of its formats.

    Args:
      path: a ``.pt`` or ``.pth`` file.
      key: where a checkpoint holds several things, the entry that is the state dict; dots separate
        nested entries.

    Returns:
      Name to array, in the file's order and PyTorch's layouts.

    Raises:
      ValueError: if the file is no such file, is cut off, or holds anything but tensors, containers
        and numbers (a whole pickled module, for instance).
    """
    with open(path, "rb") as file:
        read = _read_zip if zipfile.is_zipfile(file) else _read_legacy
        file.seek(0)
        try:
            found = read(file)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from None
        except (KeyError, IndexError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as e:
            raise ValueError(f"{os.fspath(path)}: not a file of torch.save, or damaged") from e
    for name in key.split(".") if key else ():
        if not isinstance(found, dict) or name not in found:
            raise ValueError(f"{os.fspath(path)}: no entry {key!r}; {_entries(found)}")
        found = found[name]
    if not isinstance(found, dict) or not any(isinstance(v, np.ndarray) for v in found.values()):
        raise ValueError(f"{os.fspath(path)}: not a state dict; {_entries(found)}; give one as key")
    return {name: value for name, value in found.items() if isinstance(value, np.ndarray)}


def _entries(found: Any) -> str:
    if not isinstance(found, dict):
        return f"it holds a {type(found).__name__}"
    return "entries are " + ", ".join(map(str, found))


@dataclasses.dataclass(frozen=True)
class _Name:
    """What a pickle would import; here only its name."""

    module: str
    name: str


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A view of a storage, to be cut out once the storages have been read."""

    storage: tuple[str, str, int]  # key, type, number of elements
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _build(function: Any, arguments: tuple[Any, ...]) -> Any:
    """The few calls that a state dict's pickle asks for."""
    known = (function.module, function.name) if isinstance(function, _Name) else (None, None)
    if known == ("collections", "OrderedDict"):
        return dict(*arguments)
    if known == ("torch", "Size"):
        return tuple(*arguments)
    if known in (
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_tensor"),
    ):
        storage, offset, shape, strides = arguments[:4]
        return _Tensor(storage, int(offset), tuple(shape), tuple(strides))
    if known == ("torch._utils", "_rebuild_parameter"):
        return arguments[0]
    raise ValueError(
        f"it wants to call {function}; expected tensors, containers and numbers. "
        "Save the module's state_dict() instead"
    )


def _storage(persistent: Any) -> tuple[str, str, int]:
    """``(key, type, numel)`` of a persistent id ``("storage", type, key, device, numel, ...)``."""
    kind, of, key, _, numel = persistent[:5]
    if kind != "storage" or not isinstance(of, _Name) or of.name not in _DTYPES:
        raise ValueError(f"it holds a storage of {of}; expected {', '.join(_DTYPES)}")
    return str(key), of.name, int(numel)


def _unpickle(file: BinaryIO | io.BytesIO) -> Any:
    """One pickle as plain Python values; ``_Tensor`` for tensors."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        values = stack[start:]
        del stack[start:]
        return values

    arg: Any
    for op, arg, _ in pickletools.genops(file):
        name = op.name
        if name in ("PROTO", "FRAME"):
            pass
        elif name == "STOP":
            return stack.pop()
        elif name == "MARK":
            marks.append(len(stack))
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _LITERALS:
            stack.append(arg)
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if name == "EMPTY_DICT" else [])
        elif name == "GLOBAL":
            stack.append(_Name(*arg.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            imported, module = stack.pop(), stack.pop()
            stack.append(_Name(module, imported))
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[arg] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[arg])
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            n = int(name[-1])
            stack[-n:] = [tuple(stack[-n:])]
        elif name == "APPEND":
            value = stack.pop()
            stack[-1].append(value)
        elif name == "APPENDS":
            values = since_mark()
            stack[-1].extend(values)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            stack[-1][key] = value
        elif name == "SETITEMS":
            values = since_mark()
            stack[-1].update(zip(values[::2], values[1::2], strict=True))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(_build(stack.pop(), arguments))
        elif name == "BUILD":  # a state dict's attributes (_metadata) beside its entries
            stack.pop()
            if not isinstance(stack[-1], dict):
                raise ValueError(f"it wants to fill in a {type(stack[-1]).__name__}")
        else:
            raise ValueError(f"its pickle has the opcode {name}, which a state dict does not need")
    raise EOFError


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "INT", "BINFLOAT", "FLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING", "SHORT_BINBYTES"),
}


def _read_zip(file: BinaryIO) -> Any:
    with zipfile.ZipFile(file) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("not a file of torch.save: no data.pkl in the archive")
        root = pickles[0].removesuffix("data.pkl")
        names = set(archive.namelist())
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder").strip() != b"little":
            raise ValueError("its numbers are big-endian")
        tree = _unpickle(io.BytesIO(archive.read(pickles[0])))
        return _cut(tree, lambda key, size: archive.read(f"{root}data/{key}"))


def _read_legacy(file: BinaryIO) -> Any:
    if _unpickle(file) != _MAGIC:
        raise ValueError("not a file of torch.save")
    _unpickle(file)  # protocol version
    if _unpickle(file).get("little_endian") is not True:
        raise ValueError("its numbers are big-endian")
    tree = _unpickle(file)
    sizes = {t.storage[0]: t for t in _tensors(tree)}
    data: dict[str, bytes] = {}
    for key in _unpickle(file):
        _, kind, numel = sizes[key].storage
        if int.from_bytes(file.read(8), "little") != numel:
            raise ValueError("damaged: a storage's size differs from what its tensors say")
        data[key] = file.read(numel * _itemsize(kind))
    return _cut(tree, lambda key, size: data[key])


def _tensors(tree: Any) -> list[_Tensor]:
    if isinstance(tree, _Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree
    return [t for part in parts for t in _tensors(part)] if _is_container(tree) else []


def _is_container(value: Any) -> bool:
    return isinstance(value, dict | list | tuple)


def _itemsize(kind: str) -> int:
    return 2 if _DTYPES[kind] == _BFLOAT16 else np.dtype(_DTYPES[kind]).itemsize


def _cut(tree: Any, read: Callable[[str, int], bytes]) -> Any:
    """The tree with its tensors cut out of the storages that ``read`` gives."""
    if isinstance(tree, dict):
        return {key: _cut(value, read) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_cut(value, read) for value in tree)
    if not isinstance(tree, _Tensor):
        return tree
    key, kind, numel = tree.storage
    raw = read(key, numel)
    if len(raw) != numel * _itemsize(kind):
        raise ValueError(f"damaged: storage {key} has {len(raw)} bytes of {numel} {kind} numbers")
    last = tree.offset + sum(
        (n - 1) * step for n, step in zip(tree.shape, tree.strides, strict=True)
    )
    if min((tree.offset, *tree.shape, *tree.strides)) < 0 or (
        0 not in tree.shape and last >= numel
    ):
        raise ValueError("damaged: a tensor reaches outside its storage")
    if _DTYPES[kind] == _BFLOAT16:
        flat = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        flat = np.frombuffer(raw, _DTYPES[kind])
    steps = tuple(step * flat.itemsize for step in tree.strides)
    view = np.lib.stride_tricks.as_strided(flat[tree.offset :], tree.shape, steps)
    return np.array(view)


def from_torch(
    module: nn.Module, tensors: Mapping[str, np.ndarray], x_shape: tuple[int, ...]
) -> Classifier:
    """A network of the zoo with a PyTorch network's weights, its layouts converted exactly.

    Layers are matched in order, convolutions with convolutions, linear with linear, BatchNorm with
    BatchNorm: kernels ``[O, I, H, W]`` become ``[H, W, I, O]``, and the first linear layer after
    the convolutions, whose input PyTorch flattens channels first, is reordered.

    Args:
      module: a network, as ``create`` makes it.
      tensors: a state dict, as ``load_torch`` returns it.
      x_shape: the shape of one image, ``(H, W, C)``.

    Raises:
      ValueError: if the layers do not fit each other.
    """
    start = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *x_shape)))
    theirs: dict[str, list[dict[str, np.ndarray]]] = {"conv": [], "linear": [], "norm": []}
    for layer in _layers(tensors).values():
        rank = layer["weight"].ndim if "weight" in layer else 1
        theirs[{4: "conv", 2: "linear"}.get(rank, "norm")].append(layer)
    variables: dict[str, Any] = {"params": {}}
    last_channels = None
    for path, params in sorted(_modules(start["params"]), key=lambda item: _natural(item[0])):
        rank = len(params["kernel"].shape) if "kernel" in params else 1
        kind = {4: "conv", 2: "linear"}.get(rank, "norm")
        if not theirs[kind]:
            raise ValueError(f"{'/'.join(path)}: the PyTorch weights have no {kind} layer left")
        layer = theirs[kind].pop(0)
        new: dict[str, np.ndarray] = {}
        if kind == "norm":
            new = {"scale": layer["weight"], "bias": layer["bias"]}
            stats = {"mean": layer["running_mean"], "var": layer["running_var"]}
            _put(variables.setdefault("batch_stats", {}), path, stats)
        else:
            kernel = layer["weight"]
            if kind == "conv":
                last_channels = kernel.shape[0]
                new["kernel"] = kernel.transpose(2, 3, 1, 0)
            else:
                if last_channels is not None:  # the first one after the convolutions
                    kernel = _channels_last(kernel, last_channels, x_shape)
                    last_channels = None
                new["kernel"] = kernel.T
            if "bias" in layer:
                new["bias"] = layer["bias"]
        want = {name: tuple(leaf.shape) for name, leaf in params.items()}
        have = {name: tuple(leaf.shape) for name, leaf in new.items()}
        if want != have:
            raise ValueError(f"{'/'.join(path)}: takes {want}; the PyTorch layer has {have}")
        _put(variables["params"], path, {k: jnp.asarray(v, jnp.float32) for k, v in new.items()})
    if left := sum(map(len, theirs.values())):
        raise ValueError(f"{left} layers of the PyTorch weights have no place in the network")
    if unknown := set(start) - set(variables):  # to PyTorch, such as a dropout rate
        fresh = module.init(jax.random.key(0), jnp.zeros((1, *x_shape)))
        variables |= {name: fresh[name] for name in unknown}
    return Classifier(module, jax.tree.map(jnp.asarray, variables))


def _layers(tensors: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Tensors grouped by layer, in the file's order."""
    out: dict[str, dict[str, np.ndarray]] = {}
    for name, value in tensors.items():
        layer, _, field = name.rpartition(".")
        if field != "num_batches_tracked":
            out.setdefault(layer, {})[field] = value
    return out


def _modules(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> list[tuple[Any, Any]]:
    """``(path, parameters)`` of every layer."""
    if not any(isinstance(value, Mapping) for value in tree.values()):
        return [(path, tree)]
    return [pair for name, part in tree.items() for pair in _modules(part, (*path, name))]


def _natural(path: tuple[str, ...]) -> list[Any]:
    """A key that sorts Conv_2 before Conv_10."""
    return [[int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)] for name in path]


def _put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def _channels_last(kernel: np.ndarray, channels: int, x_shape: tuple[int, ...]) -> np.ndarray:
    """A linear kernel ``[O, C H W]`` for inputs flattened channels last, ``[O, H W C]``."""
    places = kernel.shape[1] // channels
    if places == 1 or kernel.shape[1] % channels:
        return kernel
    height = round(math.sqrt(places * x_shape[0] / x_shape[1]))
    if height == 0 or places % height:
        raise ValueError(f"a linear layer takes {kernel.shape[1]} features of {channels} channels")
    grid = kernel.reshape(kernel.shape[0], channels, height, places // height)
    return grid.transpose(0, 2, 3, 1).reshape(kernel.shape)
