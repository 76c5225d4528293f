#!/bin/sh
# build.sh [--local] [--wheels DIR] [NAME]: build the image of hz with buildah, as NAME (localhost/hz), and say how
# large it is. Neither a daemon nor control groups nor an overlay file system are needed.
#   build.sh          on Python's image, from its public registry
#   build.sh --local  on a root file system made of Debian's packages by mmdebstrap: no registry is asked
#   --wheels DIR      install from the wheels in DIR and ask no index; to fill it, with the same Python:
#                     pip wheel --constraint constraints.txt --wheel-dir DIR '.[cpu,openvino,prep,dicom]' hatchling
# EXTRAS in the environment names other extras than the Dockerfile does.
set -eu
usage='usage: containers/build.sh [--local] [--wheels DIR] [NAME]'
here=$PWD
cd "$(dirname "$0")/.."
export STORAGE_DRIVER="${STORAGE_DRIVER:-vfs}" BUILDAH_ISOLATION="${BUILDAH_ISOLATION:-chroot}"

local_base=no wheels= name=localhost/hz
while [ $# -gt 0 ]; do
  case $1 in
    --local) local_base=yes ;;
    --wheels)
      [ $# -gt 1 ] || { echo "$usage" >&2; exit 2; }
      wheels=$(cd "$here" && cd "$2" && pwd)
      shift ;;
    -*) echo "$usage" >&2; exit 2 ;;
    *) name=$1 ;;
  esac
  shift
done

set -- --file containers/Dockerfile --tag "$name"
[ -z "${EXTRAS:-}" ] || set -- "$@" --build-arg "EXTRAS=$EXTRAS"
[ -z "$wheels" ] || set -- "$@" --volume "$wheels:/wheels:ro"
if [ "$local_base" = yes ]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"; buildah rmi localhost/hz-base >/dev/null 2>&1 || :' EXIT
  # Debian 12 has Python 3.11, as the public base; no manuals and no translations, but everybody's copyright.
  mmdebstrap --quiet --variant=minbase --include=python3,python3-venv,ca-certificates \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    bookworm "$work/base.tar"
  empty=$(buildah from scratch)
  buildah add --quiet "$empty" "$work/base.tar" / >/dev/null
  buildah commit --quiet --rm "$empty" localhost/hz-base >/dev/null
  set -- "$@" --build-arg BASE=localhost/hz-base
fi
buildah bud "$@" .
buildah images --format "$name: {{.Size}}" "$name"
