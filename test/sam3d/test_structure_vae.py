"""The structure VAE beyond the reference values: layouts, types, training."""

import pytest
import torch

from event_sam3d_ros.sam3d.structure_vae import (
    ChannelLayerNorm,
    StructureDecoder,
    StructureEncoder,
    Upsample,
    grid_to_tokens,
    tokens_to_grid,
)


def test_tokens_run_with_z_fastest():
    tokens = torch.arange(2 * 27 * 4).reshape(2, 27, 4)
    grid = tokens_to_grid(tokens)
    assert grid.shape == (2, 4, 3, 3, 3)
    assert torch.equal(grid[1, :, 2, 0, 1], tokens[1, 2 * 9 + 1])
    assert torch.equal(grid_to_tokens(grid), tokens)


def test_children_lie_inside_their_parent():
    up = Upsample(1, 1)
    with torch.no_grad():
        up.conv.weight.zero_()
        up.conv.bias.copy_(torch.arange(8.0))
        children = up(torch.zeros(1, 1, 2, 2, 2))
    assert children.shape == (1, 1, 4, 4, 4)
    for dx, dy, dz in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 1, 1)):
        assert (children[0, 0, dx::2, dy::2, dz::2] == 4 * dx + 2 * dy + dz).all()


def test_the_norm_is_over_channels_and_in_float32():
    x = 300 * torch.randn(2, 16, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    normed = ChannelLayerNorm(16)(x)
    torch.testing.assert_close(normed.mean(1), torch.zeros(2, 3, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(normed.var(1, unbiased=False), torch.ones(2, 3, 3, 3), atol=1e-4, rtol=0)
    # squares of these values are beyond float16
    half = ChannelLayerNorm(16).half()(x.half())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), normed, atol=1e-2, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_object_does_not_depend_on_its_batch(dtype):
    torch.manual_seed(0)
    decoder = StructureDecoder((16, 8), blocks=1, middle_blocks=1).to(dtype).eval()
    latents = torch.randn(3, 8, 4, 4, 4, dtype=dtype)
    with torch.inference_mode():
        together = decoder(latents)
        alone = torch.cat([decoder(latents[i : i + 1]) for i in range(3)])
    assert together.shape == (3, 1, 8, 8, 8) and together.dtype == dtype
    torch.testing.assert_close(together, alone, atol=1e-5 if dtype == torch.float32 else 0.05, rtol=0)


def test_it_learns_to_code_a_shape():
    """Encoder and decoder fit each other: 100 steps on two shapes bring all but a few of the voxels to their side."""
    torch.manual_seed(0)
    encoder = StructureEncoder((8, 16), latent_channels=4, blocks=1, middle_blocks=1)
    decoder = StructureDecoder((16, 8), latent_channels=4, blocks=1, middle_blocks=1)
    occupancy = torch.zeros(2, 1, 8, 8, 8)
    occupancy[0, 0, 2:6, 1:7, 3:5] = 1
    occupancy[1, 0, :4, 4:, 2:] = 1
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-2)
    for _ in range(100):
        mean, log_variance = encoder(occupancy)
        assert mean.shape == log_variance.shape == (2, 4, 4, 4, 4)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(decoder(mean), occupancy)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        right = (decoder(encoder(occupancy)[0]) > 0) == (occupancy > 0)
    assert right.float().mean() > 0.99
