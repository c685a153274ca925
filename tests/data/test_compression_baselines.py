"""The yardsticks mean what they say: counts by hand, probabilities that sum to 1, and xz as the command has it."""

import json
import lzma
import math
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch

from routelab.comparison.reference_scores import yardsticks_of
from routelab.data.base import DataSet, Yardstick, load
from routelab.data.compression_baselines import WittenBell, text_yardsticks, xz_bits
from routelab.data.task import Batch, InputSpec, Task


def rows(*texts):
    return np.array([list(text) for text in texts], np.uint8)


def test_witten_bell_by_hand():
    """abcab, in which the first byte is context only: b, c, a, b follow.

    Order 0: N = 4, T = 3. P0(b) = (2 + 3/256) / 7; P0(c) = P0(a) = (1 + 3/256) / 7; P0(other) = (3/256) / 7.
    Order 1: after a: b twice, N = 2, T = 1: P1(b | a) = (2 + P0(b)) / 3.
    """
    model = WittenBell(rows(b"abcab"), 1)
    p_b, p_c, p_z = (2 + 3 / 256) / 7, (1 + 3 / 256) / 7, (3 / 256) / 7
    found = 2 ** -model.bits(rows(b"abz", b"xcc"))
    assert found[0, 0] == pytest.approx((2 + p_b) / 3)
    assert found[0, 1] == pytest.approx((0 + p_z) / 2)  # after b came c only: N = 1, T = 1
    assert found[1, 0] == pytest.approx(p_c)  # x never occurred
    assert found[1, 1] == pytest.approx((0 + 1 * p_c) / 2)  # after c came a


def test_longer_contexts_by_hand():
    """Order 2 on abab|c: contexts ab -> a, ba -> b, ab -> c."""
    model = WittenBell(rows(b"ababc"), 2)
    p0 = {"a": (1 + 3 / 256) / 7, "b": (2 + 3 / 256) / 7, "c": (1 + 3 / 256) / 7}
    p1 = {letter: ((1 if letter in "ac" else 0) + 2 * p0[letter]) / 4 for letter in "abc"}  # after b: a, c
    expected = {letter: ((1 if letter in "ac" else 0) + 2 * p1[letter]) / 4 for letter in "abc"}
    for letter, probability in expected.items():
        assert 2 ** -model.bits(rows(b"ab" + letter.encode()))[0, 1] == pytest.approx(probability)


@pytest.mark.parametrize("order", [0, 1, 3, 5, 6])
def test_probabilities_sum_to_one(order):
    """After any context, seen or not: over all 256 bytes."""
    random = np.random.default_rng(0)
    model = WittenBell(random.integers(0, 4, (20, 40)).astype(np.uint8), order)
    for context in (random.integers(0, 4, 7), random.integers(0, 256, 7), np.zeros(7)):
        each = np.stack([np.append(context, byte) for byte in range(256)]).astype(np.uint8)
        assert (2 ** -model.bits(each)[:, -1]).sum() == pytest.approx(1.0)


def test_vectorised_counts_are_those_of_a_dictionary():
    """An oracle that counts as one would on paper, window by window."""
    random = np.random.default_rng(1)
    train, test = (random.integers(97, 101, shape).astype(np.uint8) for shape in ((30, 12), (5, 12)))
    counts: dict[bytes, dict[int, int]] = {}
    for row in train:
        for place in range(1, len(row)):
            for length in range(min(place, 5) + 1):
                follow = counts.setdefault(bytes(row[place - length : place]), {})
                follow[int(row[place])] = follow.get(int(row[place]), 0) + 1

    def probability(context, byte):
        shorter = probability(context[1:], byte) if context else 1 / 256
        follow = counts.get(context)
        if not follow:
            return shorter
        return (follow.get(byte, 0) + len(follow) * shorter) / (sum(follow.values()) + len(follow))

    found = WittenBell(train, 5).bits(test)
    for row, bits in zip(test, found, strict=True):
        for place in range(1, len(row)):
            context = bytes(row[max(0, place - 5) : place])
            assert bits[place - 1] == pytest.approx(-math.log2(probability(context, int(row[place]))))


def test_order_is_bounded():
    with pytest.raises(ValueError, match="order is 7"):
        WittenBell(rows(b"abc"), 7)


