#!/bin/bash
# Runs on every host of the slice whenever it starts: installs what is missing, fetches the data and trains. The run
# resumes from its last checkpoint, so a preemption costs the steps since then. Log: /var/log/bvl.log
set -eEuo pipefail
log=${BVL_LOG:-/var/log/bvl.log}
root=${BVL_ROOT:-/opt/bvl}
exec >>"${log}" 2>&1

export HOME=/root DEBIAN_FRONTEND=noninteractive PYTHONUNBUFFERED=1
export GREETING='it'"'"'s `date` "$HOME"'
workdir='gs://bucket/my runs/hard-run'
code=${root}/code
python=${root}/venv/bin/python
metadata=http://metadata.google.internal/computeMetadata/v1/instance/attributes
host=$(curl -sf -H 'Metadata-Flavor: Google' "${metadata}/agent-worker-number" || echo 0)

say() { echo "$(date -u +%FT%TZ) host ${host}: $*"; }

retry() {
  local tries=0
  until "$@"; do
    tries=$((tries + 1))
    if ((tries == 5)); then return 1; fi
    sleep $((10 * tries))
  done
}

# Tells the launcher, which then releases the slice.
finish() {
  say "$2"
  if [[ "${host}" == 0 || "$1" == failed ]]; then
    echo "$2" >"${root}/mark"
    retry gcloud storage cp "${root}/mark" "${workdir}/launch/$1"
  fi
}

mount_bucket() {
  if ! command -v gcsfuse >/dev/null; then
    local key=/usr/share/keyrings/cloud.google.asc packages=https://packages.cloud.google.com/apt
    retry curl -sf "${packages}/doc/apt-key.gpg" -o "${key}"
    echo "deb [signed-by=${key}] ${packages} gcsfuse-$(lsb_release -cs) main" >/etc/apt/sources.list.d/gcsfuse.list
    retry apt-get update -q
    retry apt-get install -yq gcsfuse
  fi
  mkdir -p -- "$3"
  if ! mountpoint -q "$3"; then retry gcsfuse --implicit-dirs -o ro ${2:+--only-dir "$2"} "$1" "$3"; fi
}

copy_folder() {
  mkdir -p -- "$2"
  retry gcloud storage rsync --recursive "$1" "$2"
}

install() {
  if [[ ! -x "${python}" ]]; then
    retry python3 -m pip install --quiet uv
    retry python3 -m uv venv --quiet --python 3.12 "${root}/venv"
  fi
  if [[ ! -e "${code}/.installed" ]]; then
    rm -rf "${code}"
    retry git clone --quiet -- 'https://example.org/$(touch stolen)/it'"'"'s.git' "${code}"
    git -C "${code}" checkout --quiet v1.0
    retry python3 -m uv pip install --quiet --python "${python}" "${code}"'[tpu]'
    touch "${code}/.installed"
  fi
}

mkdir -p "${root}"
say "starting"
trap 'finish failed "host ${host} cannot start: line ${LINENO} of its script, see ${log} there"' ERR
install
mount_bucket bucket 'images of cats' '/data/it'"'"'s here'
mount_bucket other '' /other
copy_folder gs://bucket/labels /labels
cd "${code}"
trap - ERR

child=
end() {
  say "told to stop"
  if [[ -n "${child}" ]]; then
    kill -TERM "${child}" || true
    wait "${child}" || true
  fi
  exit 143
}
trap end TERM

for ((attempt = 1; attempt <= 3; attempt++)); do
  status=0
  "${python}" -m big_vision_lite train configs/pretrain/imagenet1k.py:depth=50,data_dir=/data --workdir 'gs://bucket/my runs/hard-run' --train.source.name 'it'"'"'s $(a) `b` "c"; d' --steps 7 &
  child=$!
  wait "${child}" || status=$?
  child=
  case "${status}" in
    0)
      finish finished "the run is done"
      exit 0
      ;;
    2)
      finish failed "the run cannot continue: $(tail -n 1 "${log}")"
      exit 2
      ;;
  esac
  say "training ended with ${status} in attempt ${attempt}; it resumes from the last checkpoint"
  sleep 20
done
finish failed "training ended 3 times; see ${log} there"
exit 1
