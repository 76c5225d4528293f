#!/usr/bin/env bash
# Makes niivue.js.gz and LICENSES.txt from the npm packages at the versions below. Only to be run for a newer
# NiiVue; afterwards put the sha256 that it prints into viewer.py. The codecs of zarr (WebAssembly, more than
# half of the published bundle) are left out.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp "$here/entry.js" "$here/no_codec.js" "$work"
cd "$work"
npm init -y >/dev/null
npm install --silent --save-exact @niivue/niivue@0.69.0 nifti-reader-js@0.8.0 esbuild@0.28.2
npx esbuild entry.js --bundle --minify --format=iife --global-name=niivue --legal-comments=none \
  --alias:numcodecs/blosc=./no_codec.js --alias:numcodecs/zstd=./no_codec.js \
  --alias:numcodecs/lz4=./no_codec.js --outfile=niivue.js
{
  echo "niivue.js.gz holds these packages, bundled and minified; the text of each licence follows. NiiVue brings"
  echo "the letters of the Roboto font (Apache-2.0, https://www.apache.org/licenses/LICENSE-2.0)."
  for name in @niivue/niivue gl-matrix nifti-reader-js zarrita @zarrita/storage fflate \
    @ungap/structured-clone @lukeed/uuid array-equal; do
    printf '\n==== %s %s (%s)\n\n' "$name" \
      $(node -p "const p = require('./node_modules/$name/package.json'); p.version + ' ' + p.license")
    cat node_modules/"$name"/[Ll][Ii][Cc][Ee][Nn][SsCc][Ee]* 2>/dev/null || cat "$here/LICENSE.niivue"
  done
} >"$here/LICENSES.txt"
gzip -9 -n -c niivue.js >"$here/niivue.js.gz"
sha256sum niivue.js
