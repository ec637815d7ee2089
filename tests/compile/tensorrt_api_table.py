"""Makes tensorrt_api.json: what TensorRT's Python bindings offer, read from their published source.

    python tensorrt_api_table.py CHECKOUT_OF_NVIDIA_TENSORRT > tensorrt_api.json

For each class that edgetl touches, the versions that have each of its members. The bindings are pybind11: a member is
a ``.def...("name"`` or a ``.value("NAME"`` behind a ``class_`` or ``enum_`` of that name.
"""

import json
import re
import subprocess
import sys

VERSIONS = {"10.3": "v10.3.0", "10.13": "v10.13.0", "11.1": "v11.1"}
SOURCES = ("infer/pyCore", "infer/pyFoundationalTypes", "infer/pyGraph", "parsers/pyOnnx", "pyTensorRT")
# Name in Python: where it is not the name that the source gives it.
CLASSES = (
    "Builder", "BuilderFlag", "DeviceType", "EngineInspector", "IBuilderConfig", "ICudaEngine", "IExecutionContext",
    "IHostMemory", "ILayer", "ILogger", "INetworkDefinition", "IOptimizationProfile", "IProgressMonitor", "ITensor",
    "ITimingCache", "LayerInformationFormat", "LayerType", "MemoryPoolType", "NetworkDefinitionCreationFlag",
    "OnnxParser", "ParserError", "ProfilingVerbosity", "Runtime", "Severity", "TensorIOMode",
)  # fmt: skip
_START = re.compile(r"py::(?:class_|enum_)\s*<.*?>\s*(?:\w+\s*)?\(\s*\w+\s*,\s*\"(\w+)\"", re.DOTALL)
_MEMBER = re.compile(r"\.(?:def(?:_\w+)?|value)\s*\(\s*\"(\w+)\"")


def members(text: str) -> dict[str, set[str]]:
    """Returns the members by class; a class ends where the next begins."""
    starts = list(_START.finditer(text))
    ends = [match.start() for match in starts[1:]] + [len(text)]
    found: dict[str, set[str]] = {}
    for match, end in zip(starts, ends, strict=True):
        found.setdefault(match[1], set()).update(_MEMBER.findall(text[match.start() : end]))
    return found


def table(checkout: str) -> dict[str, dict[str, list[str]]]:
    """Returns class, member, and the versions that have it."""
    found: dict[str, dict[str, list[str]]] = {name: {} for name in CLASSES}
    for version, tag in VERSIONS.items():
        for source in SOURCES:
            command = ["git", "-C", checkout, "show", f"{tag}:python/src/{source}.cpp"]
            text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            for name, names in members(text).items():
                for member in sorted(names) if name in found else ():
                    if not member.startswith("_"):
                        found[name].setdefault(member, []).append(version)
    return {name: dict(sorted(members.items())) for name, members in found.items()}


if __name__ == "__main__":
    rows = [
        f"  {json.dumps(name)}: {{\n"
        + ",\n".join(f"    {json.dumps(member)}: {json.dumps(versions)}" for member, versions in members.items())
        + "\n  }"
        for name, members in table(sys.argv[1]).items()
    ]
    print("{\n" + ",\n".join(rows) + "\n}")
