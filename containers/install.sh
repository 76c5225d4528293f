#!/bin/sh
# install.sh VENV EXTRAS: install hz from this folder into a new environment, at the tested versions, and
# fail where that brought torch: what runs models needs none. Where there is a folder /wheels, from it alone.
set -eu
venv=$1
extras=$2

[ ! -d /wheels ] || export PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels
python3 -m venv "$venv"
"$venv/bin/pip" install --no-cache-dir --disable-pip-version-check --constraint constraints.txt ".[$extras]"
"$venv/bin/python" - <<'END'
import importlib.util
import sys

unwanted = [name for name in ("torch", "onnx") if importlib.util.find_spec(name)]
if unwanted:
    sys.exit(f"{', '.join(unwanted)} came with the extras: choose others")
END
# Nothing is installed later on, and what checks images for known faults finds those of pip and setuptools, too.
"$venv/bin/python" -m pip uninstall --quiet --yes setuptools pip
for command in hz-bids hz-run hz-prepare hz-dicom hz-orthanc; do
  "$venv/bin/$command" --version
done
