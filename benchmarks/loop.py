"""What the loop costs: the quickstart's models through `routelab train`'s loop, and through a loop written by hand.

    python benchmarks/loop.py [--rounds 7] [--arms dense switch ...] [--threads 1] [--device auto]

Both train the same arm on the same batches for the same steps, with the same optimizer, schedule, clipping, auxiliary
losses, validations and test. The loop of routelab also keeps the FLOP ledger, telemetry and the curve, and checks that
losses are finite. A round runs one after the other, in changing order; printed is the median over rounds of the ratio of
each round's whole times (building the model included), with its quartiles, and the same for the steps alone. The last
column is the share of the steps' time that went into counting FLOPs and rows, timed inside one run of its own.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time

import torch

from routelab.baselines.backbone_arm import SingleBackbone
from routelab.baselines.build import make_arm
from routelab.comparison.matching import match_arms
from routelab.config.arm_grid import arm_choices
from routelab.config.resolve import resolve
from routelab.config.run_spec import RunSpec
from routelab.data.base import DataSet, Order, load
from routelab.training.engines.data_parallel import Books
from routelab.training.ledger import Ledger
from routelab.training.routing_metrics import Tally
from routelab.training.run import execute

ARMS = ("dense", "switch", "top2", "expert_choice", "hash", "soft")
CHECKS = 15


def by_hand(spec: RunSpec, data: DataSet, device: torch.device) -> float:
    """Train, validate and test as the quickstart does, in plain PyTorch. Returns the seconds of the steps alone."""
    arm = make_arm(spec.arm, data.task, spec.seed).to(device)
    network, weights, task = arm.network, arm.loss_weights(), data.task
    train, validation, test = (part.to(device) for part in (data.train, data.validation, data.test))
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": spec.optimizer.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (spec.optimizer.beta1, spec.optimizer.beta2)
    optimizer = torch.optim.AdamW(groups, lr=spec.optimizer.lr, betas=betas, fused=True)
    order = Order(len(train), spec.trainer.batch_size, spec.seed)
    steps, spent = int(spec.budget.steps or 0), 0.0
    network.train()
    for step in range(steps):
        started = time.perf_counter()
        share = step / steps
        warm = spec.optimizer.warmup
        factor = max(share / warm, 0.02) if share < warm else 0.5 * (1 + math.cos(math.pi * (share - warm) / (1 - warm)))
        for group in optimizer.param_groups:
            group["lr"] = spec.optimizer.lr * factor
        index = order.batch(step).to(device)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
            outputs, routings = network(train.inputs[index])
            loss = task.loss(outputs, train.targets[index]).mean()
        for routing in routings:
            for name, raw in routing.losses.items():
                loss = loss + weights[name] * raw
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, spec.optimizer.clip)
        optimizer.step()
        spent += time.perf_counter() - started
        if (step + 1) % (steps // CHECKS) == 0:
            evaluate(network, task, validation)
            network.train()
    evaluate(network, task, test)
    return spent


@torch.no_grad()
def evaluate(network: torch.nn.Module, task, part) -> dict[str, float]:
    """Loss and metric over a split."""
    network.eval()
    sums: dict[str, torch.Tensor] = {}
    for start in range(0, len(part), 512):
        batch = part.select(slice(start, start + 512))
        with torch.autocast("cuda", torch.bfloat16, enabled=batch.inputs.is_cuda):
            outputs, _ = network(batch.inputs)
        for name, value in task.statistics(outputs, batch.targets).items():
            sums[name] = sums.get(name, 0.0) + value
    return task.summary(sums)


def ledger_share(spec: RunSpec, data: DataSet) -> float:
    """Seconds inside the functions that count FLOPs and rows, over the seconds of the steps. Timers included, so too high."""
    spent = 0.0
    timed = [(SingleBackbone, "flops"), (Books, "enter"), (Ledger, "add"), (Tally, "add_rows")]
    originals = [getattr(owner, name) for owner, name in timed]

    def with_timer(call):
        def inner(*arguments, **options):
            nonlocal spent
            started = time.perf_counter()
            value = call(*arguments, **options)
            spent += time.perf_counter() - started
            return value

        return inner

    for (owner, name), call in zip(timed, originals, strict=True):
        setattr(owner, name, with_timer(call))
    try:
        seconds = execute(spec, data=data).record["seconds"]
    finally:
        for (owner, name), call in zip(timed, originals, strict=True):
            setattr(owner, name, call)
    return spent / float(seconds)


def quartiles(values: list[float]) -> str:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return f"{middle:5.2f} [{low:4.2f}, {high:4.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if options.device == "auto" and torch.cuda.is_available() else "cpu")
    resolved = resolve([f"trainer.accelerator={'gpu' if device.type == 'cuda' else 'cpu'}"])
    data = load("digits")
    matched = match_arms(
        arm_choices(resolved.config, list(dict.fromkeys(["dense", *options.arms]))), data.task, resolved.config.match
    )
    specs = [RunSpec.of(resolved.config, arm.choice, 0) for arm in matched if arm.choice.label in options.arms]
    print(f"{device}, {options.threads} threads, torch {torch.__version__}, {options.rounds} rounds, 300 steps, batches of 64")
    print(f"{'arm':<14} {'whole run, ratio':>20} {'steps alone, ratio':>20} {'by hand':>9} {'counting':>9}")
    for spec in specs:
        by_hand(spec, data, device), execute(spec, data=data)
        whole, steps, seconds = [], [], []
        for number in range(options.rounds):
            times: dict[str, tuple[float, float]] = {}
            for which in ("ours", "hand") if number % 2 else ("hand", "ours"):
                started = time.perf_counter()
                alone = execute(spec, data=data).record["seconds"] if which == "ours" else by_hand(spec, data, device)
                times[which] = (time.perf_counter() - started, alone)
            whole.append(times["ours"][0] / times["hand"][0])
            steps.append(times["ours"][1] / times["hand"][1])
            seconds.append(times["hand"][0])
        by_hand_seconds, counting = statistics.median(seconds), ledger_share(spec, data)
        print(
            f"{spec.label:<14} {quartiles(whole):>20} {quartiles(steps):>20} {by_hand_seconds:7.2f} s {counting:9.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
