"""First phase of stage 0: the structure VAE, whose latent is what the flow learns to give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from event_sam3d_ros.errors import CheckpointError
from event_sam3d_ros.sam3d.checkpoint import read_safetensors, save_checkpoint, tensor_problems
from event_sam3d_ros.sam3d.config import ModelConfig
from event_sam3d_ros.sam3d.structure_vae import StructureDecoder, StructureEncoder, grid_to_tokens
from training.distributed import whole_batch
from training.losses import occupancy_loss

KL_WEIGHT = 1e-3
"""Of the KL term against the reconstruction, both means over elements. TRELLIS trains the released decoder's
architecture with the same weight and a dice loss; the cross-entropy beside it sharpens what dice leaves undecided."""


class StructureVae(nn.Module):
    """Encoder and decoder of occupancy grids; the decoder's names and sizes are those of the model's ``decoder``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        structure, channels = config.flow.structure, config.flow.transformer.channels
        sizes = (channels, structure.blocks, structure.middle_blocks)
        self.encoder = StructureEncoder(structure.channels[::-1], *sizes)
        self.decoder = StructureDecoder(structure.channels, *sizes)

    @torch.no_grad()
    def shape_tokens(self, occupancy: Tensor) -> Tensor:
        """Occupancy (B, 1, R, R, R) of 0 and 1 -> the flow's shape latent (B, tokens, channels), the posterior's
        mean."""
        return grid_to_tokens(self.encoder(occupancy)[0])


def loss(vae: StructureVae, batch: dict[str, Tensor], rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Reconstruction of a sample of the posterior, and its KL divergence from the standard normal (Kingma and Welling
    2013, appendix B)."""
    occupancy = batch["occupancy"]
    mean, log_variance = vae.encoder(occupancy)
    count, own = whole_batch(len(mean))
    noise = torch.from_numpy(rng.standard_normal((count, *mean.shape[1:]), dtype=np.float32)[own]).to(mean.device)
    logits = vae.decoder(mean + noise * (0.5 * log_variance).exp())[:, 0]
    reconstruction = occupancy_loss(logits, occupancy[:, 0])
    divergence = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).mean()
    parts = {"structure": reconstruction, "kl": divergence}
    return reconstruction + KL_WEIGHT * divergence, parts


def save(path: Path, vae: StructureVae) -> None:
    """Writes the VAE as `training.engine.train` does."""
    save_checkpoint(path, vae, {"tag": "structure"}, torch.float32)


def load(path: Path, config: ModelConfig) -> StructureVae:
    """The VAE that this phase wrote, on the CPU; CheckpointError if the file is another or does not fit ``config``."""
    if not path.is_file():
        raise CheckpointError(
            f"no structure VAE at {path}: give the one that training.pretrain wrote beside its model file",
            reason="no_checkpoint",
        )
    vae = StructureVae(config)
    state = read_safetensors(path)
    problems = tensor_problems(state, vae.state_dict())
    if problems:
        raise CheckpointError(
            f"{path} is not this model's structure VAE: {'; '.join(problems)}", reason="wrong_checkpoint"
        )
    vae.load_state_dict(state)
    return vae.eval()
