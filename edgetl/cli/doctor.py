"""``edgetl doctor``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetl.cli.options import emit_json, json_option

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

    from edgetl.compile import Product
    from edgetl.jetson import Jetson

__all__ = ["doctor"]

# (what it is for, module, extra)
_PARTS = (
    ("run bundles on the CPU", "onnxruntime", "cpu"),
    ("fine-tune", "torch", "train"),
    ("fine-tune", "torchvision", "train"),
    ("fine-tune", "lightning", "train"),
    ("fine-tune", "timm", "train"),
    ("fine-tune", "safetensors", "train"),
    ("fine-tune", "sklearn", "train"),
    ("fine-tune", "yaml", "train"),
    ("export", "onnx", "export"),
    ("export", "onnxscript", "export"),
    ("build TensorRT plans", "tensorrt", "tensorrt"),
    ("build TensorRT-RTX plans", "tensorrt_rtx", "rtx"),
    ("run plans", "cuda", "jetson"),
    ("measure on boards", "paramiko", "remote"),
    ("draw reports", "matplotlib", "report"),
    ("draw reports", "jinja2", "report"),
)


@click.command(short_help="Say what this machine can do, and how to add the rest.")
@click.option(
    "--check", is_flag=True, help="End with exit code 1 where there are problems: a container's health check."
)
@json_option
def doctor(check: bool, json_out: str | None) -> None:
    """Say what this machine can do, which parts of edgetl are installed, and the line that adds the rest."""
    from edgetl import host
    from edgetl.cli.display import Display
    from edgetl.errors import GateError

    report = _examine()
    display = Display(json_to_stdout=json_out == "-")
    facts = report["host"]
    display.console.print(f"{facts['cpu']}, {facts['cores']} cores usable, {facts['arch']}, {facts['system']}")
    display.console.print(f"memory: {_gib(facts['memory_bytes'])}, {_gib(facts['available_bytes'])} of it free")
    display.console.print(_gpu_line(report))
    if report["jetson"]:
        display.console.print(_jetson_line(report["jetson"]))
    cache = report["cache"]
    display.console.print(f"plans: {cache['plans']} in {cache['path']}, {cache['bytes'] / 1e6:.1f} MB")
    if host.arch() == "x86" and not facts["int8_dot"]:
        display.note("this processor has no VNNI: INT8 gains less here, and large sums can saturate")
    rows = [
        (part["for"], part["module"], part["version"] or "-", "" if part["installed"] else part["install"])
        for part in report["parts"]
    ]
    display.table("parts", ("for", "module", "version", "to add it"), rows, text=4)
    if report["providers"]:
        display.console.print(f"onnxruntime runs on: {', '.join(report['providers'])}")
    for problem in report["problems"]:
        display.note(f"problem: {problem}")
    for remark in report["remarks"]:
        display.note(f"remark: {remark}")
    emit_json(json_out, report)
    if check and report["problems"]:
        raise GateError(f"{len(report['problems'])} problems, the first: {report['problems'][0]}")


def _examine() -> dict[str, Any]:
    import importlib.util
    from importlib import metadata

    from edgetl import host
    from edgetl.compile import PRODUCTS
    from edgetl.jetson import jetson

    owners = metadata.packages_distributions()
    parts = []
    for purpose, module, extra in _PARTS:
        installed = importlib.util.find_spec(module) is not None
        names = owners.get(module, [])
        parts.append(
            {
                "for": purpose,
                "module": module,
                "installed": installed,
                "version": metadata.version(names[0]) if installed and names else None,
                "install": _install_line(extra),
            }
        )
    providers = _providers()
    board, cache = jetson(), _cache()
    device, why_none = _gpu()
    problems = [] if cache["problem"] is None else [cache["problem"]]
    if device is None and (host.has_nvidia_device() or board is not None):
        problems.append(f"the GPU cannot be used: {why_none}")
    problems += [why for why in map(_why_broken, PRODUCTS) if why is not None]
    distributions = {name.lower() for name in owners.get("onnxruntime", [])}
    if {"onnxruntime", "onnxruntime-gpu"} <= distributions:
        problems.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: "
            "pip uninstall -y onnxruntime onnxruntime-gpu, then install one"
        )
    if board is not None:
        problems += _problems_of(board, importlib.util.find_spec("tensorrt"))
    usable = any(part["installed"] for part in parts if part["module"] in ("tensorrt", "tensorrt_rtx"))
    remarks = [] if board is None else _remarks_on(board)
    if host.gpu_names() and providers and "CUDAExecutionProvider" not in providers and not usable:
        remarks.append(
            "graphs run on the CPU here: install TensorRT, or an onnxruntime with CUDA (pip uninstall -y onnxruntime, "
            "then pip install 'edgetl[cuda]')"
        )
    return {
        "host": host.facts(),
        "gpu": device,
        "jetson": None if board is None else board.to_dict(),
        "cache": cache,
        "parts": parts,
        "providers": providers,
        "problems": problems,
        "remarks": remarks,
    }


def _gpu() -> tuple[dict[str, Any] | None, str]:
    """Returns what CUDA says of the GPU, or why it says nothing."""
    from edgetl import gpu
    from edgetl.errors import EngineError, MissingExtraError

    try:
        return {**gpu.current_gpu().to_dict(), "cuda_driver": gpu.driver_version()}, ""
    except (EngineError, MissingExtraError) as error:
        return None, str(error)


def _why_broken(product: Product) -> str | None:
    """Returns why a product that is installed cannot be loaded, or None."""
    from edgetl.errors import EngineError, MissingExtraError

    try:
        product.bindings()
    except MissingExtraError:
        return None
    except EngineError as error:
        return str(error)
    return None


def _problems_of(board: Jetson, tensorrt: ModuleSpec | None) -> list[str]:
    """Returns what keeps a Jetson from running plans."""
    problems = []
    if (board.jetpack or "").startswith("5"):
        problems.append(f"JetPack {board.jetpack} brings TensorRT 8, edgetl needs 10.3: flash JetPack 6.1 or newer")
    own = board.system_tensorrt
    if tensorrt is not None and own is not None and not str(tensorrt.origin).startswith(own):
        problems.append(
            f"the tensorrt seen here is not JetPack's: pip uninstall -y tensorrt, and make the environment by "
            f"python3 -m venv --system-site-packages, which sees {own}"
        )
    elif tensorrt is None and own is not None:
        problems.append(
            f"TensorRT is in {own}, this environment does not see it: make it again by "
            "python3 -m venv --system-site-packages"
        )
    elif tensorrt is None:
        problems.append("TensorRT is not installed: sudo apt-get install python3-libnvinfer")
    return problems


def _remarks_on(board: Jetson) -> list[str]:
    """Returns what makes a Jetson slower than it could be, or its timings unsteady."""
    remarks, mode = [], board.power_mode
    if mode is not None and not mode.startswith("MAXN"):
        remarks.append(f"power mode {mode} is not the fastest; /etc/nvpmodel.conf lists them, nvpmodel -m ID sets one")
    if board.clocks_locked is False:
        remarks.append("the GPU's clock moves, so timings do: sudo jetson_clocks holds it while you measure")
    return remarks


def _cache() -> dict[str, Any]:
    """Returns where plans are kept, how many, and what is wrong with the place."""
    from edgetl.compile import PlanStore, default_cache
    from edgetl.errors import EngineError

    root: Path | None = None
    try:
        root = default_cache()
        PlanStore(root)
        nearest = next(folder for folder in (root, *root.parents) if folder.exists())
        if not os.access(nearest, os.W_OK):
            raise EngineError(
                f"{nearest}: plans cannot be kept there (no write access); name a folder of your own by EDGETL_CACHE"
            )
        sizes = [path.stat().st_size for path in root.glob("*.plan")]
    except (EngineError, OSError) as error:
        return {"path": None if root is None else str(root), "plans": 0, "bytes": 0, "problem": str(error)}
    return {"path": str(root), "plans": len(sizes), "bytes": sum(sizes), "problem": None}


def _gib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**30:.1f} GiB"


def _gpu_line(report: dict[str, Any]) -> str:
    facts, device = report["host"], report["gpu"]
    board = f"; board: {facts['board']}" if facts["board"] else ""
    if device is None:
        return f"GPU: {', '.join(facts['gpus']) or 'none'}{board}"
    driver = device["cuda_driver"]
    return (
        f"GPU: {device['name']}, SM {device['sm']}, {device['memory_bytes'] / 2**30:.1f} GiB, driver for CUDA "
        f"{driver // 1000}.{driver % 1000 // 10}{board}"
    )


def _jetson_line(board: dict[str, Any]) -> str:
    clock = board["gpu_mhz"]
    return (
        f"JetPack {board['jetpack'] or 'unknown'} (L4T {board['l4t']}), power mode {board['power_mode'] or 'unknown'}, "
        + (f"GPU at {clock[0]} of {clock[1]} MHz, " if clock else "")
        + f"DLA cores: {board['dla_cores']}"
    )


def _install_line(extra: str) -> str:
    from edgetl.jetson import l4t_release

    on_board = l4t_release() is not None
    if extra == "tensorrt" and on_board:  # pip's build does not know the board
        return "JetPack's own: python3 -m venv --system-site-packages"
    if extra == "jetson" and not on_board:
        extra = "tensorrt"
    return f"pip install 'edgetl[{extra}]'"


def _providers() -> list[str]:
    """Returns onnxruntime's execution providers, or none where it is not installed or cannot be imported."""
    try:
        import onnxruntime
    except Exception:  # two builds over each other raise whatever is missing
        return []
    return [str(name) for name in onnxruntime.get_available_providers()]
