"""One clear sentence out of what TensorRT logs, naming the ONNX node it is about."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from hz_runtime.errors import BackendError, HzError

LABELS = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}
NOISE = ("Thread context has not been set",)  # logged as an internal error by every build of RTX 1.7
_CODE = re.compile(r"Error Code \d+: [A-Za-z ]+\((?P<text>.*)\)", re.DOTALL)
_PLACE = re.compile(r"\s*\(?In [\w:]+ at \S+:\d+\)?|\[\w+\.(?:cpp|h):\d+: \w+\]\s*")
_NO_DRIVER = re.compile(r"cudaError 35\b|driver version is insufficient|status == CUDA_SUCCESS")
_GENERATION = re.compile(r"\bsm_?(\d+)(\d)\b", re.IGNORECASE)  # "Turing (SM75)", "target(s) sm75"
_LONGEST = 200


class NoEngine(HzError):
    """TensorRT builds no engine of a graph that it has read.

    capability : the compute capabilities that it names as the hindrance, e.g. ("7.5",); empty: none.
    """

    def __init__(self, message: str, remedy: str = "", capability: tuple[str, ...] = ()) -> None:
        super().__init__(message, remedy)
        self.capability = capability


def new_logger(trt: Any) -> Any:
    """A TensorRT logger that keeps errors in `.errors` (list of str) and prints nothing.

    It must outlive everything that is created with it.
    """

    class Errors(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            grave = severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)
            if grave and not any(noise in message for noise in NOISE):
                self.errors.append(message)

    return Errors()


def parser_error(parser: Any, builder: str, where: str) -> HzError:
    """What a parser that refused a graph says, about the first node it refused.

    builder : in words, e.g. "TensorRT for RTX 1.7.1.116".
    """
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    if not errors:
        return HzError(f"{where}: {builder} does not parse it and does not say why.", _EXPORT)
    error = errors[0]
    node = f"{error.node_operator()} {error.node_name()}".strip()
    about = f"{builder} refuses {node}" if node else f"{builder} does not parse it"
    # The first line names the node again; a missing driver is a consequence, never the cause.
    lines = [line for line in error.desc().splitlines() if not line.startswith("Invalid Node")]
    lines = [line for line in lines if not _NO_DRIVER.search(line)] or lines
    return HzError(f"{where}: {about} ({shortened(lines[0] if lines else error.desc())}).", _EXPORT)


def build_error(messages: Sequence[str], layers: Iterable[str], builder: str, where: str) -> HzError:
    """What a builder that gave no engine logged, with the node of the ONNX file that it speaks of.

    layers : the network's layer names, which are those of the ONNX nodes.
    """
    text = messages[-1] if messages else "it does not say why"
    if _NO_DRIVER.search(text):
        return BackendError(
            f"{where}: {builder} needs an NVIDIA driver to build with these options ({shortened(text)}).",
            "Build it where a GPU is, or without refitting, stripping and an option for this GPU only.",
        )
    named = _speaks_of(text, layers)
    about = f" at {named}" if named else ""
    return NoEngine(
        f"{where}: {builder} builds no engine{about} ({shortened(text)}).",
        "Run its ONNX file on another engine:  hz-run --backend onnxruntime-cpu",
        tuple(dict.fromkeys(f"{major}.{minor}" for major, minor in _GENERATION.findall(text))),
    )


def shortened(text: str) -> str:
    """The human part of a TensorRT message: no source places, no error codes, one line."""
    found = _CODE.search(text)
    text = _PLACE.sub("", found["text"] if found else text)
    text = " ".join(text.split()).rstrip(" .")
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


def _speaks_of(text: str, layers: Iterable[str]) -> str:
    """The longest layer name that stands in a message as a whole word; what a fused node spans is no name."""
    text = re.sub(r"ForeignNode\[.*?\]", "", text)
    for name in sorted(set(layers), key=len, reverse=True):
        if name and re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", text):
            return name
    return ""


_EXPORT = "Export it again, or in another precision:  hz-export --help"
