"""The linear map that experts and gates may be: affine in numbers and one-hot codes, a table of bytes for text."""

import torch

from routelab.backbones.linear import Linear
from routelab.core.initialisation import initialise
from routelab.data.task import InputSpec


def test_a_table_s_numbers_and_codes_by_hand():
    network = Linear(InputSpec("table", (3,), categories=(0, 2, 0)), 2)
    initialise(network, 0)
    assert network.row.codes.abs().max() == 0
    assert network.numbers.weight.abs().max() > 0
    with torch.no_grad():
        network.numbers.weight.copy_(torch.tensor([[1.0, 10.0], [2.0, 20.0]]))
        network.row.codes.copy_(torch.tensor([[100.0, 200.0], [300.0, 400.0]]))
        network.bias.copy_(torch.tensor([0.5, 0.0]))
    out, routings = network(torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]]))
    assert out.tolist() == [[121.5, 242.0], [300.5, 400.0]]
    assert routings == []
    assert network.cost(5).forward == 2 * 5 * 2 * 2


def test_an_image_is_flattened():
    network = Linear(InputSpec("image", (1, 2, 2)), 3)
    initialise(network, 0)
    x = torch.randn(4, 1, 2, 2)
    torch.testing.assert_close(network(x)[0], x.flatten(1) @ network.numbers.weight.T)


def test_a_text_s_positions_know_their_own_byte_only():
    network = Linear(InputSpec("text", (4,), vocab_size=7), 7)
    initialise(network, 0)
    out, _ = network(torch.tensor([[1, 2, 1, 6]], dtype=torch.uint8))
    assert torch.equal(out[0], network.bytes[[1, 2, 1, 6]])
    assert network.cost(3).training == 0
