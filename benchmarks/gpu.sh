#!/usr/bin/env bash
# Everything that needs a GPU, in under ten minutes (the parts' limits add up to 575 s): tests, layer and loop benchmarks, a real
# comparison on `domains`, its mixture on the clock, and served from little memory.
#
#   bash benchmarks/gpu.sh [FOLDER]
#
# FOLDER (default benchmarks/results/gpu-DATE) is given the logs and the comparison's table, summary and report. WHEELS may name
# a folder of wheels for packages that the machine lacks (omegaconf, typer, spdx, simple-icd-10-cm, pytest-timeout, hypothesis
# and what they need); they are installed beside the environment, not into it. mlflow is not needed: tracking is off here.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results/gpu-$(date +%F)}
mkdir -p "$out"
export PYTHONUNBUFFERED=1
if [ -n "${WHEELS:-}" ]; then
  site=$(mktemp -d)
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "$WHEELS"/*.whl
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
python3 - <<'PY'
import sys
import torch
if not torch.cuda.is_available():
    sys.exit("benchmarks/gpu.sh: this machine has no CUDA device; nothing was measured")
print(torch.cuda.get_device_name(0), "torch", torch.__version__, "python", sys.version.split()[0])
PY
status=0
part() { # name, seconds, command...
  local name=$1 limit=$2 started=$SECONDS
  shift 2
  echo "== $name: $*"
  if ! timeout "$limit" "$@" 2>&1 | tee "$out/$name.txt"; then
    echo "== $name FAILED (or ran past $limit s)" | tee -a "$out/$name.txt"
    status=1
  fi
  echo "== $name took $((SECONDS - started)) s"
}
# A process for each file: most of a small run's time is the host's.
part tests 180 bash -c 'printf "%s\n" tests/gpu/test_*.py | xargs -P 3 -n 1 python3 -m pytest -q -p no:cacheprovider \
  -o addopts= -m gpu'
part layer 75 python3 benchmarks/layer.py --device cuda
part loop 75 python3 benchmarks/loop.py --rounds 3 --arms dense switch top2
part domains 160 python3 -c 'from routelab.cli.app import main; main()' compare configs/language.yaml \
  "output=$out/domains" tracking.uri=null seeds=2 workers=4 backbone.d_model=256 backbone.depth=6 backbone.heads=8 \
  data.bytes_per_domain=null trainer.batch_size=128 budget.seconds=15
part clock 45 python3 -c 'from routelab.cli.app import main; main()' clock "$out/domains/topk-s0" --sizes 1,16,256,4096 \
  --rounds 9 --longest 2 --output "$out/clock"
part serve 40 python3 -c 'from routelab.cli.app import main; main()' serve-cost "$out/domains/topk-s0" --slots 12,24 \
  --steps 16 --output "$out/serving"
exit $status
