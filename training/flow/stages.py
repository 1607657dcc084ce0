"""The stages of the flow head, for the shared loop (`training.engine`): what is trained by which loss.

Stage 0 has three phases, each with its own file beside the last one's, so that an interrupted run goes on in its phase:
structure VAE, flow matching, shortcut. Stages 1 and 2 are those of the direct head, on this head's features and
velocities.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from event_sam3d_ros.sam3d.config import ModelConfig, SamplerConfig
from event_sam3d_ros.sam3d.embedder_fuser import IMAGES
from event_sam3d_ros.sam3d.flow import Latents, draw_noise, sample
from event_sam3d_ros.sam3d.geometry_flow import SHAPE, GeometryFlow
from event_sam3d_ros.sam3d.network import FlowNetwork
from event_sam3d_ros.sam3d.vit import Features
from training.engine import load_stage_input, train
from training.flow import structure
from training.flow.batches import FlowBatches, ShapeBatches, pose_latents, views
from training.flow.matching import flow_matching_loss, shortcut_loss, velocity_errors
from training.flow.structure import StructureVae
from training.settings import TrainingConfig

Loss = tuple[Tensor, dict[str, Tensor]]
Batch = dict[str, Tensor]

FINISHING_MODES = {"fused": 0.5, "sharp": 0.25, "blurry": 0.1, "events": 0.15}
EVENTS = ("event_image", "rgb_event_image")


def structure_path(out: Path) -> Path:
    """Where stage 0 with the model file ``out`` writes its structure VAE."""
    return out.with_name(f"{out.stem}.structure.safetensors")


def pretrain(options: Namespace, config: TrainingConfig, model: ModelConfig) -> None:
    """Stage 0: trains the network on sharp frames and writes ``options.out``."""
    vae_file, matched_file = (
        structure_path(options.out),
        options.out.with_name(f"{options.out.stem}.matched.safetensors"),
    )
    torch.manual_seed(config.pretrain.seed)

    def run(name, stage, network, trained, loss, out) -> None:
        source = partial(FlowBatches, estimated=False) if name != "structure" else ShapeBatches
        batches = source(options.data, model, stage.batch_size, stage.seed, stage.cases)
        train(name, network, trained, loss, batches, stage, out, options.device, tensorboard=options.tensorboard)

    vae = StructureVae(model)
    run("structure", config.structure, vae, [vae], lambda b, r: structure.loss(vae, b, r), vae_file)
    vae = structure.load(vae_file, model).to(options.device)

    network = new_network(model, vae)
    run("pretrain", config.pretrain, network, matching_parts(network), matching(network, vae), matched_file)

    network = trainable(matched_file, model)
    run("shortcut", config.shortcut, network, shortcut_parts(network), matching(network, vae, True), options.out)


def new_network(model: ModelConfig, vae: StructureVae) -> FlowNetwork:
    """A network that starts flow matching: random but for its decoder, which is the VAE's."""
    network = FlowNetwork(model)
    network.decoder.load_state_dict(vae.decoder.state_dict())
    network.condition.fuser.dropout = 0.0
    return network


def trainable(path: Path, model: ModelConfig) -> FlowNetwork:
    """The network of an earlier stage; pointmaps are dropped by the batches, whose targets know of it, alone."""
    network = load_stage_input(path, model)
    assert isinstance(network, FlowNetwork)
    network.condition.fuser.dropout = 0.0
    return network


def matching_parts(network: FlowNetwork) -> list[nn.Module]:
    """What flow matching trains: all but the event branch, the decoder and the embedding of step sizes, which joins
    silent, with zeros at its end, when steps become long (paper, appendix C.4)."""
    flow = network.flow
    return [network.condition.fuser, flow.t_embedder, flow.blocks, flow.latent_mapping]


def shortcut_parts(network: FlowNetwork) -> list[nn.Module]:
    """What the shortcut phase trains: the same and the embedding of step sizes."""
    return [network.condition.fuser, network.flow]


def matching(network: FlowNetwork, vae: StructureVae, shortcut: bool = False):
    """The loss of stage 0 on sharp frames: flow matching, or with the shortcut objective."""
    objective = shortcut_loss if shortcut else flow_matching_loss

    def loss(batch: Batch, rng: np.random.Generator) -> Loss:
        tokens = network.condition(views(batch, "sharp"))
        return objective(network.flow, tokens, truth(vae, batch), generator(rng))

    return loss


