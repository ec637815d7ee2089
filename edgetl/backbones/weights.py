"""Reading files of weights without unpickling, and mapping them onto a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from edgetl.errors import WeightsError

__all__ = ["Match", "WeightsReport", "map_weights", "read_weights"]

_PREFIXES = ("module.", "model.", "_orig_mod.", "network.", "net.")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "model_ema", "net", "weights")
SMALLEST_MATCH = 0.5


@dataclass(frozen=True)
class Match:
    """One tensor of the network and where it came from; ``how`` is ``name`` or ``order``."""

    target: str
    source: str
    how: str


@dataclass(frozen=True)
class WeightsReport:
    """What a file of weights gave a network.

    Attributes:
        matched: Tensors that were filled.
        left: Tensors of the file that found no place.
        missing: Tensors of the network that stay as initialized.
    """

    matched: tuple[Match, ...]
    left: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def fraction(self) -> float:
        """Share of the network's tensors that were filled."""
        return len(self.matched) / max(1, len(self.matched) + len(self.missing))


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads a ``.safetensors`` or ``.pth`` / ``.pt`` file; the latter with ``weights_only=True``.

    Returns:
        The tensors by name, known prefixes and wrappers taken off, and the file's own metadata.

    Raises:
        WeightsError: The file is absent, damaged, of another kind, or holds more than tensors.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; --weights takes default, none, FILE.pth or FILE.safetensors")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path}: is not a readable safetensors file ({error})") from None
    if path.suffix not in (".pth", ".pt"):
        raise WeightsError(f'{path}: ends in "{path.suffix}", weights are .safetensors, .pth or .pt')
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds: pickle, zip, runtime
        first = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: cannot be read without unpickling code ({first})") from None
    return _plain_state(path, data), {}


def _plain_state(path: Path, data: object) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(data, Mapping) and isinstance(data.get(wrapper), Mapping):
            data = data[wrapper]
            break
    state = {k: v for k, v in data.items() if isinstance(v, Tensor)} if isinstance(data, Mapping) else {}
    if not state:
        raise WeightsError(f"{path}: holds no tensors by name; save model.state_dict()")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def map_weights(module: nn.Module, state: Mapping[str, Tensor], origin: str) -> WeightsReport:
    """Copies tensors into a network: by name and shape, what remains by order and shape.

    A tensor whose name stands in the file with another shape stays as it is: both speak of the same layer, and
    another layer's values would not do.

    Args:
        module: The network, changed in place.
        state: Tensors by name.
        origin: What the user called them, for the error.

    Raises:
        WeightsError: Fewer than half of the network's tensors found a source.
    """
    target = {name: tensor for name, tensor in module.state_dict().items() if _counts(name)}
    source = {name: tensor for name, tensor in state.items() if _counts(name)}
    matches = [Match(n, n, "name") for n, t in target.items() if n in source and source[n].shape == t.shape]
    matches += _by_order(
        {n: t for n, t in target.items() if n not in source}, {n: t for n, t in source.items() if n not in target}
    )
    filled, used = {m.target for m in matches}, {m.source for m in matches}
    report = WeightsReport(
        tuple(matches), tuple(n for n in source if n not in used), tuple(n for n in target if n not in filled)
    )
    if report.fraction < SMALLEST_MATCH:
        raise WeightsError(
            f"{origin}: only {len(report.matched)} of {len(target)} tensors fit this network; "
            f'the file begins with "{next(iter(source), "nothing")}", the network with '
            f'"{next(iter(target), "nothing")}": is it the same architecture?'
        )
    with torch.no_grad():
        for match in matches:
            target[match.target].copy_(source[match.source])
    return report


def _counts(name: str) -> bool:
    return not name.endswith("num_batches_tracked")


def _by_order(target: dict[str, Tensor], source: dict[str, Tensor]) -> list[Match]:
    """Aligns the two sequences of shapes and takes the runs they share."""
    names, sources = list(target), list(source)
    a = [tuple(target[n].shape) for n in names]
    b = [tuple(source[n].shape) for n in sources]
    runs = SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
    return [Match(names[run.a + i], sources[run.b + i], "order") for run in runs for i in range(run.size)]
