"""What each target wants of an INT8 graph, as data: one file for each."""

from edgetl.errors import InternalError
from edgetl.quantize.targets.arm import ARM
from edgetl.quantize.targets.rules import Target
from edgetl.quantize.targets.tensorrt import TENSORRT
from edgetl.quantize.targets.x86 import X86

__all__ = ["TARGETS", "Target", "target_named"]

TARGETS = (TENSORRT, X86, ARM)


def target_named(name: str) -> Target:
    """Returns a target's rules."""
    for target in TARGETS:
        if target.name == name:
            return target
    raise InternalError(f"no target {name}")
