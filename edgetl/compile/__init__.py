"""ONNX to TensorRT: builds plans, keeps them under a key of everything they depend on, and says what is in them."""

from edgetl.compile.api import PRODUCTS, Heard, Product, listening, product_named
from edgetl.compile.builder import PlanSettings, Progress, build_plan
from edgetl.compile.key import PlanKey, key_for
from edgetl.compile.layers import BuildReport, EngineLayer, layers_of_inspector, layers_of_log, report_of
from edgetl.compile.stage import PLAN_VARIANTS, ReadyPlan, plan_for, write_plan
from edgetl.compile.store import Found, PlanStore, default_cache, read_record

__all__ = [
    "PLAN_VARIANTS",
    "PRODUCTS",
    "BuildReport",
    "EngineLayer",
    "Found",
    "Heard",
    "PlanKey",
    "PlanSettings",
    "PlanStore",
    "Product",
    "Progress",
    "ReadyPlan",
    "build_plan",
    "default_cache",
    "key_for",
    "layers_of_inspector",
    "layers_of_log",
    "listening",
    "plan_for",
    "product_named",
    "read_record",
    "report_of",
    "write_plan",
]
