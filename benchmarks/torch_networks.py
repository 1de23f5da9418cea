"""The zoo's networks in PyTorch, with weights copied over: what the peers attack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

Arrays = Mapping[str, np.ndarray]


def build(name: str, arrays: Arrays, image: tuple[int, int, int]) -> nn.Module:
    """The network ``name`` with flax's variables ``arrays`` ("params/Conv_0/kernel" and so on)."""
    height, width, channels = image
    makers: dict[str, Callable[[], nn.Module]] = {
        "mnist_madry": lambda: _madry(height, width),
        "lenet5": lambda: _lenet5(height, width),
        "densenet48": lambda: _DenseNet48(height, width),
        "convnet48": lambda: _convnet48(height, width),
        "resnet18": lambda: _ResNet18(channels),
        "densenet121": lambda: _DenseNet121(channels),
    }
    net = makers[name]()
    _copy(net, arrays)
    return net.eval().requires_grad_(False)


class _Flatten(nn.Module):
    """Flattens in flax's order (rows, columns, channels): the next weights fit as they are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1).flatten(1)


def _conv(i: int, o: int, k: int, s: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, s, k // 2, bias=bias)


def _madry(height: int, width: int) -> nn.Module:
    return nn.Sequential(
        _conv(1, 32, 5), nn.ReLU(True), nn.MaxPool2d(2),
        _conv(32, 64, 5), nn.ReLU(True), nn.MaxPool2d(2),
        _Flatten(), nn.Linear(64 * (height // 4) * (width // 4), 1024), nn.ReLU(True),
        nn.Linear(1024, 10),
    )  # fmt: skip


def _lenet5(height: int, width: int) -> nn.Module:
    return nn.Sequential(
        _conv(1, 32, 3), nn.ReLU(True), nn.MaxPool2d(2),
        _conv(32, 64, 3), nn.ReLU(True), nn.MaxPool2d(2),
        _Flatten(), nn.Linear(64 * (height // 4) * (width // 4), 200), nn.ReLU(True),
        nn.Linear(200, 10),
    )  # fmt: skip


def _convnet48(height: int, width: int) -> nn.Module:
    layers: list[nn.Module] = []
    for block in range(4):
        layers += [_conv(16 if block else 1, 16, 3), nn.ReLU(True)]
        layers += [_conv(16, 16, 3), nn.ReLU(True), nn.MaxPool2d(2)]
    head = [_Flatten(), nn.Linear(16 * (height // 16) * (width // 16), 50), nn.ReLU(True)]
    return nn.Sequential(*layers, *head, nn.Linear(50, 2))


class _DenseNet48(nn.Module):
    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList()
        channels = 1
        for _ in range(4):
            self.convs += [_conv(channels, 16, 3), _conv(channels + 16, 16, 3)]
            self.convs.append(_conv(channels + 32, 32, 1))
            channels = 32
        size = 32 * (height // 16) * (width // 16)
        self.head = nn.Sequential(_Flatten(), nn.Linear(size, 50), nn.ReLU(True), nn.Linear(50, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.convs[1].weight.is_contiguous(memory_format=torch.channels_last):
            # A single channel fits both formats and PyTorch would concatenate in the slower one.
            x = x.reshape(x.shape[0], *x.shape[2:], 1).permute(0, 3, 1, 2)
        for i in range(0, len(self.convs), 3):
            for conv in self.convs[i : i + 2]:
                x = torch.cat([x, F.relu(conv(x), inplace=True)], 1)
            x = F.relu(self.convs[i + 2](F.max_pool2d(x, 2)), inplace=True)
        return self.head(x)


class _BasicBlock(nn.Module):
    def __init__(self, i: int, o: int, s: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(i, o, 3, s, False), nn.BatchNorm2d(o)
        self.conv2, self.norm2 = _conv(o, o, 3, 1, False), nn.BatchNorm2d(o)
        self.short = None
        if s != 1 or i != o:
            self.short = nn.Sequential(_conv(i, o, 1, s, False), nn.BatchNorm2d(o))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        return F.relu(y + (x if self.short is None else self.short(x)), inplace=True)


class _ResNet18(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem, self.norm = _conv(channels, 64, 3, 1, False), nn.BatchNorm2d(64)
        blocks, before = [], 64
        for stage in range(4):
            for j in range(2):
                blocks.append(_BasicBlock(before, 64 * 2**stage, 2 if stage and not j else 1))
                before = 64 * 2**stage
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(512, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.stem(x)), inplace=True)
        return self.head(self.blocks(x).mean((2, 3)))


class _Unit(nn.Module):
    """BatchNorm, ReLU, convolution."""

    def __init__(self, i: int, o: int, k: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(i), _conv(i, o, k, 1, False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.relu(self.norm(x), inplace=True))


class _DenseNet121(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        growth, width = 32, 64
        self.stem = _conv(channels, width, 3, 1, False)
        self.layers, self.plan = nn.ModuleList(), []
        for i, count in enumerate((6, 12, 24, 16)):
            for _ in range(count):
                self.layers.append(
                    nn.Sequential(_Unit(width, 4 * growth, 1), _Unit(4 * growth, growth, 3))
                )
                self.plan.append("dense")
                width += growth
            if i < 3:
                self.layers.append(_Unit(width, width // 2, 1))
                self.plan.append("transition")
                width //= 2
        self.norm, self.head = nn.BatchNorm2d(width), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for layer, kind in zip(self.layers, self.plan, strict=True):
            x = torch.cat([x, layer(x)], 1) if kind == "dense" else F.avg_pool2d(layer(x), 2)
        return self.head(F.relu(self.norm(x), inplace=True).mean((2, 3)))


def _copy(net: nn.Module, arrays: Arrays) -> None:
    """Weights by order of use: flax counts a module's layers of a kind as they are called."""
    order = _flax_order(arrays)
    for kind, cls in (("Conv", nn.Conv2d), ("Dense", nn.Linear), ("BatchNorm", nn.BatchNorm2d)):
        layers = [m for m in net.modules() if isinstance(m, cls)]
        prefixes = [p for p in order if p.rsplit("/", 1)[-1].startswith(f"{kind}_")]
        if len(layers) != len(prefixes):
            raise ValueError(f"{len(layers)} {kind} layers in PyTorch, {len(prefixes)} in flax")
        for layer, prefix in zip(layers, prefixes, strict=True):
            _fill(layer, prefix, arrays)


