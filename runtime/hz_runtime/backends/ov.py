"""OpenVINO, on the CPU.

Its Relu, Clip and MaxPool turn NaN into a number (2026.4; onnxruntime's pass it on), so that a finite result
proves little. Therefore weights that are not finite are refused when a network is opened, and the values in
front of a network's last Clip or Relu are checked with every run. What stays unseen is an overflow of float32
further inside; norms hide that from onnxruntime too (a variance that is infinite gives 0).
"""

from __future__ import annotations

import hashlib
import math
import sys
import threading
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from hz_runtime.backends.arithmetic import Executed, executed_types
from hz_runtime.backends.base import EngineFailure, check_batch, check_outputs
from hz_runtime.backends.instruction_set import instruction_set
from hz_runtime.bundle.manifest import TensorSpec
from hz_runtime.errors import BackendError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CUTS = ("Clamp", "Maximum", "Minimum", "Relu")  # operations that end a network and hide NaN
# In a compiled network: what counts as its arithmetic, what never does, and OpenVINO's words for types.
_HEAVY = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
_NO_ARITHMETIC = ("Const", "Input", "Output", "Reorder", "Reshape", "Concatenation", "FakeQuantize")
_TYPES = {"i8": "int8", "u8": "int8", "f16": "fp16", "bf16": "bf16", "f32": "fp32"}
_HINTS = {"fp32": "f32", "bf16": "bf16"}  # what an engine is asked to compute in what a file holds as float32
# Of one item. OpenVINO plans memory, one tensor in the place of another, for fixed shapes alone: a
# network of volumes of 1 mm takes half as much then. Larger items are computed one by one, at a fixed shape.
LARGEST_FREE = 1 << 20  # values
_REMEDY = "Re-export the bundle, or use another backend (--backend onnxruntime-cpu)."


def missing(package: str, _device: str) -> tuple[str, str]:
    """Why OpenVINO cannot run here, and the remedy; see registry.py."""
    return ("", "") if find_spec(package) else (f"{package} is not installed", "")


def open_model(model: bytes, _device: str, threads: int, where: str, hint: str = "fp32") -> OpenVinoBackend:
    """Open ONNX bytes on the CPU; BackendError where OpenVINO cannot, or not in the type of the hint."""
    try:
        return OpenVinoBackend(model, threads, hint)
    except BackendError as error:
        raise BackendError(f"{where}: {error.message}", error.remedy) from None
    except Exception as error:  # OpenVINO raises plain RuntimeError
        raise BackendError(f"OpenVINO cannot open {where}: {_brief(error)}", _REMEDY) from None


_UNSEEN = ("openvino_telemetry", "openvino.tools.ovc")


@cache
def quiet_openvino() -> Any:
    """The package, imported without its telemetry and its converter.

    The mere import of openvino 2026.4 writes a client id to ~/intel and queues an event for Google
    Analytics, without asking; its switch is a file in the user's home. A hospital's machine does not do
    that: with openvino_telemetry out of sight the package takes its own silent stub. The converter of other
    frameworks' networks takes as long to import as all the rest; whoever needs it can import it afterwards.
    """
    unseen = [name for name in _UNSEEN if name not in sys.modules]
    for name in unseen:
        sys.modules[name] = None  # type: ignore[assignment]  # "cannot be imported"
    try:
        return import_module("openvino")
    finally:
        for name in unseen:
            sys.modules.pop(name, None)


