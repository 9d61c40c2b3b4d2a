set -euo pipefail
set --
if [ "${SKYPILOT_NUM_NODES}" -gt 1 ]; then
  first=$(echo "${SKYPILOT_NODE_IPS}" | head -n 1)
  set -- --coordinator "${first}:@{port}" --processes "${SKYPILOT_NUM_NODES}" --process "${SKYPILOT_NODE_RANK}"
fi
exec ~/bvl/bin/python @{arguments} "$@"
