#!/bin/bash
# Writes the digest of each image that a Dockerfile builds on beside its tag: NAME:TAG@sha256:...
# Usage: pin-bases.sh Dockerfile
set -euo pipefail
digest() {
  local found
  found=$(docker buildx imagetools inspect "$1" --format '{{.Manifest.Digest}}')
  [[ $found =~ ^sha256:[0-9a-f]{64}$ ]] || { echo "expected the digest of $1. Received: $found" >&2; exit 1; }
  echo "$found"
}
python=$(sed -nE 's/^FROM (python:[^@ ]+).*/\1/p' "$1")
serving=$(sed -nE 's/^ARG TF_SERVING=([^@ ]+).*/\1/p' "$1")
python_digest=$(digest "$python")
serving_digest=$(digest "tensorflow/serving:$serving")
sed -i -E -e "s|^(FROM python:[^@ ]+)(@[^ ]+)?|\1@$python_digest|" \
  -e "s|^(ARG TF_SERVING=[^@ ]+)(@[^ ]+)?|\1@$serving_digest|" "$1"
