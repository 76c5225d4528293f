"""Weight files of strangers: what is read, and what is refused with its reason before it does any harm."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from small_published import write_keras

torch = pytest.importorskip("torch")
h5py = pytest.importorskip("h5py")

from torch import nn  # noqa: E402

from hz_export.imported import state_dict, weight_file  # noqa: E402
from hz_export.imported.keras_file import read_here, read_keras  # noqa: E402
from hz_export.imported.state_dict import read_state_dict  # noqa: E402
from hz_export.imported.weight_file import WeightFile, load  # noqa: E402
from hz_runtime.errors import UsageError  # noqa: E402

pytestmark = pytest.mark.requirement("foreign-weights")
VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


def refused(reader: Any, path: Path, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        reader(path)
    assert path.name in str(caught.value) and str(path.parent) not in str(caught.value)


def keras(path: Path, change: Any = None) -> Path:
    write_keras(path, [("dense", [("dense/kernel", VALUES), ("dense/bias", VALUES[0])])])
    if change is not None:
        with h5py.File(path, "a") as file:
            change(file)
    return path


def test_keras_files_give_their_tensors_in_order(tmp_path: Path) -> None:
    plain = read_keras(keras(tmp_path / "w.h5"))
    assert list(plain.tensors) == ["dense/dense/kernel", "dense/dense/bias"]
    np.testing.assert_array_equal(plain.tensors["dense/dense/kernel"], VALUES)
    path = write_keras(tmp_path / "m.h5", [("d", [("d/kernel", VALUES)])], '{"class_name": "Model"}')
    whole = read_keras(path)
    assert whole.config == {"class_name": "Model"} and list(whole.tensors) == ["d/d/kernel"]


def replaced(values: Any = None, **how: Any) -> Any:
    def change(file: Any) -> None:
        del file["dense/dense/bias:0"]
        file["dense"].create_dataset("dense/bias:0", data=values, **how)

    return change


def test_hostile_keras_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def external(file: Any) -> None:
        del file["dense/dense/bias:0"]
        file["dense/dense/bias:0"] = h5py.ExternalLink("/etc/passwd", "/")

    def soft(file: Any) -> None:
        file["dense/loop"] = h5py.SoftLink("/dense")

    def virtual(file: Any) -> None:
        del file["dense/dense/bias:0"]
        layout = h5py.VirtualLayout((3,), "f4")
        layout[:] = h5py.VirtualSource("elsewhere.h5", "x", (3,))
        file["dense"].create_virtual_dataset("dense/bias:0", layout)

    outside = {"shape": (3,), "dtype": "f4", "external": [(str(tmp_path / "secret"), 0, 12)]}
    (tmp_path / "secret").write_bytes(bytes(12))
    # 40 MB of zeros, of which the file holds a few kB
    bomb = {"shape": (10_000_000,), "dtype": "f4", "chunks": (1_000_000,), "compression": "gzip"}
    unwritten = {"shape": (1 << 40,), "dtype": "f4", "chunks": (1 << 20,)}

    def texts(file: Any) -> None:
        replaced(["x" * 1000] * 3, dtype=h5py.string_dtype())(file)

    def twice(file: Any) -> None:
        file["dense"].attrs["weight_names"] = np.array([b"dense/bias:0"] * 2)

    def commands(file: Any) -> None:
        file["a\x1b[2J\nb"] = h5py.SoftLink("/dense")

    def long(file: Any) -> None:
        replaced(np.array([1, np.nan], np.float32))(file)
        file.move("dense", "d" * 3000)
        file.attrs["layer_names"] = np.array([b"d" * 3000])

    cases = [
        (texts, "holds object, which is no weight"),
        (twice, "lists dense/dense/bias twice"),
        (commands, r": a\?\[2J\?b is a link"),
        (long, "d{80} holds values"),
        (external, "link to elsewhere"),
        (soft, "link to elsewhere"),
        (virtual, "lies in another file"),
        (replaced(**outside), "lies in another file"),
        (replaced(np.zeros(10_000_000, np.float32), **bomb), "would unpack from"),
        (replaced(**unwritten), "would unpack from"),
        (replaced(np.array([1, np.nan, 2], np.float32)), "not finite"),
        (replaced(np.array([b"a", b"b"])), "no weight"),
    ]
    for number, (change, reason) in enumerate(cases):
        refused(read_here, keras(tmp_path / f"{number}.h5", change), reason)
    (tmp_path / "text.h5").write_text("not HDF5 at all")
    refused(read_here, tmp_path / "text.h5", "cannot be read as weights of Keras")
    whole = keras(tmp_path / "whole.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    refused(read_here, tmp_path / "cut.h5", "cannot be read as weights of Keras")
    monkeypatch.setattr("hz_export.imported.keras_file.MOST_TENSORS", 2)
    refused(read_here, keras(tmp_path / "many.h5"), "more than 2 objects")
    monkeypatch.setattr("hz_export.imported.keras_file.MOST_BYTES", 100)
    refused(read_here, tmp_path / "many.h5", "no network here has as many")


def test_a_file_that_kills_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bit in a name's length made HDF5's library read where nothing is; what is refused says why."""
    (tmp_path / "text.h5").write_text("not HDF5 at all")
    refused(read_keras, tmp_path / "text.h5", "cannot be read as weights of Keras")
    (tmp_path / "h5py.py").write_text("import os; os.abort()\n")
    monkeypatch.syspath_prepend(tmp_path)
    refused(read_keras, tmp_path / "text.h5", r"its reader died of it \(exit -6\)")
    (tmp_path / "h5py.py").write_text("import time; time.sleep(60)\n")
    monkeypatch.setattr("hz_export.imported.reader_process.MOST_SECONDS", 0.5)
    refused(read_keras, tmp_path / "text.h5", r"took more than 0\.5 s")


