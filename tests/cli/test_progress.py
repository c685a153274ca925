"""Progress lines of commands whose output is not a terminal."""

from routelab.cli import progress
from routelab.cli.output import console


def test_the_time_left_counts_from_when_runs_were_added(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress.watching(console()) as show:
        for clock[0], done, total, fraction in ((0.0, 0, 4, 0.0), (90.0, 2, 4, 0.75), (120.0, 4, 6, 0.0), (140.0, 4, 6, 0.5)):
            show(done, total, fraction)
    assert capsys.readouterr().out.splitlines() == [
        "2/4 runs, 75% of the work, about 30 s left",
        "4/6 runs, 50% of the work, about 20 s left",
    ]