def _flax_order(arrays: Arrays) -> list[str]:
    """Paths of the layers, in order of use: nested modules by number, then layers by number."""
    paths = {k[len("params/") :].rsplit("/", 1)[0] for k in arrays if k.startswith("params/")}

    def key(path: str) -> Any:
        parts = [p.rsplit("_", 1) for p in path.split("/")]
        # A stem (top-level Conv_0, BatchNorm_0) comes before the blocks.
        nested = len(parts) > 1
        return (nested, [int(number) for _, number in parts])

    return sorted(paths, key=key)


def _fill(layer: Any, prefix: str, arrays: Arrays) -> None:
    get = lambda name: torch.from_numpy(arrays[f"params/{prefix}/{name}"].copy())
    if isinstance(layer, nn.BatchNorm2d):
        layer.weight.data, layer.bias.data = get("scale"), get("bias")
        layer.running_mean = torch.from_numpy(arrays[f"batch_stats/{prefix}/mean"].copy())
        layer.running_var = torch.from_numpy(arrays[f"batch_stats/{prefix}/var"].copy())
        return
    kernel = get("kernel")
    kernel = kernel.permute(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
    if layer.weight.shape != kernel.shape:
        raise ValueError(f"{prefix}: {tuple(kernel.shape)} for {tuple(layer.weight.shape)}")
    layer.weight.data = kernel.contiguous()
    if layer.bias is not None:
        layer.bias.data = get("bias")