def test_xz_is_the_command(tmp_path):
    text = bytes(np.random.default_rng(0).integers(97, 105, 20_000).astype(np.uint8))
    assert xz_bits(text) == 8 * len(lzma.compress(text, preset=9))
    if shutil.which("xz") is None:
        pytest.skip("the command xz is not here; the library was compared with itself")
    done = subprocess.run(["xz", "-9", "-T1", "-c"], input=text, capture_output=True, check=True)
    assert xz_bits(text) == 8 * len(done.stdout)


def test_xz_given_the_training_data_knows_it():
    text = bytes(np.random.default_rng(0).integers(0, 256, 5000).astype(np.uint8))
    assert xz_bits(text) >= 8 * 5000
    assert xz_bits(text, before=text) < 8 * 500


def windows_of(text, width=16):
    flat = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    both = flat.unfold(0, width + 1, width).contiguous()
    return Batch(both[:, :-1].contiguous(), both[:, 1:].contiguous())


def test_text_yardsticks():
    train, test = windows_of(b"the cat sat on the mat. " * 200), windows_of(b"the mat sat on the cat. " * 20)
    found = {each.name: each for each in text_yardsticks(train, test)}
    assert set(found) == {"xz -9", "xz -9 after training data", "order-5 byte model"}
    assert all(each.metric == "bits_per_byte" for each in found.values())
    size = test.targets.numel()
    stream = bytes(test.targets.flatten().tolist())
    assert found["xz -9"].value == pytest.approx(8 * len(lzma.compress(stream, preset=9)) / size)
    counted = [np.concatenate([split.inputs[:, :1], split.targets], axis=1) for split in (train, test)]
    expected = WittenBell(counted[0], 5).bits(counted[1]).mean()
    assert found["order-5 byte model"].value == pytest.approx(float(expected))
    assert f"all {size:,} bytes of the test split" in found["xz -9"].note
    assert f"all {train.targets.numel():,} bytes of the training split" in found["order-5 byte model"].note


def test_domains_are_compressed_one_after_another():
    """Windows of two domains lie in turn; compressed so, xz would lose what each of them repeats."""
    mixed = windows_of(b"abcdefghijklmnop" * 40)
    order = torch.randperm(len(mixed), generator=torch.Generator().manual_seed(0))
    mixed = replace(mixed.select(order), domain=torch.arange(len(mixed))[order])
    assert text_yardsticks(mixed, mixed)[0].value == pytest.approx(
        text_yardsticks(windows_of(b"abcdefghijklmnop" * 40), windows_of(b"abcdefghijklmnop" * 40))[0].value
    )


def test_large_splits_are_sampled_and_say_so(monkeypatch):
    from routelab.data import compression_baselines as yardsticks

    monkeypatch.setattr(yardsticks, "LARGEST_TEST", 64)
    found = text_yardsticks(windows_of(b"abcd" * 100), windows_of(b"abcd" * 100))
    assert "on 64 bytes of the test split" in found[0].note
    assert "all 384 bytes of the training split" in found[1].note


def test_yardsticks_are_computed_once(tmp_path):
    """Kept by digest, beside the comparisons, for any data set that brings some."""
    asked = []

    def measure():
        asked.append(1)
        return [Yardstick("always the mean", "r2", 0.0, "by definition")]

    split = Batch(torch.zeros(2, 3), torch.zeros(2))
    task = Task("toy", "regression", InputSpec("table", (3,)), 1)
    data = DataSet(task, split, split, split, "made here", yardsticks=measure)
    expected = [{"name": "always the mean", "metric": "r2", "value": 0.0, "note": "by definition"}]
    assert yardsticks_of(data, tmp_path / "one") == expected
    assert yardsticks_of(data, tmp_path / "two") == expected
    assert len(asked) == 1
    kept = next((tmp_path / "yardsticks").iterdir())
    kept.write_text("{ damaged")
    assert yardsticks_of(data, tmp_path / "one") == expected
    assert json.loads(kept.read_text())["yardsticks"] == expected
    yardsticks_of(replace(data, test=Batch(torch.ones(2, 3), torch.zeros(2))), tmp_path / "two")
    assert len(asked) == 3
    assert yardsticks_of(replace(data, yardsticks=None), tmp_path / "one") == []


def test_domains_bring_yardsticks():
    data = load("domains", bytes_per_domain=40_000)
    found = {each.name: each.value for each in data.yardsticks()}
    # Counting beats no model at all, and compressing after the training data beats compressing alone.
    assert 1 < found["order-5 byte model"] < 5
    assert found["xz -9 after training data"] < found["xz -9"]
