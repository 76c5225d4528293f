"""A chain of records finds every edit, cut and reordering, and goes on after a crash."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hz_runtime.errors import HzError, UsageError
from hz_runtime.io import hash_chain
from hz_runtime.io.hash_chain import FIRST, append, records, verify
from processes import environment

KILLS = int(os.environ.get("HZ_AUDIT_KILLS", "8"))
WRITER = """
import sys
from pathlib import Path
from hz_runtime.io.hash_chain import append

print("ready", flush=True)
for turn in range(100000):
    append(Path(sys.argv[1]), {"who": sys.argv[2], "turn": turn, "text": "x" * 200})
"""


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    path = tmp_path / "audit.jsonl"
    for number in range(5):
        append(path, {"event": "scan", "number": number, "name": "Grüße"})
    return path


def broken(path: Path) -> str:
    with pytest.raises(HzError) as caught:
        verify(path)
    assert caught.value.exit_code == 1
    return caught.value.message


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def test_the_chain_is_what_it_says(chain: Path) -> None:
    """Recomputed here from the text alone."""
    previous = FIRST
    for number, line in enumerate(lines(chain), 1):
        record = json.loads(line)
        body = line[: line.rindex(b',"sha256"')] + b"}\n"
        assert record["sha256"] == hashlib.sha256(body).hexdigest()
        assert (record["n"], record["previous"]) == (number, previous)
        previous = record["sha256"]
    found = verify(chain)
    assert found.last.sha256 == previous and found.last.n == 5 and not found.torn
    assert [record["number"] for record in records(chain)] == [0, 1, 2, 3, 4]


def test_any_flipped_bit_is_found(chain: Path) -> None:
    for path in (chain, chain.with_name("audit.jsonl.head")):
        whole = path.read_bytes()
        every = range(8 * len(whole)) if path != chain else (8 * at + at % 8 for at in range(len(whole)))
        for bit in every:
            data = bytearray(whole)
            data[bit // 8] ^= 1 << (bit % 8)
            path.write_bytes(data)
            assert broken(chain)
        path.write_bytes(whole)
    assert verify(chain).last.n == 5


def test_any_cut_is_found(chain: Path) -> None:
    """At every byte: in the middle, at the end, of all."""
    whole = chain.read_bytes()
    for keep in range(len(whole)):
        chain.write_bytes(whole[:keep])
        assert "audit.jsonl" in broken(chain)
    with pytest.raises(HzError, match="was cut or changed"):
        append(chain, {"event": "after"})  # which would hide it


def test_lines_moved_or_taken_out_are_named(chain: Path) -> None:
    one, two, three, four, five = lines(chain)
    orders = {(one, three, two, four): 2, (two, one, three, four): 1, (one, three, four): 2}
    for order, line in orders.items():
        chain.write_bytes(b"".join(order) + five)
        assert f"line {line} does not hold" in broken(chain)
    chain.write_bytes(one + two.replace(b'"number":1', b'"number":7') + three + four + five)
    assert "line 2 does not hold: it was changed" in broken(chain)
    chain.write_bytes(one + two + three + four + five.replace(b'"number":4', b'"number":7'))
    assert "line 5 does not hold" in broken(chain)
    chain.write_bytes(one + two + two + three + four + five)
    assert "line 3 does not hold" in broken(chain)
    chain.with_name("audit.jsonl.head").unlink()
    chain.write_bytes(one + two + three + four + five)
    assert "audit.jsonl.head" in broken(chain)


def test_an_old_head_is_found(chain: Path) -> None:
    head = chain.with_name("audit.jsonl.head")
    older = head.read_bytes()
    append(chain, {"event": "one more"})
    append(chain, {"event": "and another"})
    head.write_bytes(older)
    assert "where 5 is to be the last" in broken(chain)


@pytest.mark.parametrize("torn", [b'{"n":5,"event":"sc', b"\n", b'{"n":5}\n{"n"', b"\xff" * 100_000])
def test_a_torn_end_is_kept_and_accounted_for(chain: Path, torn: bytes) -> None:
    """What a power cut or a full disk leaves; nobody may alter it afterwards."""
    at = chain.stat().st_size
    with open(chain, "ab") as stream:
        stream.write(torn)
    assert verify(chain).ends_torn
    append(chain, {"event": "after"})
    append(chain, {"event": "and on"})
    found = verify(chain)
    assert (found.last.n, found.torn, found.ends_torn) == (7, 1, False)
    whole = chain.read_bytes()
    chain.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert "line 6 does not hold" in broken(chain)


def test_a_crash_before_the_head_was_written(chain: Path) -> None:
    head = chain.with_name("audit.jsonl.head")
    before = head.read_bytes()
    append(chain, {"event": "last"})
    head.write_bytes(before)
    assert verify(chain).last.n == 6
    append(chain, {"event": "after"})
    assert verify(chain).last.n == 7


def test_crashes_in_succession_before_the_head_was_written(
    chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head was two records behind after the second, and the chain given up for cut."""
    write_head, seen = hash_chain._write_head, set()

    def crash(path: Path, link: hash_chain.Link) -> None:
        if link.n not in seen:
            seen.add(link.n)
            raise KeyboardInterrupt
        write_head(path, link)

    monkeypatch.setattr(hash_chain, "_write_head", crash)
    for n in (6, 7, 8):
        with pytest.raises(KeyboardInterrupt):
            append(chain, {"event": "last"})
        assert verify(chain).last.n == n
    monkeypatch.undo()
    assert append(chain, {"event": "after"}) == verify(chain).last


def test_what_is_no_chain_is_not_written_to(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("mine\n")
    with pytest.raises(HzError, match=r"notes\.txt\.head is not there"):
        append(notes, {"event": "scan"})
    assert notes.read_text() == "mine\n"
    with pytest.raises(UsageError, match="Is a directory"):
        append(tmp_path, {"event": "scan"})
    with pytest.raises(UsageError, match="No such file"):
        verify(tmp_path / "none.jsonl")


def test_two_processes_killed_at_random_moments(tmp_path: Path) -> None:
    """Two write at once and one of them is killed, again and again; the chain holds and goes on."""
    path, moments = tmp_path / "audit.jsonl", random.Random(19)
    code = tmp_path / "writer.py"
    code.write_text(WRITER)

    def begun(who: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-S", str(code), str(path), who], env=environment(), stdout=subprocess.PIPE
        )
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        return process

    two = [begun("a"), begun("b")]
    try:
        for kill in range(KILLS):
            time.sleep(moments.random() * 0.01)
            two[kill % 2].kill()
            two[kill % 2].communicate()
            two[kill % 2] = begun("ab"[kill % 2])
            if kill % 10 == 5:
                verify(path)
    finally:
        for process in two:
            process.kill()
            process.communicate()
    found = verify(path)
    by = [record["who"] for record in records(path)]
    assert found.last.n == len(by) and by.count("a") > KILLS // 5 and by.count("b") > KILLS // 5
    append(path, {"event": "after"})
    assert verify(path).last.n == found.last.n + 1
    assert os.listdir(tmp_path).count("audit.jsonl.head") == 1
