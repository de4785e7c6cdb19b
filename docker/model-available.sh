#!/bin/bash
# Succeeds where the model server on this machine says that a version of MODEL_NAME is available.
# TensorFlow Serving's image has bash and no curl.  Usage: MODEL_NAME=NAME model-available.sh [REST port, 8501]
set -euo pipefail
exec 3<>"/dev/tcp/127.0.0.1/${1:-8501}"
printf 'GET /v1/models/%s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' "$MODEL_NAME" >&3
answer=$(timeout 5 cat <&3)
[[ $answer == *'"AVAILABLE"'* ]] || { echo "expected a version of $MODEL_NAME to be available. Received: $answer" >&2; exit 1; }
