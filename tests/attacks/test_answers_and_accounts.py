"""What others answer or hand over: Orthanc, orchestrators, tables, archives, and hz's own files, damaged."""

from __future__ import annotations

import gzip
import json
import os
import sqlite3
import threading
from pathlib import Path
from typing import Any

import click
import pytest

from hz_cli.process import process
from hz_runtime.batch.journal import read_journal
from hz_runtime.batch.status import folder_status
from hz_runtime.bundle.store import BundleError
from hz_runtime.dicom.intake import dicom_files
from hz_runtime.errors import HzError, UnreadableScan, UsageError
from hz_runtime.hospital.answers import Arrived, Changes, stored_in
from hz_runtime.hospital.bridge import Bridge
from hz_runtime.hospital.contracts import read_job
from hz_runtime.hospital.journal import NAME, Journal
from hz_runtime.hospital.orthanc import Orthanc, OrthancRefuses, Server
from hz_runtime.io.participants import AgeIsNoNumber, read_table
from hz_runtime.model_space.recipe import Recipe
from parsers_under_attack import PLAN, seeds

pytestmark = [pytest.mark.requirement("answers"), pytest.mark.made_up_results]
SERIES = "-".join(["0123abcd"] * 5)

# Orthanc


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {"Changes": {}},
        {"Changes": ["x"]},
        {"Changes": [], "Last": "7"},
        {"Changes": [], "Last": -1},
        {"Changes": [], "Last": 2**63},
        {"Changes": [], "Last": True},
        {"Changes": [], "Last": 1e400},
        {"Changes": [{"ChangeType": "NewSeries"}]},
        {"Changes": [{"ChangeType": "NewSeries", "ID": "../instances"}]},
        {"Changes": [{"ChangeType": "NewSeries", "ID": f"{SERIES}\r\nHost: x"}]},
        {"Changes": [{"ChangeType": "StableSeries", "ID": "\ud800"}]},
    ],
)
def test_pages_of_changes_that_are_none(answer: Any) -> None:
    with pytest.raises(OrthancRefuses, match="no Orthanc"):
        Changes.read(answer)


@pytest.mark.parametrize("answer", [None, {}, {"Instances": "x"}, {"Instances": [1]}, {"Instances": ["a/b"]}])
def test_series_that_are_none(answer: Any) -> None:
    with pytest.raises(OrthancRefuses, match="no Orthanc"):
        Arrived.read(answer)


def test_what_answers_leave_out_or_say_otherwise() -> None:
    assert Changes.read({"Changes": []}) == Changes(None, (), True, True)
    page = [{"ChangeType": "NewSeries", "ID": SERIES}, {"ChangeType": "NewPatient", "ID": 5}] * 2
    assert Changes.read({"Changes": page, "Last": 9, "Done": False}) == Changes(9, (SERIES,), False, False)
    assert Arrived.read({"Instances": [SERIES], "MainDicomTags": []}) == Arrived(True, (SERIES,), "")
    assert stored_in({"Status": "Success"}) == ""
    for answer in ({"Status": "Failure"}, [], {"Status": "Success", "ParentSeries": "../x"}):
        with pytest.raises(OrthancRefuses):
            stored_in(answer)


class _Endless:
    """Says for ever that there are more changes, of the same page."""

    breaks, asked = -1, 0

    def get(self, path: str) -> Any:
        self.asked += 1
        assert self.asked < 50, "it is asked without end"
        return {"Changes": [{"ChangeType": "NewSeries", "ID": SERIES}], "Last": 5, "Done": False}


def test_changes_that_never_end_are_refused(tmp_path: Path) -> None:
    """The bridge asked for the same page as fast as it could."""
    journal, said = Journal(tmp_path), []
    bridge = Bridge(_Endless(), journal, tmp_path / "w", lambda *_: [], said.append, threading.Event())  # type: ignore[arg-type]
    assert bridge.run(0, once=True) is False
    journal.close()
    assert "gives no later ones" in said[0]


