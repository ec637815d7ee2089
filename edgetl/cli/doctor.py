"""``edgetl doctor``."""

from __future__ import annotations

from typing import Any

import click

from edgetl.cli.options import emit_json, json_option

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
)


@click.command(short_help="Say what this machine can do, and how to add the rest.")
@json_option
def doctor(json_out: str | None) -> None:
    """Say what this machine can do, which parts of edgetl are installed, and the line that adds the rest."""
    from edgetl import host
    from edgetl.cli.display import Display

    report = _examine()
    display = Display(json_to_stdout=json_out == "-")
    facts = report["host"]
    display.console.print(f"{facts['cpu']}, {facts['cores']} cores usable, {facts['arch']}, {facts['system']}")
    gpus = ", ".join(facts["gpus"]) or "none that nvidia-smi lists"
    display.console.print(f"GPU: {gpus}" + (f"; board: {facts['board']}" if facts["board"] else ""))
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
    emit_json(json_out, report)


def _examine() -> dict[str, Any]:
    import importlib.util
    from importlib import metadata

    from edgetl import host

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
    problems = []
    if host.gpu_names() and providers and "CUDAExecutionProvider" not in providers:
        problems.append(
            "onnxruntime here has no CUDA: pip uninstall -y onnxruntime, then pip install 'edgetl[cuda]', to run "
            "graphs on the GPU"
        )
    distributions = {name.lower() for name in owners.get("onnxruntime", [])}
    if {"onnxruntime", "onnxruntime-gpu"} <= distributions:
        problems.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: "
            "pip uninstall -y onnxruntime onnxruntime-gpu, then install one"
        )
    if host.is_jetson() and any(name.lower().startswith("tensorrt") for name in owners.get("tensorrt", [])):
        problems.append("tensorrt came from pip; on a Jetson use JetPack's, in a venv with --system-site-packages")
    return {"host": host.facts(), "parts": parts, "providers": providers, "problems": problems}


def _install_line(extra: str) -> str:
    from edgetl import host

    if extra == "tensorrt" and host.is_jetson():  # pip's build does not know the board
        return "JetPack's own: python3 -m venv --system-site-packages"
    return f"pip install 'edgetl[{extra}]'"


def _providers() -> list[str]:
    """Returns onnxruntime's execution providers, or none where it is not installed or cannot be imported."""
    try:
        import onnxruntime
    except Exception:  # two builds over each other raise whatever is missing
        return []
    return [str(name) for name in onnxruntime.get_available_providers()]
