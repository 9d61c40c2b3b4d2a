set -euo pipefail
pip install --quiet uv
uv venv --quiet --allow-existing --python 3.12 ~/bvl
uv pip install --quiet --python ~/bvl/bin/python .@{extras}
