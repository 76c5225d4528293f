#!/usr/bin/env bash
# ONNX's LSTM with its optional last input, the peephole weights P, by which the gates see the cell: a sequence of four
# steps, two units, with and without P; and with input_forget = 1, which couples the two gates.
#
# Guessed: an engine that has no peepholes refuses the network.
# Seen: by hand in numpy and by onnxruntime 1.31.1 P moves what the LSTM gives by up to .18. OpenVINO 2026.4.1 reads the
# network without a word and gives, bit for bit, what it gives without P. input_forget it leaves out as well.
# Why hz cares: one network, two answers, each plausible. No network that hz trains or imports is recurrent, and each
# engine's answers are held to torch before a file is in a bundle.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  openvino==2026.4.1 onnxruntime==1.31.1 onnx==1.23.2 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import sys

import numpy as np
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper

rng = np.random.default_rng(0)
STEPS, UNITS, WIDTH = 4, 2, 3
x = rng.normal(size=(STEPS, 1, WIDTH)).astype(np.float32)
tensors = {
    "W": rng.normal(size=(1, 4 * UNITS, WIDTH)).astype(np.float32),  # rows of the gates i, o, f, c
    "R": rng.normal(size=(1, 4 * UNITS, UNITS)).astype(np.float32),
    "P": rng.normal(size=(1, 3 * UNITS)).astype(np.float32) * 3,  # of i, o, f
}


def by_hand(peepholes, coupled):
    hidden, cell = np.zeros(UNITS), np.zeros(UNITS)
    p_i, p_o, p_f = np.split(tensors["P"][0] * peepholes, 3)
    answers = []
    for step in x[:, 0]:
        i, o, f, c = np.split(tensors["W"][0] @ step + tensors["R"][0] @ hidden, 4)
        i, f = 1 / (1 + np.exp(-i - p_i * cell)), 1 / (1 + np.exp(-f - p_f * cell))
        f = 1 - i if coupled else f
        cell = f * cell + i * np.tanh(c)
        hidden = np.tanh(cell) / (1 + np.exp(-o - p_o * cell))
        answers.append(hidden)
    return np.array(answers)


core, answers, found = openvino.Core(), {}, {}
for peepholes, coupled in ((0, 0), (1, 0), (0, 1)):
    inputs = ["x", "W", "R"] + ["", "", "", "", "P"] * peepholes
    node = helper.make_node("LSTM", inputs, ["y"], hidden_size=UNITS, input_forget=coupled)
    graph = helper.make_graph(
        [node],
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [STEPS, 1, 1, UNITS])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items() if name in inputs],
    )
    text = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10).SerializeToString()
    compiled = core.compile_model(core.read_model(text), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    session = onnxruntime.InferenceSession(text, providers=["CPUExecutionProvider"])
    truth = by_hand(peepholes, coupled)
    given = {"onnxruntime": session.run(None, {"x": x})[0], "OpenVINO": np.array(compiled(x)[0])}
    for engine, answer in given.items():
        answers[engine, peepholes, coupled] = answer
        off = np.abs(answer[:, 0, 0] - truth).max()
        found[engine, peepholes, coupled] = bool(off < 1e-4)
        print(f"peepholes {peepholes}, input_forget {coupled}, {engine}: {off:.2g} off")
same = [np.array_equal(answers["OpenVINO", 0, 0], answers["OpenVINO", *case]) for case in ((1, 0), (0, 1))]
print("OpenVINO's answers with and without, bit for bit the same:", same)
print(f"P moves the answer by {np.abs(by_hand(1, 0) - by_hand(0, 0)).max():.2f}")
moved = {("OpenVINO", 1, 0): False, ("OpenVINO", 0, 1): False}
expected = {("OpenVINO", 0, 0): True} | moved | {("onnxruntime", p, c): True for p, c in ((0, 0), (1, 0), (0, 1))}
sys.exit(0 if found == expected and all(same) else f"changed: expected {expected}, found {found}, {same}")
PY
