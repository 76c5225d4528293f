"""CPUs of control groups: trees as Linux, Docker and Kubernetes show them, and what cannot be read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hz_runtime import cpus
from hz_runtime.cpus import cpu_quota, usable_cpus

V1 = "32 31 0:29 {top} /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct"
V1_MEMORY = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"
UNIFIED = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw"
V2 = "29 23 0:26 {top} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"


def machine(root: Path, own: str, mounts: str, groups: dict[str, str]) -> Path:
    """A root with proc and sys. groups : group's folder -> "QUOTA PERIOD" (v2), or "QUOTA / PERIOD" (v1)."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(own + "\n")
    (root / "proc/self/mountinfo").write_text("23 1 0:21 / /sys rw - sysfs sysfs rw\n" + mounts + "\n")
    for name, text in groups.items():
        folder = root / "sys/fs/cgroup" / name
        folder.mkdir(parents=True, exist_ok=True)
        if "/" in text:
            quota, period = text.split("/")
            (folder / "cpu.cfs_quota_us").write_text(quota.strip() + "\n")
            (folder / "cpu.cfs_period_us").write_text(period.strip() + "\n")
        else:
            (folder / "cpu.max").write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("own", "mounts", "groups", "found"),
    [
        # a container with a namespace of its own: its group is the root of what it sees
        ("0::/", V2.format(top="/"), {".": "150000 100000"}, 1.5),
        ("0::/", V2.format(top="/"), {".": "max 100000"}, None),
        # a service: the least of its own group and of those above
        ("0::/a/b", V2.format(top="/"), {"a/b": "400000 100000", "a": "200000 100000"}, 2.0),
        ("0::/a/b", V2.format(top="/"), {"a/b": "100000 100000", "a": "max 100000"}, 1.0),
        ("0::/a/b", V2.format(top="/"), {"a/c": "100000 100000"}, None),  # a neighbour's
        # version 1, other controllers beside it
        ("4:cpu,cpuacct:/x\n3:memory:/y", V1.format(top="/"), {"cpu,cpuacct/x": "250000 / 50000"}, 5.0),
        ("4:cpu,cpuacct:/x", V1.format(top="/"), {"cpu,cpuacct/x": "-1 / 100000"}, None),
        (
            "4:cpu,cpuacct:/x/y",
            V1.format(top="/"),
            {"cpu,cpuacct/x/y": "-1 / 100000", "cpu,cpuacct": "300000 / 100000"},
            3.0,
        ),
        # Docker without a namespace: the path is the host's, and only its end is mounted
        ("4:cpu,cpuacct:/docker/3f", V1.format(top="/docker/3f"), {"cpu,cpuacct": "200000 / 100000"}, 2.0),
        (
            "4:cpu,cpuacct:/docker/3f/in",
            V1.format(top="/docker/3f"),
            {"cpu,cpuacct/in": "50000 / 100000"},
            0.5,
        ),
        # outside the namespace that it looks from
        ("0::/../../other", V2.format(top="/"), {".": "100000 100000"}, 1.0),
        # both versions at once, and a memory group that says nothing of CPUs
        (
            "4:cpu,cpuacct:/\n3:memory:/\n0::/",
            "\n".join(
                [V1.format(top="/"), V1_MEMORY, V2.format(top="/").replace("group rw", "group/unified rw")]
            ),
            {"cpu,cpuacct": "400000 / 100000", "unified": "300000 100000", "memory": "100000 / 100000"},
            3.0,
        ),
        # what is no limit
        ("0::/", V2.format(top="/"), {".": "many of them"}, None),
        ("0::/", V2.format(top="/"), {".": "100000"}, None),
        ("0::/", V2.format(top="/"), {".": "100000 0"}, None),
        ("4:cpu:/", V1.format(top="/"), {"cpu,cpuacct": "x / 100000"}, None),
        ("nonsense", "nonsense\n1 2 - cgroup2\n" + V2.format(top="/"), {".": "100000 100000"}, None),
    ],
)
def test_quota(tmp_path: Path, own: str, mounts: str, groups: dict[str, str], found: float | None) -> None:
    assert cpu_quota(machine(tmp_path, own, mounts, groups)) == found


def test_a_mount_whose_name_has_a_space(tmp_path: Path) -> None:
    mounts = V2.format(top="/").replace("/sys/fs/cgroup", "/sys/fs/cgroup/a\\040b")
    assert cpu_quota(machine(tmp_path, "0::/", mounts, {"a b": "200000 100000"})) == 2.0


def test_what_cannot_be_read_is_no_limit(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "nowhere") is None
    root = machine(tmp_path, "0::/", V2.format(top="/"), {".": "100000 100000"})
    (root / "sys/fs/cgroup/cpu.max").unlink()
    (root / "sys/fs/cgroup/cpu.max").mkdir()  # reading it raises, for root too
    assert cpu_quota(root) is None


@pytest.mark.parametrize(
    ("affinity", "quota", "usable"),
    [(64, 2.0, 2), (64, 1.9, 1), (64, 0.5, 1), (2, 8.0, 2), (4, None, 4)],
)
def test_usable_is_the_lesser_rounded_down(
    monkeypatch: pytest.MonkeyPatch, affinity: int, quota: float | None, usable: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)))
    monkeypatch.setattr(cpus, "cpu_quota", lambda: quota)
    assert usable_cpus() == usable
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cpus() == 1
