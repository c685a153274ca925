"""The 1952 vowels: the four of 1991 by default, nobody heard in two splits, numbers that can be looked up."""

import numpy as np
import pytest
import torch

from routelab.core.errors import UsageError
from routelab.data.base import kind_of, load
from routelab.data.peterson_barney import SPEAKERS, recordings, training_speakers

DIGESTS = {"first": "70096a1ce8ec0fe0", "random": "c710f78054105e9f"}


@pytest.mark.parametrize("split", DIGESTS)
def test_sizes_and_digest(split):
    data = load("peterson_barney", split=split)
    assert (len(data.train), len(data.validation), len(data.test)) == (320, 80, 200)
    assert data.digest == DIGESTS[split]
    assert kind_of("peterson_barney") == data.task.inputs.kind == "table"
    assert "Peterson and Barney 1952" in data.source
    for part in (data.train, data.validation, data.test):
        assert part.targets.bincount().tolist() == [len(part) // 4] * 4
    torch.testing.assert_close(data.train.inputs.mean(0), torch.zeros(2), atol=1e-5, rtol=0)


def test_the_first_man_s_first_vowels():
    """Speaker 1 of the published table: [i] at 240 and 2280 Hz, then at 280 and 2400."""
    found = recordings()
    assert found.hertz[:2].tolist() == [[240.0, 2280.0], [280.0, 2400.0]]
    assert found.vowel[:2].tolist() == [0, 0]
    assert np.unique(found.speaker).tolist() == list(range(1, SPEAKERS + 1))
    assert len(found.hertz) == SPEAKERS * 4 * 2


def test_ten_vowels_and_four_frequencies():
    data = load("peterson_barney", vowels="all", frequencies=["F0", "F1", "F2", "F3"])
    assert data.task.outputs == 10
    assert data.train.inputs.shape == (800, 4)


def test_the_first_fifty_speakers_are_the_men_and_some_women():
    assert training_speakers("first").tolist() == list(range(1, 51))
    drawn = training_speakers("random")
    assert len(set(drawn.tolist())) == 50
    assert (drawn > 50).any()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"split": "last"}, "unknown data.split 'last'"),
        ({"vowels": ["iy", "ei"]}, "unknown name in data.vowels 'ei'"),
        ({"vowels": "iy"}, "must name at least 2, none twice"),
        ({"frequencies": ["F1", "F1"]}, "must name at least 1, none twice"),
    ],
)
def test_wrong_options_are_one_sentence(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        load("peterson_barney", **options)
