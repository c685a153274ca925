"""What training members side by side saves: M members in one fit, M fits one after another, and scikit-learn's bagging.

    python benchmarks/ensembles.py [--rounds 5] [--members 8] [--epochs 20] [--threads 1] [--device auto]

Every member is a network of d features with three matrices (64 x d, d x d, d x 10) on the handwritten digits: the mlp backbone
of one block whose hidden width is d / 2, so that it costs the same FLOPs per example as scikit-learn's MLPClassifier with two
hidden layers of d. All are trained for the same epochs in batches of 64 by Adam. "one fit" is the arm `bagging`; "one by one" is
the arm `dense`, as many times, through the same loop; "one by one, in one fit" is bagging with the members in a loop, as routed
members are trained; "scikit-learn" is BaggingClassifier over MLPClassifier, on one core. A round runs all of them, in changing
order; printed are medians of the whole times (building, data order, validation and test included) and of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from loop import quartiles

from routelab.baselines.base import ArmSpec
from routelab.baselines.ensembles import bagging
from routelab.baselines.ensembles.ensemble_base import MemberArm, member_seed
from routelab.baselines.ensembles.member_networks import OneByOne
from routelab.config.run_options import Budget, Optimizer, TrainerOptions
from routelab.config.run_spec import RunSpec
from routelab.data.base import DataSet, load
from routelab.training.run import execute

BATCH = 64


def run(data: DataSet, width: int, epochs: int, device: str, name: str, seed: int = 0, members: int | None = None) -> float:
    """One run through the loop; its test accuracy."""
    backbone = {"name": "mlp", "d_model": width, "depth": 1, "hidden": width // 2}
    arm = ArmSpec(name, backbone, {"kind": "relu"}, {}, {} if members is None else {"members": members})
    trainer = TrainerOptions(accelerator=device, batch_size=BATCH, checks=1)
    spec = RunSpec(name, arm, seed, {"name": "digits"}, Budget(epochs=epochs), Optimizer(lr=3e-3), trainer)
    record = execute(spec, data=data).record
    assert record["status"] == "ok", record["error"]
    return float(record["test"]["accuracy"])


def one_by_one_in_one_fit(data: DataSet, width: int, epochs: int, device: str, members: int) -> float:
    """The arm `bagging`, but with its members in a loop."""
    real = MemberArm.networks
    MemberArm.networks = lambda self, found: OneByOne(found)  # type: ignore[method-assign]
    try:
        return run(data, width, epochs, device, "bagging", members=members)
    finally:
        MemberArm.networks = real  # type: ignore[method-assign]


def scikit_learn(data: DataSet, width: int, epochs: int, members: int) -> float:
    """BaggingClassifier over MLPClassifier; its test accuracy."""
    from sklearn.ensemble import BaggingClassifier
    from sklearn.neural_network import MLPClassifier

    network = MLPClassifier(
        (width, width), batch_size=BATCH, learning_rate_init=3e-3, max_iter=epochs, tol=0.0, n_iter_no_change=epochs + 1
    )
    train, test = ((part.inputs.flatten(1).numpy(), part.targets.numpy()) for part in (data.train, data.test))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that so many epochs did not converge
        return float(BaggingClassifier(network, n_estimators=members, random_state=0).fit(*train).score(*test))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--clock", default="wall", choices=("wall", "cpu"), help="cpu: this process's own time, on a busy machine"
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = "gpu" if options.device == "auto" and torch.cuda.is_available() else "cpu"
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    data, members, epochs = load("digits"), options.members, options.epochs
    assert bagging.Bagging.networks is MemberArm.networks, "the loop over members is put in there"
    print(
        f"{device}, {options.threads} threads, torch {torch.__version__}, {options.rounds} rounds, {members} members, {epochs} epochs"
    )
    print(f"{'d':>4} {'way':<24} {'seconds':>8} {'over one fit':>20} {'accuracy':>9}")
    for width in options.widths:
        ways: dict[str, Callable[[], float]] = {
            "one fit": lambda w=width: run(data, w, epochs, device, "bagging", members=members),
            "one by one": lambda w=width: statistics.mean(
                run(data, w, epochs, device, "dense", seed=member_seed(0, number)) for number in range(members)
            ),
            "one by one, in one fit": lambda w=width: one_by_one_in_one_fit(data, w, epochs, device, members),
            "scikit-learn": lambda w=width: scikit_learn(data, w, epochs, members),
        }
        run(data, width, 1, device, "bagging", members=members)
        times: dict[str, list[float]] = {way: [] for way in ways}
        quality: dict[str, float] = {}
        for number in range(options.rounds):
            for way in list(ways) if number % 2 else reversed(ways):
                started = clock()
                quality[way] = ways[way]()
                times[way].append(clock() - started)
        for way, seconds in times.items():
            ratios = [mine / ours for mine, ours in zip(seconds, times["one fit"], strict=True)]
            print(
                f"{width:>4} {way:<24} {statistics.median(seconds):>8.2f} {quartiles(ratios):>20} {quality[way]:>9.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
