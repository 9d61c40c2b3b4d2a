#!/bin/bash
# Requests the slice, polls it, and requests it again after a preemption, until the run reports that it is done; then
# releases it. This script may be stopped and started again at any time; the slice keeps working.
set -euo pipefail

name=hard-run
workdir='gs://bucket/my runs/hard-run'
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

slice() { gcloud compute tpus queued-resources "$@" --project='a project; rm -rf /' --zone='a zone; touch stolen'; }

create() {
  slice create "${name}" --node-id="${name}" \
    --accelerator-type='v4-32 `touch stolen`' \
    --runtime-version='tpu-ubuntu2204-base $(touch stolen)' \
    --metadata-from-file=startup-script="${here}/startup.sh" \
    --service-account='me@example.org; it'"'"'s $(touch stolen)' \
    --network='default `touch stolen` & *'
}

state() {
  local reply
  if reply=$(slice describe "${name}" --format='value(state.state)' 2>&1); then
    echo "${reply}"
  elif [[ "${reply}" == *NOT_FOUND* || "${reply}" == *'not found'* ]]; then
    echo NONE
  else
    echo "unknown: ${reply}"
  fi
}

release() { slice delete "${name}" --force --quiet || true; }
marked() { gcloud storage ls "${workdir}/launch/$1" >/dev/null 2>&1; }

if marked failed; then gcloud storage rm "${workdir}/launch/failed"; fi
before=
refused=0
while true; do
  if marked finished; then
    echo "the run is done: ${workdir}"
    if [[ "$(state)" != NONE ]]; then release; fi
    exit 0
  fi
  if marked failed; then
    gcloud storage cat "${workdir}/launch/failed"
    release
    exit 1
  fi
  now=$(state)
  if [[ "${now}" != "${before}" ]]; then echo "$(date -u +%FT%TZ) ${name}: ${now}"; fi
  before=${now}
  case "${now}" in
    NONE)
      if create; then
        refused=0
      else
        refused=$((refused + 1))
        if ((refused == 5)); then exit 1; fi
      fi
      ;;
    SUSPENDED) release ;; # preempted; requested again at the next poll
    FAILED)
      slice describe "${name}"
      release
      exit 1
      ;;
  esac
  sleep 5
done
