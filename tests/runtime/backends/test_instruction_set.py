"""Which instructions a processor has, by the flags that Linux gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from hz_runtime.backends.instruction_set import instruction_set, multiplies

AVX512 = "avx2 avx512f avx512bw avx512vl avx512dq"


@pytest.fixture(autouse=True)
def unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ("fma avx2", "avx2"),
        ("fma avx2 avx_vnni", "avx2_vnni"),
        (AVX512, "avx512"),
        (f"{AVX512} avx512_vnni", "avx512_vnni"),
        (f"{AVX512} avx512_vnni avx_vnni avx512_bf16", "avx512_bf16"),
        (f"{AVX512} avx512_vnni avx512_bf16 amx_tile amx_int8 amx_bf16", "amx"),
        ("sse4_2", "unknown"),
    ],
)
def test_the_most_capable_is_named(tmp_path: Path, flags: str, found: str) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"model name\t: some CPU\nflags\t\t: fpu {flags}\n\nflags\t\t: fpu\n")
    assert instruction_set(cpuinfo) == found


def test_what_onednn_is_held_to_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"flags : {AVX512} avx512_vnni avx512_bf16\n")
    for limit, found in (("AVX512_CORE_VNNI", "avx512_vnni"), ("AVX2", "avx2"), ("SSE41", "unknown")):
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
        assert instruction_set(cpuinfo) == found


def test_another_processor_is_unknown_and_multiplies_float32_alone(tmp_path: Path) -> None:
    assert instruction_set(tmp_path / "absent") == "unknown"
    assert [multiplies(kind, "unknown") for kind in ("fp32", "int8", "bf16")] == [True, False, False]
    assert multiplies("int8", "avx512_vnni") and not multiplies("bf16", "avx512_vnni")
    assert not multiplies("int8", "avx512")
