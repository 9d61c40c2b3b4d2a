#!/bin/bash
# Processes on this machine. When one fails, the others are told to save and exit.
set -euo pipefail
export JAX_PLATFORMS=cpu
export JAX_NUM_CPU_DEVICES=1
pids=()
stop() { if ((${#pids[@]})); then kill "$1" "${pids[@]}" 2>/dev/null || true; fi; }
trap 'stop -TERM' TERM INT

python -m big_vision_lite train configs/pretrain/imagenet1k.py:depth=50,data_dir=/data --workdir runs/local-run --coordinator 127.0.0.1:8476 --processes 2 --process 0 &
pids+=("$!")
python -m big_vision_lite train configs/pretrain/imagenet1k.py:depth=50,data_dir=/data --workdir runs/local-run --coordinator 127.0.0.1:8476 --processes 2 --process 1 &
pids+=("$!")

status=0
deadline=
while ((${#pids[@]})); do
  left=()
  for pid in "${pids[@]}"; do
    if kill -0 "${pid}" 2>/dev/null; then
      left+=("${pid}")
      continue
    fi
    code=0
    wait "${pid}" || code=$?
    if ((code != 0 && status == 0)); then
      status=${code}
      stop -TERM
      deadline=$((SECONDS + 60))
    fi
  done
  if ((${#left[@]} == 0)); then break; fi
  pids=("${left[@]}")
  if [[ -n "${deadline}" ]] && ((SECONDS > deadline)); then stop -KILL; fi
  sleep 0.2
done
exit "${status}"