@pytest.mark.parametrize("url", ["http://[::1", "http://host:port", "http://host:70000", "http://host:0"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(UsageError, match="address of Orthanc"):
        Orthanc(Server(url))


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE facts SET value = 'x'",
        "UPDATE series SET stored = '{'",
        "UPDATE series SET stored = '3'",
        "UPDATE series SET tries = 'x'",
        "DROP TABLE series",
    ],
)
def test_a_damaged_journal_of_the_bridge(change: str, tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.read_to(3, [SERIES])
    with sqlite3.connect(tmp_path / NAME) as file:
        file.execute(change)
    file.close()
    with pytest.raises(HzError, match="journal is damaged"):
        _ = (journal.cursor, journal.to_look_at())
    journal.close()


# Orchestrators and tables


def test_a_task_that_is_no_file_or_absurdly_long(tmp_path: Path) -> None:
    """A pipe in place of task.json was waited for without end."""
    there = {"MERCURE_IN_DIR": str(tmp_path), "MERCURE_OUT_DIR": str(tmp_path)}
    os.mkfifo(tmp_path / "task.json")
    with pytest.raises(UsageError, match=r"task\.json cannot be read"):
        read_job(None, None, there)
    (tmp_path / "task.json").unlink()
    (tmp_path / "task.json").write_text(" " * (1 << 20) + "{}")
    with pytest.raises(UsageError, match=r"task\.json cannot be read"):
        read_job(None, None, there)


@pytest.mark.parametrize(
    ("name", "value", "taken"),
    [
        ("threads", 2, 2),
        ("threads", "2", 2),
        ("trust", "key.pem", (Path("key.pem"),)),
        ("trust", ["a.pem", "b.pem"], (Path("a.pem"), Path("b.pem"))),
        ("keep_ids", False, False),
        ("threads", [], None),
        ("threads", {"a": 1}, None),
        ("threads", 1e300, None),
        ("model", ["x"], None),
        ("trust", {}, None),
        ("trust", [["x"]], None),
    ],
)
def test_settings_are_taken_as_from_the_command_line(name: str, value: Any, taken: Any) -> None:
    """A list for a number ended in an internal error; a text for a repeated option was read by letters."""
    from hz_cli.process import _set

    ctx = click.Context(process)
    choices = {name: None}
    if taken is None:
        with pytest.raises(click.BadParameter):
            _set(ctx, {name: value}, choices)
    else:
        assert _set(ctx, {name: value}, choices) == []
        assert choices[name] == taken


def test_an_age_with_an_underscore_is_no_number(tmp_path: Path) -> None:
    """Python reads 3_1 as 31."""
    (tmp_path / "p.tsv").write_text("participant_id\tage\na\t3_1\n")
    table = read_table(tmp_path / "p.tsv")
    with pytest.raises(AgeIsNoNumber, match="line 2: age '3_1'"):
        table.age(table.rows[0])


def test_a_table_does_not_flood_the_log(tmp_path: Path) -> None:
    """A cell, a heading or a unit of any length stood in the message as a whole, a heading with what it does
    to a terminal."""
    (tmp_path / "p.tsv").write_text(f"participant_id\tage\nsub-1\t{'9' * 5000}x\n")
    (tmp_path / "h.tsv").write_text("\t".join(["\x1b[2Ja" + "b" * 5000, *map(str, range(900))]) + "\n")
    (tmp_path / "u.tsv").write_text("participant_id\tage\nsub-1\t31\n")
    (tmp_path / "u.json").write_text(json.dumps({"age": {"Units": "u" * 5000}}))
    for name in "pu":
        table = read_table(tmp_path / f"{name}.tsv")
        with pytest.raises(UsageError) as caught:
            table.age(table.rows[0])
        assert len(caught.value.message) < 200
    with pytest.raises(UsageError) as caught:
        read_table(tmp_path / "h.tsv").need("age")
    assert len(caught.value.message) < 500 and "\x1b" not in caught.value.message


# Archives and recipes


def test_a_zip_member_without_a_name(tmp_path: Path) -> None:
    """Python's own question, whether it is a folder, ended in an IndexError."""
    seed = next(one for one in seeds("arrival", tmp_path) if one.startswith(b"PK"))
    (tmp_path / "study.zip").write_bytes(seed.replace(b"1.dcm", b"\0.dcm"))
    with dicom_files(tmp_path / "study.zip") as files:
        assert len(files) == 1


def test_an_archive_whose_deflate_stream_is_damaged(tmp_path: Path) -> None:
    """isal's own error, in the middle of a tar.gz, was an internal one."""
    whole = gzip.compress(os.urandom(1 << 16), mtime=0)
    (tmp_path / "study.tar.gz").write_bytes(whole[:10] + b"\x07" + whole[11:])
    with pytest.raises(UnreadableScan, match="archive is damaged"), dicom_files(tmp_path / "study.tar.gz"):
        pass


@pytest.mark.parametrize("key", ["intensity", "middle_slices"])
def test_a_recipe_does_not_flood_the_log(key: str) -> None:
    with pytest.raises(BundleError) as caught:
        Recipe.from_dict({key: "x" * 5000})
    assert len(caught.value.message) < 300


# Journals


def _journal(folder: Path, spoil: Any) -> Path:
    """A shard's journal whose word on sub-1 is spoilt."""
    lines = seeds("account", folder)[1].partition(b"\0")[0].splitlines()
    word = json.loads(lines[3])
    spoil(word["scan"])
    path = folder / "1-of-2.jsonl"
    path.write_bytes(b"\n".join([*lines[:3], json.dumps(word).encode(), lines[4], b""]))
    return path


@pytest.mark.parametrize(
    "spoil",
    [
        lambda scan: scan.pop("outputs"),
        lambda scan: scan.pop("input"),
        lambda scan: scan.update(outputs=[{}]),
        lambda scan: scan.update(flags=None),
        lambda scan: scan.update(figure=3),
        lambda scan: scan.update(status="fine"),
        lambda scan: scan.update(age_interval=[1]),
        lambda scan: scan.update(seconds={"read": "x"}),
        lambda scan: scan.update(gates=[1]),
        lambda scan: scan.update(age="old"),
    ],
)
def test_a_word_on_a_scan_that_no_run_wrote_is_passed_over(tmp_path: Path, spoil: Any) -> None:
    """`hz-run status` and `gather` ended in an internal error; the scan is one that has no result now."""
    (run,) = read_journal(_journal(tmp_path, spoil))
    assert run.scans == {}
    assert run.begun == {"b", "sub-1"}
    (sound,) = read_journal(_journal(tmp_path, lambda scan: None))
    assert set(sound.scans) == {"sub-1"}


@pytest.mark.parametrize("shards", [0, -1, 10**6, 10**30, 1e400, "x", None])
def test_a_plan_of_no_number_of_shards(tmp_path: Path, shards: Any) -> None:
    """None of them divided by zero, a great many filled the memory."""
    (tmp_path / "shards").mkdir()
    plan = {**json.loads(PLAN), "shards": shards}
    (tmp_path / "shards" / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(UsageError, match=r"shards/plan\.json is not one that hz wrote"):
        folder_status(tmp_path)


@pytest.mark.parametrize("twice", ["input", "name"])
def test_a_plan_with_a_scan_twice(tmp_path: Path, twice: str) -> None:
    """Two names of one input ended in an internal error."""
    (tmp_path / "shards").mkdir()
    plan = json.loads(PLAN)
    plan["scans"][1][twice] = plan["scans"][0][twice]
    (tmp_path / "shards" / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(UsageError, match=r"shards/plan\.json is not one that hz wrote"):
        folder_status(tmp_path)


@pytest.mark.parametrize("change", [{"scans": [{}]}, {"scans": 3}, {"options": [1]}, {"scans": [None]}])
def test_a_run_json_that_no_run_wrote(tmp_path: Path, change: Any) -> None:
    whole = json.loads(seeds("account", tmp_path)[2])
    (tmp_path / "run.json").write_text(json.dumps({**whole, **change}))
    with pytest.raises(UsageError, match=r"run\.json is not one that hz wrote"):
        folder_status(tmp_path)
