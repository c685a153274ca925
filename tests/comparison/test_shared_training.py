"""Arms that differ in their last prediction alone are trained once, and come to what each would have come to by itself."""

import pytest

from routelab.comparison.compare import compare
from routelab.comparison.prepared_comparison import plan
from routelab.config.resolve import resolve
from routelab.records.run_cache import training_key
from routelab.training.run import execute

CONFIG = {
    "data": {"name": "domains", "domains": ["law", "cpp"], "window": 16, "bytes_per_domain": 2e4},
    "backbone": {"name": "decoder", "d_model": 8, "depth": 1, "heads": 2},
    "arms": ["dense", {"name": "specialists", "combine": ["oracle", "uniform", "weights", "mix"]}],
    "match": {"on": "none"},
    "budget": {"steps": 12},
    "seeds": 2,
    "trainer": {"batch_size": 8, "checks": 2},
    "tracking": {"uri": None},
    "workers": 1,
}


def test_which_trainings_are_one(tmp_path):
    ready = plan(resolve({**CONFIG, "output": str(tmp_path / "mine")}))
    keys = [training_key(job.spec, "digest") for job in ready.jobs]
    assert keys[1] == keys[2] == keys[3]
    assert len(set(keys[:5])) == 3
    assert not set(keys[:5]) & set(keys[5:])  # another seed
    assert len({job.key for job in ready.jobs}) == 10  # each has a cell of its own


@pytest.mark.long
def test_a_comparison_trains_them_once(tmp_path):
    done = compare({**CONFIG, "output": str(tmp_path / "results/mine")})
    assert not done.failed
    assert not (tmp_path / "results/mine/.common").exists()
    steps = {
        (record["arm"].removeprefix("specialists-combine="), record["seed"]): record["shared_steps"] for record in done.records
    }
    assert [steps[arm, 0] for arm in ("dense", "oracle", "uniform", "weights", "mix")] == [None, None, 11, 11, None]
    for job, record in zip(plan(resolve({**CONFIG, "output": str(tmp_path / "other")})).jobs, done.records, strict=True):
        alone = execute(job.spec).record
        assert (alone["test"], alone["validation"], alone["flops_model"], alone["flops_evaluation"]) == (
            record["test"], record["validation"], record["flops_model"], record["flops_evaluation"],
        )  # fmt: skip
    names = [row[0] for row in done.summary["cells"]]
    assert names[0] == "dense"
    assert "leaks: the example's domain" in done.summary["arms"]["specialists-combine=oracle"]["marks"]
