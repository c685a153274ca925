#!/usr/bin/env bash
# Every run behind docs/answers.md, in order; about an hour on two idle cores. What is finished is not done again.
set -euo pipefail
cd "$(dirname "$0")/../.."

routelab compare configs/language.yaml
for arm in topk switch hash; do
  for seed in 0 1 2; do
    routelab analyze "results/language/$arm-s$seed" --output "results/answers/$arm-s$seed"
  done
done
