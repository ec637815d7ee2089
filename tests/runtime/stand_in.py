"""Stand-ins for the CUDA runtime and for TensorRT on a machine without a GPU.

They compute (a plan is the ONNX graph itself, run by ONNX Runtime on "device" memory) and they are strict: what
NVIDIA's documentation forbids raises `Misuse`. The real ones are tested by ``pytest -m gpu``.
"""

from __future__ import annotations

import ctypes
import time
from types import SimpleNamespace

import numpy as np
import onnxruntime


class Misuse(AssertionError):
    """A call that the real library would answer with undefined behaviour."""


class Status(int):
    @property
    def name(self):
        return {0: "cudaSuccess", 2: "cudaErrorMemoryAllocation", 900: "cudaErrorStreamCaptureUnsupported"}[self]


OK = Status(0)


class Cuda:
    """The calls of ``cuda.bindings.runtime`` that edgetl makes, on host memory."""

    cudaStreamNonBlocking = 1
    cudaHostAllocMapped = 2
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)

    def __init__(self, *, integrated=False, capturable=True):
        self.integrated = integrated
        self.capturable = capturable
        self.host, self.device, self.streams, self.graphs = {}, {}, set(), set()
        self.recording = None
        self.copies = self.launches = 0
        self.memory_left = 1 << 30
        self.memory_of_all = 1 << 40
        self.current = 0
        self._next = 1

    def _new(self):
        self._next += 1
        return self._next

    def cudaGetErrorString(self, status):
        return OK, status.name.encode()

    def cudaGetDeviceCount(self):
        return OK, 1

    def cudaGetDevice(self):
        return OK, self.current

    def cudaSetDevice(self, index):
        self.current = index
        return (OK,)

    def cudaDriverGetVersion(self):
        return OK, 12060

    def cudaGetDeviceProperties(self, index):
        return OK, SimpleNamespace(
            name=b"Stand-in\x00", major=8, minor=7, multiProcessorCount=8, totalGlobalMem=1 << 33, memoryBusWidth=128,
            l2CacheSize=1 << 22, sharedMemPerBlockOptin=1 << 17, integrated=int(self.integrated), ECCEnabled=0,
        )  # fmt: skip

    def cudaStreamCreateWithFlags(self, flags):
        self.streams.add(self._new())
        return OK, self._next

    def cudaStreamDestroy(self, stream):
        self.streams.remove(stream)
        return (OK,)

    def cudaStreamSynchronize(self, stream):
        self._need(int(stream) in self.streams and self.recording is None, "synchronizing while recording, or closed")
        return (OK,)

    def cudaStreamBeginCapture(self, stream, mode):
        self.recording = []
        return (OK,)

    def cudaStreamEndCapture(self, stream):
        recorded, self.recording = self.recording, None
        if not self.capturable:
            return Status(900), None
        return OK, recorded

    def cudaGraphInstantiate(self, recorded, flags):
        graph = tuple(recorded)
        self.graphs.add(id(graph))
        return OK, graph

    def cudaGraphDestroy(self, recorded):
        return (OK,)

    def cudaGraphExecDestroy(self, graph):
        self.graphs.remove(id(graph))
        return (OK,)

    def cudaGraphLaunch(self, graph, stream):
        self._need(id(graph) in self.graphs, "a released graph")
        self._need(self.current == 0, "another device's turn")
        self.launches += 1
        for work in graph:
            work()
        return (OK,)

    def queue(self, work):
        """Does something now, or keeps it for the graph that is being recorded."""
        if self.recording is None:
            work()
        else:
            self.recording.append(work)

    def cudaHostAlloc(self, size, flags):
        self._need(flags == self.cudaHostAllocMapped, "memory that the device cannot see")
        return self._allocate(self.host, size)

    def cudaMalloc(self, size):
        return self._allocate(self.device, size)

    def _allocate(self, where, size):
        held = sum(len(memory) for memory in (*self.host.values(), *self.device.values()))
        if size > self.memory_left or held + size > self.memory_of_all:
            return Status(2), None
        memory = ctypes.create_string_buffer(size)
        where[ctypes.addressof(memory)] = memory
        return OK, ctypes.addressof(memory)

    def cudaHostGetDevicePointer(self, pages, flags):
        self._need(pages in self.host, "no page-locked memory")
        return OK, pages

    def cudaFree(self, address):
        del self.device[address]
        return (OK,)

    def cudaFreeHost(self, address):
        del self.host[address]
        return (OK,)

    def cudaMemcpyAsync(self, to, source, count, kind, stream):
        sides = (self.device, self.host) if kind == 1 else (self.host, self.device)
        self._need(to in sides[0] and source in sides[1], "a copy in the wrong direction, or of released memory")
        self._need(count <= min(len(sides[0][to]), len(sides[1][source])), "a copy beyond the end")
        self._need(int(stream) in self.streams, "a closed stream")

        def work():
            self.copies += 1
            ctypes.memmove(to, source, count)

        self.queue(work)
        return (OK,)

    def memory(self, address):
        """Returns device memory, wherever it is."""
        found = self.device.get(address) or (self.host.get(address) if self.integrated else None)
        self._need(found is not None, "an address that is not on the device")
        return found

    @staticmethod
    def _need(condition, what):
        if not condition:
            raise Misuse(what)

    @property
    def leaked(self):
        return len(self.host), len(self.device), len(self.streams), len(self.graphs)


