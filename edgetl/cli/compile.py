"""``edgetl compile``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetl.cli.options import PATH, SMS, emit_json, json_option

if TYPE_CHECKING:
    from edgetl.bundle import Bundle
    from edgetl.cli.display import Display
    from edgetl.compile import PlanSettings, Product

__all__ = ["compile_", "show_islands"]

_SHOWN = 4


@click.command("compile", short_help="Build TensorRT plans of a bundle, for this machine or ahead of time.")
@click.argument("bundle", type=PATH)
@click.option(
    "--engine",
    type=click.Choice(["auto", "tensorrt", "tensorrt-rtx"]),
    default="auto",
    show_default=True,
    help="What builds; auto takes the first that is installed.",
)
@click.option(
    "--out", type=PATH, help="Folder of plans to carry to other machines.  [default: this machine's own cache]"
)
@click.option("--sm", "sms", type=SMS, help="Compute capabilities, like 86,89, of GPUs that need not be here.")
@click.option("--variant", "variants", multiple=True, help="Only these; repeatable.  [default: fp16, int8-tensorrt]")
@click.option("--max-batch", type=int, default=8, show_default=True, help="Largest batch that a plan takes.")
@click.option("--best-batch", type=int, default=1, show_default=True, help="Batch that it is made fast for.")
@click.option("--workspace", type=click.IntRange(1), metavar="MIB", help="Limit of the kernels' working memory.")
@click.option("--optimization-level", type=int, metavar="0-5", help="How long the builder may search.")
@click.option("--dla", type=click.IntRange(0), metavar="CORE", help="Deep-learning accelerator of a Jetson to use.")
@json_option
def compile_(
    bundle: Path,
    engine: str,
    out: Path | None,
    sms: tuple[int, ...] | None,
    variants: Sequence[str],
    max_batch: int,
    best_batch: int,
    workspace: int | None,
    optimization_level: int | None,
    dla: int | None,
    json_out: str | None,
) -> None:
    """Build TensorRT plans of BUNDLE.

    Without --out, for this machine: both FP16 and INT8 are built and timed, and edgetl.load takes the faster one
    from then on. With --out, to be carried: edgetl.load(..., plans=DIR) takes a plan where product, version, system,
    processor, compute capability and graph are those it was built for. TensorRT-RTX needs no GPU for that.
    """
    from edgetl import gpu
    from edgetl.bundle import open_bundle
    from edgetl.cli.display import Display
    from edgetl.compile import PlanSettings, product_named
    from edgetl.errors import EngineError, InputError

    settings = PlanSettings(
        max_batch,
        best_batch,
        None if workspace is None else workspace << 20,
        optimization_level,
        dla,
        sms or (),
    )
    if sms and out is None:
        raise InputError("--sm builds for other machines: give --out, the folder that is carried there")
    opened = open_bundle(bundle)
    why_no_gpu = None if sms else gpu.absence()
    if why_no_gpu is not None:
        raise EngineError(f"{why_no_gpu}; --engine tensorrt-rtx --sm 86 --out DIR builds for another one")
    product = _installed() if engine == "auto" else product_named(engine)
    with Display(json_to_stdout=json_out == "-") as display:
        if out is None:
            report = _for_this_machine(display, opened, product, settings, variants)
        else:
            report = _to_carry(display, opened, product, settings, variants, out)
    emit_json(json_out, report)


def _installed() -> Product:
    from edgetl.compile import PRODUCTS
    from edgetl.errors import MissingExtraError

    for product in PRODUCTS:
        try:
            product.bindings()
        except MissingExtraError:
            continue
        return product
    raise MissingExtraError(
        "neither TensorRT nor TensorRT-RTX is installed: pip install 'edgetl[tensorrt]' (on a Jetson JetPack's own, "
        "in a venv with --system-site-packages), or 'edgetl[rtx]'"
    )


def _to_carry(
    display: Display, bundle: Bundle, product: Product, settings: PlanSettings, names: Sequence[str], out: Path
) -> dict[str, Any]:
    from edgetl.compile import write_plan

    plans = []
    for variant in _variants(bundle, names):
        plan, record = write_plan(bundle, variant, product, settings, out, on_progress=display.progress)
        plans.append({"path": str(plan.path), "bytes": plan.path.stat().st_size, **record})
    _show(display, out, plans)
    return {"engine": product.name, "plans": plans}


def _for_this_machine(
    display: Display, bundle: Bundle, product: Product, settings: PlanSettings, names: Sequence[str]
) -> dict[str, Any]:
    from edgetl.compile import PlanStore, default_cache, plan_for
    from edgetl.errors import EngineError
    from edgetl.runtime import load

    cache = PlanStore(default_cache())
    plans = []
    for variant in _variants(bundle, names):
        ready = plan_for(bundle, variant, product, settings, cache, on_progress=display.progress)
        if ready.path is None:
            raise EngineError(f"{variant.name}: was built and cannot be kept ({'; '.join(ready.notes)})")
        plans.append({"path": str(ready.path), "bytes": len(ready.data), "origin": ready.origin, **ready.record})
        for note in ready.notes:
            display.note(note)
    _show(display, cache.root, plans)
    only = names[0] if len(names) == 1 else None
    with load(bundle, engine=product.name, variant=only, settings=settings, on_progress=display.progress) as classify:
        display.console.print(f"{classify.variant}: {classify.reason}")
        return {
            "engine": product.name,
            "plans": plans,
            "chosen": {"variant": classify.variant, "reason": classify.reason},
        }


def _variants(bundle: Bundle, names: Sequence[str]) -> list[Any]:
    from edgetl.compile import PLAN_VARIANTS
    from edgetl.errors import EngineError

    if names:
        found = [bundle.variant(name) for name in names]
    else:
        found = [variant for variant in bundle.variants if variant.name in PLAN_VARIANTS]
    for variant in found:
        if variant.target not in ("any", "tensorrt"):
            raise EngineError(f'variant "{variant.name}" is made for {variant.target}, not for TensorRT')
    if not found:
        raise EngineError(f"{bundle.root}: has no {' or '.join(PLAN_VARIANTS)}; export it with --fp16 or --int8")
    return found


def _show(display: Display, folder: Path, plans: Sequence[dict[str, Any]]) -> None:
    rows = []
    for plan in plans:
        report = plan["report"]
        int8 = sum(kind == "Int8" for kind in report["weighted"].values())
        rows.append(
            (
                plan["variant"],
                Path(plan["path"]).name,
                f"{plan['bytes'] / 1e6:.2f}",
                f"{plan['seconds']:.1f}",
                str(len(report["layers"])),
                f"{int8} of {len(report['weighted'])}",
                str(report["conversions"]),
                str(len(report["islands"])),
            )
        )
    columns = ("variant", "plan", "MB", "built in s", "kernels", "layers in INT8", "conversions", "float islands")
    display.table(f"plans in {folder}", columns, rows, text=2)
    for plan in plans:
        for warning in plan["warnings"]:
            display.note(f"{plan['variant']}: {warning}")
        if plan["left_to_gpu"]:
            display.note(
                f"{plan['variant']}: the DLA leaves {len(plan['left_to_gpu'])} layers to the GPU: "
                f"{', '.join(plan['left_to_gpu'][:_SHOWN])}{' ...' if len(plan['left_to_gpu']) > _SHOWN else ''}"
            )
        if not plan["report"]["layers"]:
            display.note(f"{plan['variant']}: the builder told nothing of its kernels, so none are counted")
        show_islands(display, plan["variant"], plan["report"]["islands"])


def show_islands(display: Display, variant: str, islands: Sequence[Sequence[str]]) -> None:
    """Warns of what makes INT8 slow."""
    if islands:
        named = "; ".join(", ".join(island[:_SHOWN]) + (" ..." if len(island) > _SHOWN else "") for island in islands)
        display.note(
            f"warning: {variant}: {len(islands)} islands of float between INT8 layers, each costs conversions there "
            f"and back: {named}"
        )
