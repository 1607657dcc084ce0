"""The network's promises: closed gates change nothing, open ones do, and every gate learns."""

import pytest
import torch

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.sam3d.config import ModelConfig
from event_sam3d_ros.sam3d.network import Network


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network(ModelConfig()).eval()


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.rand(2, c, 64, 64, generator=generator) for c in (3, 3, 1))


def test_zero_gates_equal_the_plain_network_bit_for_bit(network, inputs):
    image, events, mask = inputs
    with torch.no_grad():
        plain, fused = network(image, None, mask), network(image, events, mask)
    assert torch.equal(plain.logits, fused.logits)
    assert torch.equal(plain.up, fused.up)
    assert torch.equal(plain.score, fused.score)


def test_each_gate_alone_changes_the_output(network, inputs):
    image, events, mask = inputs
    with torch.no_grad():
        plain = network(image, None, mask)
        for name, gate in network.condition.fusion.gates().items():
            gate.fill_(0.5)
            assert not torch.equal(network(image, events, mask).logits, plain.logits), name
            gate.zero_()


def test_every_gate_moves_with_the_first_optimiser_step(network, inputs):
    image, events, mask = inputs
    gates = network.condition.fusion.gates()
    assert gates
    optimizer = torch.optim.SGD(gates.values(), lr=1.0)
    network(image, events, mask).logits.square().mean().backward()
    optimizer.step()
    assert all(gate.item() != 0 for gate in gates.values())


def test_without_events_the_event_branch_does_not_run(network, inputs):
    def fail(*_):
        raise AssertionError("the event encoder ran")

    network.condition.event_encoder.register_forward_pre_hook(fail)
    network(inputs[0], None, inputs[2])


def test_events_alone_do_not_run_the_rgb_branch(network, inputs):
    def fail(*_):
        raise AssertionError("the RGB encoder ran")

    network.condition.rgb_encoder.register_forward_pre_hook(fail)
    network(None, inputs[1], inputs[2])


def test_results_do_not_depend_on_the_batch(network, inputs):
    image, events, mask = inputs
    with torch.no_grad():
        together = network(image, events, mask)
        alone = network(image[1:], events[1:], mask[1:])
    torch.testing.assert_close(together.logits[1:], alone.logits, atol=1e-4, rtol=1e-4)


def test_no_input_is_refused(network, inputs):
    with pytest.raises(InputError) as error:
        network(None, None, inputs[2])
    assert error.value.reason == "no_input"


def test_up_is_a_unit_vector(network, inputs):
    up = network(*inputs).up
    torch.testing.assert_close(up.norm(dim=-1), torch.ones(2))
