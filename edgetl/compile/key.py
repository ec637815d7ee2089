"""What a plan depends on. Where any of it differs, the plan is not used."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgetl import gpu
from edgetl.canonical import canonical_json
from edgetl.compile.api import Product
from edgetl.compile.builder import PlanSettings
from edgetl.jetson import l4t_release

__all__ = ["PlanKey", "key_for"]


@dataclass(frozen=True)
class PlanKey:
    """Everything that decides whether a plan fits.

    Attributes:
        product: ``tensorrt`` or ``tensorrt-rtx``.
        version: Of it, in full.
        system: ``Linux`` ...
        processor: ``x86_64``, ``aarch64``.
        sms: Compute capabilities that it was built for.
        graph_sha256: Of the ONNX file.
        settings: How it was built.
        multiprocessors: Of the GPU it was tuned on; None where the product does not tune while it builds.
        machine: The GPU and its driver; None for a plan that is carried to other machines.
    """

    product: str
    version: str
    system: str
    processor: str
    sms: tuple[int, ...]
    graph_sha256: str
    settings: Mapping[str, Any]
    multiprocessors: int | None
    machine: Mapping[str, Any] | None

    @property
    def digest(self) -> str:
        """SHA-256 of the JSON form."""
        return hashlib.sha256(canonical_json(self.to_dict())).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            **self.__dict__,
            "sms": list(self.sms),
            "settings": dict(self.settings),
            "machine": None if self.machine is None else dict(self.machine),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PlanKey:
        """Reads the JSON form.

        Raises:
            KeyError, TypeError, ValueError: It is malformed.
        """
        key = cls(**{**data, "sms": tuple(int(sm) for sm in data["sms"])})
        if not isinstance(key.settings, Mapping) or not isinstance(key.machine, Mapping | None):
            raise TypeError("settings and machine must be objects")
        return key

    @property
    def any_settings(self) -> PlanKey:
        """The same, however it was built."""
        return replace(self, settings={})

    @property
    def carried(self) -> PlanKey:
        """The same without this machine's GPU and driver."""
        return replace(self, machine=None)

    def misfit(self, here: PlanKey) -> str | None:
        """Returns why a carried plan of this key cannot be used where ``here`` would be built, or None if it can."""
        for what, has, wants in (
            ("product", self.product, here.product),
            ("version", self.version, here.version),
            ("system", self.system, here.system),
            ("processor", self.processor, here.processor),
            ("graph", self.graph_sha256[:12], here.graph_sha256[:12]),
        ):
            if has != wants:
                return f"its {what} is {has}, here it is {wants}"
        if not set(here.sms) <= set(self.sms):
            return f"it was built for SM {_listed(self.sms)}, this GPU is SM {_listed(here.sms)}"
        if self.multiprocessors is not None and self.multiprocessors != here.multiprocessors:
            return (
                f"it was tuned on a GPU of {self.multiprocessors} multiprocessors, here are {here.multiprocessors} "
                "(another model, or another power mode)"
            )
        if self.machine is not None and self.machine != here.machine:
            return "it is another machine's own, not made to be carried (edgetl compile --out makes those)"
        return None


def key_for(product: Product, graph_sha256: str, settings: PlanSettings) -> PlanKey:
    """Returns the key of a plan that would be built here: for other GPUs where the settings name them.

    Raises:
        EngineError: There is no GPU, and the settings name none.
        MissingExtraError: The product is not installed.
    """
    version = str(product.bindings().__version__)
    system, processor = platform.system(), platform.machine()
    told = settings.to_dict()
    if settings.sms:
        return PlanKey(product.name, version, system, processor, settings.sms, graph_sha256, told, None, None)
    device = gpu.current_gpu()
    machine = {"gpu": device.to_dict(), "cuda_driver": gpu.driver_version(), "l4t": l4t_release()}
    tuned_on = device.multiprocessors if product.times_tactics else None
    return PlanKey(product.name, version, system, processor, (device.sm,), graph_sha256, told, tuned_on, machine)


def _listed(sms: tuple[int, ...]) -> str:
    return ", ".join(map(str, sms))
