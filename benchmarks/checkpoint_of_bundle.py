"""A bundle's harmonizer as a checkpoint that `hz-train cyclegan --start-from` goes on from.

    python benchmarks/checkpoint_of_bundle.py BUNDLE.hz OUT.safetensors SCAN...

Its generator alone: the other networks of its training are in no bundle and start anew.
SCAN... : all that its weights have seen, or may have; a study then scores nothing that is among them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import torch

from hz_runtime.bundle.store import load_bundle
from hz_runtime.io.volume import read_volume
from hz_train.checkpoint import save_checkpoint, with_prefix
from hz_train.volume_cyclegan import Generator

STORED = "_stored"  # half weights, beside the Cast that reads them


def main(folder: Path, out: Path, scans: list[Path]) -> None:
    bundle = load_bundle(folder)
    entry = bundle.model("harmonizer", precision="fp32")
    graph = onnx.load_from_string(bundle.read(entry)).graph
    found = {
        tensor.name.removesuffix(STORED): onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer
    }
    network = Generator(found["stem.0.weight"].shape[0])
    state = {name: torch.from_numpy(found[name].astype("float32")) for name in network.state_dict()}
    network.load_state_dict(state)
    meta = {
        "kind": "volume_cyclegan",
        "network": {"width": network.width},
        "recipe": dict(bundle.recipe),
        "sources": list(entry.provenance.get("sources", [])),
        "training_scans": sorted({read_volume(scan).sha256 for scan in scans}),
    }
    save_checkpoint(out, with_prefix("generator", state), meta)
    print(f"{out}: the harmonizer of {bundle.id[:19]}..., {len(scans)} scans seen")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]])