def truth(vae: StructureVae, batch: Mapping[str, Tensor]) -> Latents:
    """The latents of a batch's objects: what the flow leads to."""
    return {SHAPE: vae.shape_tokens(batch["occupancy"]), **pose_latents(batch)}


def generator(rng: np.random.Generator) -> torch.Generator:
    """torch's random numbers from a step's."""
    return torch.Generator().manual_seed(int(rng.integers(2**63)))


def image_features(network: FlowNetwork, batch: Batch) -> tuple[Features, Features]:
    """Stage 1: features of crops and full frames, the event encoder's of events and the frozen image encoder's of the
    sharp frame."""
    condition = network.condition
    stages = condition.fusion.stage_names
    sharp, blurry = views(batch, "sharp"), views(batch, "blurry")
    encoder = condition.fuser.image_encoder
    with torch.no_grad():
        teacher = encoder.encode(torch.cat([encoder.prepare(sharp[name]) for name in IMAGES]), keep=stages)
    student = condition.event_encoder
    seen = student.encode(torch.cat([student.prepare(blurry[name]) for name in EVENTS]), keep=stages)
    return seen, teacher


class Step(NamedTuple):
    """A state on a sampler's way, the time and step size that the network was told, and the conditional velocities
    that it gave."""

    state: Latents
    time: Tensor
    step_size: Tensor
    velocity: Latents


@torch.no_grad()
def path(flow: GeometryFlow, tokens: Tensor, noise: Latents, sampler: SamplerConfig) -> list[Step]:
    """All steps in which ``flow`` samples from ``noise``, conditioned on ``tokens`` (B, M, C)."""
    condition, steps = flow.condition(tokens), []

    def velocity(state: Latents, time: Tensor, step_size: Tensor, guided: bool) -> tuple[Latents, Latents | None]:
        conditional, unconditional = flow(state, time, step_size, condition, guided)
        steps.append(Step(state, time, step_size, conditional))
        return conditional, unconditional

    sample(velocity, noise, sampler)
    return steps


def fusion_loss(network: FlowNetwork, batch: Batch, rng: np.random.Generator) -> Loss:
    """Stage 2: the network on the blurry frame and events has to give the velocities that it gives on the sharp frame.

    They are compared at one random step of the way that the sharp frame leads from random noise, in the model's own
    sampler. That needs neither the truth nor its latents, works for long steps as for short ones, and is zero exactly
    where the blurry frame with its events leads the sharp frame's way; against latents, each sample of the teacher
    would hide that under the noise that no condition can foretell.
    """
    flow, random = network.flow, generator(rng)
    with torch.no_grad():
        tokens = network.condition(views(batch, "sharp"))
        noise = draw_noise(flow.latent_shapes, [random] * len(tokens), tokens.device)
        steps = path(flow, tokens, noise, network.config.flow.sampler)
    step = steps[rng.integers(len(steps))]
    condition = flow.condition(network.condition(views(batch, "blurry")))
    predicted, _ = flow(step.state, step.time, step.step_size, condition)
    return velocity_errors(predicted, step.velocity)


def finishing(network: FlowNetwork, vae: StructureVae):
    """The loss of the finishing phase: the truth, in all input modes."""

    def loss(batch: Batch, rng: np.random.Generator) -> Loss:
        mode = str(rng.choice(list(FINISHING_MODES), p=list(FINISHING_MODES.values())))
        tokens = network.condition(mode_views(batch, mode))
        total, parts = shortcut_loss(network.flow, tokens, truth(vae, batch), generator(rng))
        return total, {f"{mode}_{name}": value for name, value in parts.items() if name == SHAPE}

    return loss


def mode_views(batch: Mapping[str, Tensor], mode: str) -> dict[str, Tensor]:
    """What an input mode shows: "sharp", "blurry", "events" or "fused"."""
    if mode == "sharp":
        return views(batch, "sharp")
    return views(batch, "blurry", without={"blurry": EVENTS, "events": IMAGES, "fused": ()}[mode])
