#!/usr/bin/env bash
# Workers of one sweep as a Slurm array: sbatch --array=0-15 examples/slurm.sh CONFIG STUDY [KEY=VALUE ...]
# Every task joins the study, or begins it if it is the first. Needs ROUTELAB_STORAGE, a PostgreSQL URL (docs/cluster.md).
#SBATCH --job-name=routelab-sweep
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --gpus-per-task=1
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=sweep-%A_%a.log
# Two minutes before the time is up, the task itself is told, hands its trials back and ends.
#SBATCH --signal=B:TERM@120
set -euo pipefail

if [ "$#" -lt 2 ]; then
  echo "usage: sbatch --array=0-15 $0 CONFIG STUDY [KEY=VALUE ...]" >&2
  exit 2
fi
config=$1 study=$2
shift 2
: "${ROUTELAB_STORAGE:?set it to postgresql://USER@HOST/DATABASE; the password belongs into ~/.pgpass}"

trap 'if [ -n "${!:-}" ]; then kill -TERM "$!"; else exit 143; fi' TERM INT
# In the foreground bash would hear the signal only when the sweep is over.
routelab sweep run "$config" --tune-only \
  study="$study" \
  storage="$ROUTELAB_STORAGE" \
  output="${ROUTELAB_OUTPUT:-$PWD/results/$study}" \
  tracking.uri="${ROUTELAB_TRACKING:-null}" \
  workers="${SLURM_GPUS_ON_NODE:-1}" \
  "$@" &
sweep=$!
status=0
wait "$sweep" || status=$?
# A trapped signal ends the first wait; the second one is for the sweep's own end.
if kill -0 "$sweep" 2>/dev/null; then
  status=0
  wait "$sweep" || status=$?
fi
exit "$status"
