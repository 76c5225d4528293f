#!/usr/bin/env bash
# A process that holds 400 MB starts `sleep` and waits for it with wait4, as subprocess does.
#
# Guessed: ru_maxrss is the most that `sleep` held, a megabyte or two.
# Seen (Linux 6.18, CPython 3.11): it is the 400 MB of the parent. subprocess starts programs by vfork, so that
# the child lives in its parent's memory until it becomes the program, and the kernel counts that as the child's own peak.
# VmHWM of /proc/PID/status begins anew with the program.
# Why hz cares: a benchmark that had loaded PyTorch reported its own 1.1 GB as the memory of each hz-run that it measured,
# which took .7 GB.
set -euo pipefail
python3 - <<'PY'
import os
import subprocess
import time

held = bytearray(b"x") * 400_000_000
process = subprocess.Popen(["sleep", "0.5"])
time.sleep(0.2)
with open(f"/proc/{process.pid}/status") as status:
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
_, code, usage = os.wait4(process.pid, 0)
process.returncode = os.waitstatus_to_exitcode(code)
print(f"the parent holds {len(held) / 1e6:.0f} MB; of sleep ru_maxrss is {usage.ru_maxrss * 1024 / 1e6:.0f} MB and VmHWM "
      f"{peak / 1e6:.0f} MB")
assert usage.ru_maxrss * 1024 > len(held), "ru_maxrss is the program's own"
assert 0 < peak < 50e6
PY
