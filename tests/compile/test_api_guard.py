"""Every member of TensorRT's bindings that edgetl touches exists in all versions it runs on.

What is touched is read from the source: variables of TensorRT's objects go by fixed names. tensorrt_api.json, made by
tensorrt_api_table.py from NVIDIA's published bindings, says what 10.3 (JetPack 6), 10.13 (JetPack 7) and 11.1 have.
"""

import ast
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "edgetl"
FILES = ("compile/api.py", "compile/builder.py", "runtime/trt.py")
TABLE = json.loads(Path(__file__).with_name("tensorrt_api.json").read_text())
VERSIONS = ["10.3", "10.13", "11.1"]

CLASS_OF = {
    "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser", "config": "IBuilderConfig",
    "profile": "IOptimizationProfile", "tensor": "ITensor", "layer": "ILayer", "kinds": "NetworkDefinitionCreationFlag",
    "runtime": "Runtime", "_runtime": "Runtime", "engine": "ICudaEngine", "_engine": "ICudaEngine",
    "context": "IExecutionContext", "_shared": "IExecutionContext", "inspector": "EngineInspector",
    "timing_cache": "ITimingCache", "cache": "ITimingCache", "plan": "IHostMemory",
}  # fmt: skip
# What a call gives, where it is not kept under one of the names above.
GIVES = {("OnnxParser", "get_error"): "ParserError"}
# What makes an object: kept under another name, its members would escape this guard.
MAKERS = (
    "create_network", "create_builder_config", "create_optimization_profile", "create_timing_cache",
    "create_execution_context", "create_engine_inspector", "deserialize_cuda_engine", "build_serialized_network",
    "get_input", "get_layer", "Builder", "OnnxParser", "Runtime",
)  # fmt: skip
# TensorRT-RTX alone builds for GPUs that are not there (only `_aim` asks for it, behind Product.for_other_gpus), and
# compiles kernels while it runs.
RTX_ONLY = {
    ("module", "DynamicShapesKernelSpecializationStrategy"),  # asked for by hasattr, and what goes with it
    ("DynamicShapesKernelSpecializationStrategy", "EAGER"),
    ("ICudaEngine", "create_runtime_config"),
    ("IExecutionContext", "is_stream_capturable"),
    ("IBuilderConfig", "num_compute_capabilities"),
    ("IBuilderConfig", "set_compute_capability"),
    ("module", "ComputeCapability"),
    ("ComputeCapability", "__members__"),
}
# Of the package around the bindings, not of the bindings' source.
OF_THE_PACKAGE = {"nptype"}


class Uses(ast.NodeVisitor):
    """Collects (class, member) of everything that is touched, and the names that makers' results are kept under."""

    def __init__(self):
        self.members, self.kept = set(), set()

    def visit_Attribute(self, node):
        holder = self.class_of(node.value)
        if holder is not None:
            self.members.add((holder, node.attr))
        self.generic_visit(node)

    def visit_Assign(self, node):
        function = node.value.func if isinstance(node.value, ast.Call) else None
        if isinstance(function, ast.Attribute) and function.attr in MAKERS:
            self.kept |= {getattr(target, "id", getattr(target, "attr", None)) for target in node.targets}
        self.generic_visit(node)

    def class_of(self, node):
        if isinstance(node, ast.Name):
            return "module" if node.id == "trt" else CLASS_OF.get(node.id)
        if isinstance(node, ast.Attribute):
            if node.attr == "_trt":
                return "module"
            holder = self.class_of(node.value)
            if holder == "module" or (holder, node.attr) == ("ILogger", "Severity"):
                return node.attr
            return CLASS_OF.get(node.attr) if isinstance(node.value, ast.Name) else None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            return GIVES.get((self.class_of(node.func.value), node.func.attr))
        return None


@pytest.fixture(scope="module")
def uses():
    found = Uses()
    for name in FILES:
        found.visit(ast.parse((ROOT / name).read_text()))
    return found


def of_the_table(uses):
    for holder, member in sorted(uses.members - RTX_ONLY):
        if holder == "module":
            assert member in TABLE or member in OF_THE_PACKAGE, f"trt.{member} is not in the table"
        elif (holder, member) != ("ILogger", "Severity") and not member.startswith("__"):
            yield holder, member


def test_the_guard_sees_what_it_must(uses):
    assert {
        ("Builder", "build_serialized_network"), ("IBuilderConfig", "progress_monitor"), ("ILayer", "type"),
        ("IExecutionContext", "execute_async_v3"), ("ICudaEngine", "get_tensor_profile_shape"), ("ParserError", "desc"),
        ("Severity", "INTERNAL_ERROR"), ("MemoryPoolType", "WORKSPACE"), ("EngineInspector", "get_engine_information"),
        ("OnnxParser", "parse"), ("LayerInformationFormat", "JSON"), ("BuilderFlag", "GPU_FALLBACK"),
        ("IBuilderConfig", "can_run_on_DLA"), ("Runtime", "deserialize_cuda_engine"), ("ITimingCache", "serialize"),
    } <= uses.members  # fmt: skip
    assert uses.kept <= CLASS_OF.keys(), "an object of TensorRT under a name that the guard does not know"


def test_every_version_has_all_that_is_touched(uses):
    lacking = {
        f"{holder}.{member}": [v for v in VERSIONS if v not in TABLE[holder].get(member, ())]
        for holder, member in of_the_table(uses)
    }
    assert {name: versions for name, versions in lacking.items() if versions} == {}


@pytest.mark.parametrize("module", ["tensorrt_rtx", "tensorrt"])
def test_the_installed_bindings_have_all_that_is_touched(uses, module):
    trt = pytest.importorskip(module, reason=f"{module} is not installed")
    for holder, member in uses.members:
        if module == "tensorrt" and (holder, member) in RTX_ONLY:
            continue
        owner = trt if holder == "module" else trt.ILogger.Severity if holder == "Severity" else getattr(trt, holder)
        assert hasattr(owner, member), f"{module} has no {holder}.{member}"


@pytest.mark.parametrize(
    ("class_name", "member", "versions"),
    [
        ("BuilderFlag", "FP16", ["10.3", "10.13"]),  # TensorRT 11 removed what says precision beside the graph
        ("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH", ["10.3", "10.13"]),
        ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED", VERSIONS),
        ("IBuilderConfig", "max_num_tactics", ["10.13", "11.1"]),
        ("ICudaEngine", "device_memory_size", ["10.3", "10.13"]),
    ],
)
def test_the_table_knows_what_changed(class_name, member, versions):
    assert TABLE[class_name][member] == versions


@pytest.mark.parametrize("name", FILES)
def test_no_version_is_compared(name):
    tree = ast.parse((ROOT / name).read_text())
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    names |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    assert not [found for found in names if "version" in found.lower()]