def test_keras_3_is_told_from_keras_2(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "new.weights.h5", "w") as file:
        file.create_dataset("layers/dense/vars/0", data=VALUES)
    refused(read_here, tmp_path / "new.weights.h5", "names no layers")


@pytest.mark.parametrize("legacy", [False, True])
def test_state_dicts_give_their_tensors(tmp_path: Path, legacy: bool) -> None:
    plain = torch.from_numpy(VALUES)
    held = {"a.weight": plain, "n": torch.tensor(3), "__metadata__": plain.T, "half": plain.bfloat16()}
    path = tmp_path / "w.pth"
    torch.save({"module." + k: v for k, v in held.items()}, path, _use_new_zipfile_serialization=not legacy)
    found = state_dict.read_here(path)[0] if legacy else read_state_dict(path).tensors
    assert list(found) == list(held)  # whatever they are called
    for name, values in held.items():
        np.testing.assert_array_equal(found[name], values.float().numpy(), strict=name != "n")
    assert found["n"].shape == () and found["n"].dtype == np.int64


def test_a_pickle_that_asks_for_memory_gets_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch lets weights hold a bytearray, of any length that a few letters name."""
    monkeypatch.setattr("hz_runtime.io.programs.LEAST_MEMORY", 600 << 20)
    path = tmp_path / "asks.pth"
    asks = pickle.PROTO + b"\x02cbuiltins\nbytearray\n" + pickle.BININT + (700 << 20).to_bytes(4, "little")
    before = (torch.serialization.MAGIC_NUMBER, 1001, {"little_endian": True})
    path.write_bytes(b"".join(pickle.dumps(part, 2) for part in before) + asks + b"\x85R.")
    refused(read_state_dict, path, "MemoryError")


class Payload:
    def __reduce__(self) -> Any:
        return (open, ("pickled-code-ran", "w"))


def test_hostile_state_dicts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain = {"a": torch.zeros(3)}
    torch.save({"a": Payload()}, "code.pth")
    Path("pickle.pth").write_bytes(pickle.dumps({"a": Payload()}))
    # a view of four bytes that claims four terabytes
    torch.save({"a": torch.zeros(1).expand(1 << 40)}, "view.pth")
    torch.save({"a": torch.tensor([1.0, float("inf")])}, "inf.pth")
    torch.save([torch.zeros(3)], "list.pth")
    torch.save({"a": torch.zeros(3).to(torch.float8_e4m3fn)}, "float8.pth")
    torch.save({"a": torch.zeros(3, device="meta")}, "meta.pth")
    torch.save({"a\x1b[2J\nb": torch.zeros(3).bool()}, "commands.pth")
    torch.save({"a": {"b": torch.zeros(3)}}, "nested.pth")
    torch.save({"a": torch.zeros(3).to_sparse()}, "sparse.pth")
    written = io.BytesIO()
    torch.save(plain, written)
    with zipfile.ZipFile(written) as archive, zipfile.ZipFile("packed.pth", "w", zipfile.ZIP_DEFLATED) as out:
        for name in archive.namelist():
            out.writestr(name, archive.read(name))
    # every part of the table of contents at the place, and of the size, of the largest
    over = bytearray(written.getvalue())
    at = over.find(b"PK\x01\x02")
    while at >= 0:
        over[at + 20 : at + 28] = (len(over) // 2).to_bytes(4, "little") * 2
        at = over.find(b"PK\x01\x02", at + 4)
    Path("over.pth").write_bytes(over)
    disks = bytearray(written.getvalue())
    disks[disks.rfind(b"PK\x06\x07") + 16] = 2  # of the locator that torch writes
    Path("disks.pth").write_bytes(disks)
    Path("end.pth").write_bytes(written.getvalue()[:-22])
    Path("cut.pth").write_bytes(written.getvalue()[:-200])
    reasons = {
        "code": "cannot be read as weights alone",
        "pickle": "cannot be read as weights alone",
        "view": "unpacks to more than",
        "inf": "not finite",
        "list": "no state dict",
        "nested": "no state dict",
        "float8": "no plain tensor",
        "meta": "no plain tensor",
        "commands": r": a\?\[2J\?b is no plain tensor",
        "over": "lie over each other",
        "end": "is damaged",
        "disks": r"is damaged \(zipfiles that span",
        "sparse": "no plain tensor|cannot be read",
        "packed": "is packed",
        "cut": "cannot be read|damaged",
    }
    for name, reason in reasons.items():
        refused(state_dict.read_here, tmp_path / f"{name}.pth", reason)
    assert not Path("pickled-code-ran").exists()
    torch.save(plain, "plain.pth")
    monkeypatch.setattr("hz_export.imported.state_dict.MOST_BYTES", 10)
    refused(state_dict.read_here, tmp_path / "plain.pth", "no network here has as many")


def test_every_tensor_has_its_place() -> None:
    network = nn.Linear(3, 2)
    names = {"weight": ("w", ""), "bias": ("b", "")}
    tensors = {"w": VALUES, "b": VALUES[0, :2]}
    made = load(network, WeightFile("f", "", tensors), names)
    np.testing.assert_array_equal(made.weight.detach().numpy(), VALUES)
    turned = {"w": VALUES.T, "b": VALUES[0, :2]}
    made = load(nn.Linear(3, 2), WeightFile("f", "", turned), {**names, "weight": ("w", "dense")})
    np.testing.assert_array_equal(made.weight.detach().numpy(), VALUES)
    for changed, what in (
        ({"w": VALUES}, "lacks b"),
        ({**tensors, "c": VALUES}, "holds c, which the network has no place for"),
        ({**tensors, "w": VALUES.T}, r"holds w of \(3, 2\), and its place is \(2, 3\)"),
    ):
        with pytest.raises(UsageError, match=what):
            load(network, WeightFile("f", "", changed), names)
    assert weight_file.MOST_BYTES > 1e9