class _Context:
    def __init__(self, engine):
        self.engine = engine
        self.addresses, self.shape, self.has_run, self.recorded = {}, None, False, False

    def set_tensor_address(self, name, address):
        self.engine.cuda.memory(address)
        self.addresses[name] = address
        return True

    def set_input_shape(self, name, shape):
        smallest, _, largest = self.engine.get_tensor_profile_shape(name, 0)
        if not smallest[0] <= shape[0] <= largest[0]:
            self.engine.logger.log(Severity.ERROR, f"Set dimension {shape} does not satisfy any optimization profiles.")
            return False
        if self.recorded and shape != self.shape:
            raise Misuse("a context whose work was recorded must keep its shape")
        self.shape, self.has_run = shape, False
        return True

    def execute_async_v3(self, stream):
        cuda, engine = self.engine.cuda, self.engine
        if self.shape is None or set(self.addresses) != set(engine.names):
            raise Misuse("running without a shape or an address")
        if cuda.recording is not None:
            if not self.has_run:
                raise Misuse("recording before a first run of this shape")
            self.recorded = True
        elif engine.product.fail_runs:
            engine.logger.log(Severity.ERROR, "IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (no luck)")
            return False
        shape = self.shape

        def work():
            memory = cuda.memory(self.addresses["pictures"])
            batch = np.frombuffer(memory, np.uint8, int(np.prod(shape))).reshape(shape)
            for name, value in zip(
                engine.outputs, engine.session.run(engine.outputs, {"pictures": batch}), strict=True
            ):
                data = value.astype(np.float32).tobytes()
                ctypes.memmove(self.addresses[name], data, len(data))

        cuda.queue(work)
        self.has_run = True
        return True


class _Engine:
    def __init__(self, plan, product, logger):
        largest, _, graph = plan.partition(b"|")
        self.product, self.cuda, self.logger = product, product.cuda, logger
        self.smallest, self.largest = (int(size) for size in largest.split(b"-"))
        self.session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        self.outputs = [output.name for output in self.session.get_outputs()]
        self.names = ["pictures", *self.outputs]
        self.shapes = {t.name: tuple(t.shape) for t in (*self.session.get_inputs(), *self.session.get_outputs())}
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, index):
        return self.names[index]

    def get_tensor_mode(self, name):
        return "input" if name == "pictures" else "output"

    def get_tensor_dtype(self, name):
        return np.uint8 if name == "pictures" else np.float32

    def get_tensor_shape(self, name):
        return (-1, *self.shapes[name][1:])

    def get_tensor_profile_shape(self, name, profile):
        return [(size, *self.shapes[name][1:]) for size in (self.smallest, 1, self.largest)]

    def create_execution_context(self):
        self.product.contexts += 1
        return _Context(self)

    def create_engine_inspector(self):
        told = '{"Layers": [{"Name": "conv1", "LayerType": "CaskConvolution"}]}'
        return SimpleNamespace(get_engine_information=lambda form: told)


class Severity:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class _Logger:
    Severity = Severity

    def __init__(self):
        pass


class _Parser:
    num_errors = 0

    def __init__(self, network, logger):
        self.network = network

    def parse(self, graph):
        self.network.graph = graph
        return True


class TensorRT:
    """The module ``tensorrt``: builds a plan that is the graph with its batch range before it."""

    __version__ = "10.3.0"
    ILogger = _Logger
    OnnxParser = _Parser
    IProgressMonitor = _Logger
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    ProfilingVerbosity = SimpleNamespace(DETAILED=2)
    MemoryPoolType = SimpleNamespace(WORKSPACE=0)
    LayerType = SimpleNamespace(CONVOLUTION=0, DECONVOLUTION=1, MATRIX_MULTIPLY=2)
    TensorIOMode = SimpleNamespace(INPUT="input")
    LayerInformationFormat = SimpleNamespace(JSON=1)

    def __init__(self, cuda):
        self.cuda = cuda
        self.contexts = self.builds = 0
        self.build_seconds = 0.0
        self.refuse = self.fail_runs = self.cannot_start = self.stale_timings = False
        self.refuse_graphs = self.refuse_plans = ()

    @staticmethod
    def nptype(dtype):
        return dtype

    def Runtime(self, logger):
        def deserialize(plan):
            if self.refuse or plan.partition(b"|")[2] in self.refuse_plans:
                logger.log(Severity.ERROR, "IRuntime::deserializeCudaEngine: Error Code 1: (Magic tag does not match)")
                return None
            return _Engine(plan, self, logger)

        return SimpleNamespace(deserialize_cuda_engine=deserialize)

    def Builder(self, logger):
        if self.cannot_start:
            logger.log(Severity.ERROR, "createInferBuilder: Error Code 6: API Usage Error (CUDA error 35)")
            raise TypeError("pybind11::init(): factory function returned nullptr")

        def profile():
            kept = {}
            return SimpleNamespace(set_shape=lambda name, *shapes: kept.update(shapes=shapes), kept=kept)

        def config():
            made = SimpleNamespace(profiles=[], told={})
            made.add_optimization_profile = made.profiles.append
            made.set_memory_pool_limit = made.told.__setitem__
            made.create_timing_cache = lambda data: (
                None if data and self.stale_timings else SimpleNamespace(serialize=lambda: data or b"timings")
            )
            made.set_timing_cache = lambda cache, ignore: None
            return made

        def build(network, config):
            self.builds += 1
            time.sleep(self.build_seconds)
            if network.graph in self.refuse_graphs:
                logger.log(Severity.ERROR, "buildSerializedNetwork: Error Code 10: Could not find any implementation")
                return None
            smallest, _, largest = config.profiles[0].kept["shapes"]
            return f"{smallest[0]}-{largest[0]}|".encode() + network.graph

        pictures = SimpleNamespace(name="pictures", shape=(-1, 16, 16, 3))
        return SimpleNamespace(
            num_DLA_cores=0,
            create_network=lambda flags: SimpleNamespace(num_inputs=1, num_layers=0, get_input=lambda index: pictures),
            create_builder_config=config,
            create_optimization_profile=profile,
            build_serialized_network=build,
        )