class OpenVinoBackend:
    """A network in OpenVINO; see `Backend`. Each thread has its own infer request on one compiled network."""

    name = "openvino"
    provider = "CPU"

    def __init__(self, model: bytes, threads: int, hint: str = "fp32") -> None:
        openvino = quiet_openvino()
        core = openvino.Core()
        network = core.read_model(model)
        _refuse_weights(network)
        self._results = len(network.outputs)
        network.add_outputs(_before_cuts(network))
        self.inputs = tuple(_spec(port) for port in network.inputs)
        self.outputs = tuple(_spec(port) for port in network.outputs[: self._results])
        item = [size for size in self.inputs[0].shape[1:] if isinstance(size, int)]
        self._one_by_one = self.inputs[0].shape[0] == "N" and math.prod(item) > LARGEST_FREE
        if self._one_by_one:
            network.reshape({0: [1, *item]})
        self._compiled: Any = core.compile_model(
            network,
            "CPU",
            {
                # Left to itself it computes in bfloat16 where the CPU can; fp32 means fp32.
                "INFERENCE_PRECISION_HINT": _HINTS[hint],
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": 1,
                "ENABLE_CPU_PINNING": False,  # pinned threads wait for a core that another process holds
            },
        )
        self._local = threading.local()
        self.version = str(openvino.__version__)
        self.device = str(core.get_property("CPU", "FULL_DEVICE_NAME")).strip()
        executed = _executed(self._compiled)
        self.precision, self.operators, self.hint = executed.precision, executed.operators, hint
        if hint not in ("fp32", *executed.operators):
            raise BackendError(
                f"this CPU does not compute in {hint} ({instruction_set()}).", "Use --precision fp32 or fast."
            )
        self.sha256 = hashlib.sha256(model).hexdigest()

    def run(self, batch: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        compiled = self._compiled  # one look: another thread may close meanwhile
        if compiled is None:
            raise BackendError("This backend was closed.", "Open it again.")
        fed = check_batch(batch, self.inputs[0])
        try:
            request = getattr(self._local, "request", None)
            if request is None:
                request = self._local.request = compiled.create_infer_request()
            found = self._found(request, fed)
        except Exception as error:
            raise EngineFailure(f"OpenVINO cannot run the network: {_brief(error)}", _REMEDY) from None
        results = {spec.name: data for spec, data in zip(self.outputs, found, strict=False)}
        uncut = {f"in front of result {k + 1}": data for k, data in enumerate(found[self._results :])}
        check_outputs({**results, **uncut}, "OpenVINO CPU")
        return {name: data.copy() for name, data in results.items()}

    def _found(self, request: Any, fed: NDArray[np.float32]) -> list[Any]:
        """Every output of one call, or of one call an item, joined."""
        parts = [fed[k : k + 1] for k in range(len(fed))] if self._one_by_one else [fed]
        made: list[list[Any]] = [[] for _ in self._compiled.outputs]
        for part in parts:
            request.infer({0: part})
            for index, answers in enumerate(made):
                data = request.get_output_tensor(index).data
                answers.append(data if len(parts) == 1 else data.copy())
        return [one[0] if len(one) == 1 else _joined(one) for one in made]

    def close(self) -> None:
        self._compiled = None
        self._local = threading.local()


def _joined(answers: list[Any]) -> Any:
    import numpy as np

    return np.concatenate(answers)


def _refuse_weights(network: Any) -> None:
    """BackendError where a weight is not finite."""
    import numpy as np

    for node in network.get_ordered_ops():
        is_weight = node.get_type_name() == "Constant" and _kind(node) in ("float16", "float32")
        if is_weight and not np.isfinite(node.data).all():
            name = node.get_friendly_name()
            raise BackendError(f"Weight {name} holds values that are not finite.", _REMEDY)


def _before_cuts(network: Any) -> list[Any]:
    """What the last Clip or Relu of every result reads, of those that end in one."""
    found = []
    for result in network.get_results():
        value, cut = result.input_value(0), False
        while (kind := value.get_node().get_type_name()) in (*_CUTS, "Convert"):
            cut = cut or kind in _CUTS
            inputs = value.get_node().input_values()
            value = next((i for i in inputs if i.get_node().get_type_name() != "Constant"), inputs[0])
        if cut:
            found.append(value)
    return found


def _kind(port: Any) -> str:
    kinds = {"f32": "float32", "f16": "float16", "f64": "float64"}
    kind = str(port.get_element_type().get_type_name())
    return kinds.get(kind, kind)


def _executed(compiled: Any) -> Executed:
    """What the compiled network computes in, of the graph that it runs; see arithmetic.py."""
    ran = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        layer, kind = (str(info[key].value) for key in ("layerType", "runtimePrecision"))
        # The kernel's own word, e.g. "brgconv_avx2_f32", where it has one: a Deconvolution of int8 weights
        # whose kernel takes float32 (seen on AVX2) is int8 by its runtimePrecision all the same.
        kernel = str(info["primitiveType"].value).rpartition("_")[2].lower()
        if layer not in _NO_ARITHMETIC:
            ran.append((layer in _HEAVY, _TYPES.get(kernel) or _TYPES.get(kind, "")))
    return executed_types(ran)


def _spec(port: Any) -> TensorSpec:
    shape = tuple("N" if axis.is_dynamic else int(axis.get_length()) for axis in port.get_partial_shape())
    return TensorSpec(str(port.get_any_name()), shape, _kind(port))


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
