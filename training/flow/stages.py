"""The stages of the flow head, for the shared loop (`training.engine`): what is trained by which loss.

Stage 0 has three phases, each with its own file beside the last one's, so that an interrupted run goes on in its phase:
structure VAE, flow matching, shortcut. Stages 1 and 2 are those of the direct head, on this head's features and
velocities.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from event_sam3d_ros.errors import ConfigurationError
from event_sam3d_ros.sam3d.config import ModelConfig, SamplerConfig
from event_sam3d_ros.sam3d.embedder_fuser import IMAGES
from event_sam3d_ros.sam3d.flow import Latents, sample
from event_sam3d_ros.sam3d.geometry_flow import SHAPE, GeometryFlow
from event_sam3d_ros.sam3d.network import FlowNetwork
from event_sam3d_ros.sam3d.vit import Features
from training.distributed import whole_batch
from training.engine import LossFunction, load_stage_input, train
from training.flow import structure
from training.flow.batches import pose_latents, views
from training.flow.matching import flow_matching_loss, own_noise, shortcut_loss, velocity_errors
from training.flow.structure import StructureVae
from training.settings import FINISHING_MODES, FuseConfig, StageConfig, TrainingConfig
from training.sources import open_batches

Loss = tuple[Tensor, dict[str, Tensor]]
Batch = dict[str, Tensor]
Objective = Callable[[GeometryFlow, Tensor, Latents, torch.Generator], Loss]

EVENTS = ("event_image", "rgb_event_image")


def structure_path(model_file: Path) -> Path:
    """Where stage 0 keeps the structure VAE of the model that it writes."""
    return model_file.with_name(f"{model_file.stem}.structure.safetensors")


def pretrain(options: Namespace, config: TrainingConfig, model: ModelConfig) -> None:
    """Stage 0: trains the network on sharp frames and writes ``options.out``. With ``options.weights`` it goes on from
    these, with the shortcut objective, which holds flow matching."""
    if config.pretrain.blurry:
        raise ConfigurationError("pretrain.blurry is of the direct head: the flow's stage 0 sees sharp frames alone")
    vae_file = structure_path(options.out)
    torch.manual_seed(config.pretrain.seed)

    def run(
        name: str, stage: StageConfig, network: Module, trained: list[Module], loss: LossFunction, out: Path
    ) -> None:
        shows = "shapes" if name == "structure" else "sharp"
        with open_batches(options.data, config.data, model, stage, shows) as batches:
            train(
                name,
                network,
                trained,
                loss,
                batches,
                stage,
                out,
                options.device,
                held_out=batches.held_out,
                tensorboard=options.tensorboard and options.tensorboard / name,
            )

    if options.weights:
        vae, network = structure.load(structure_path(options.weights), model), trainable(options.weights, model)
        structure.save(vae_file, vae)
        vae.to(options.device)
    else:
        vae = StructureVae(model)
        run("structure", config.structure, vae, [vae], lambda b, r: structure.loss(vae, b, r), vae_file)
        vae = structure.load(vae_file, model).to(options.device)
        network = new_network(model, vae)
        matched = options.out.with_name(f"{options.out.stem}.matched.safetensors")
        loss = matching(network, vae, flow_matching_loss, config.pretrain.drop_image)
        run("pretrain", config.pretrain, network, matching_parts(network), loss, matched)
        network = trainable(matched, model)
    loss = matching(network, vae, shortcut_loss, config.pretrain.drop_image)
    run("shortcut", config.shortcut, network, shortcut_parts(network), loss, options.out)


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


def matching_parts(network: FlowNetwork) -> list[Module]:
    """What flow matching trains: all but the event branch, the decoder and the embedding of step sizes, which joins
    silent, with zeros at its end, when steps become long (paper, appendix C.4)."""
    flow = network.flow
    return [network.condition.fuser, flow.t_embedder, flow.blocks, flow.latent_mapping]


def shortcut_parts(network: FlowNetwork) -> list[Module]:
    """What the shortcut phase trains: the same and the embedding of step sizes."""
    return [network.condition.fuser, network.flow]


def matching(network: FlowNetwork, vae: StructureVae, objective: Objective, drop_image: float = 0.0) -> LossFunction:
    """The loss of stage 0 on sharp frames, of which the share ``drop_image`` is black."""

    def loss(batch: Batch, rng: np.random.Generator) -> Loss:
        seen = blackened(views(batch, "sharp"), IMAGES, drop_image, rng)
        return objective(network.flow, network.condition(seen), truth(vae, batch), generator(rng))

    return loss


def truth(vae: StructureVae, batch: Mapping[str, Tensor]) -> Latents:
    """The latents of a batch's objects: what the flow leads to."""
    return {SHAPE: vae.shape_tokens(batch["occupancy"]), **pose_latents(batch)}


def generator(rng: np.random.Generator) -> torch.Generator:
    """torch's random numbers from a step's."""
    return torch.Generator().manual_seed(int(rng.integers(2**63)))


def blackened(seen: Batch, names: Collection[str], share: float, rng: np.random.Generator) -> Batch:
    """Views with this share of their objects, by chance, black in the views ``names``, crop and full frame together."""
    if not share:
        return seen
    count, own = whole_batch(len(seen["mask"]))
    kept = torch.from_numpy(rng.random(count)[own] >= share)[:, None, None, None]
    return {name: view * kept.to(view) if name in names else view for name, view in seen.items()}


def image_features(network: FlowNetwork, batch: Batch, stages: Collection[str]) -> tuple[Features, Features]:
    """Stage 1: features of crops and full frames, the event encoder's of events and the frozen image encoder's of the
    sharp frame."""
    teacher, student = network.condition.fuser.image_encoder, network.condition.event_encoder
    assert student is not None  # `training.distill.encoders` asked
    sharp = torch.cat([teacher.prepare(batch[f"sharp.{name}"]) for name in IMAGES])
    events = torch.cat([student.prepare(batch[f"blurry.{name}"]) for name in EVENTS])
    with torch.no_grad():
        target = teacher.encode(sharp, keep=stages)
    return student.encode(events, keep=stages), target


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


def fusion_loss(network: FlowNetwork, batch: Batch, rng: np.random.Generator, stage: FuseConfig) -> Loss:
    """Stage 2: the network on the blurry frame and events has to give the velocities that it gives on the sharp frame.

    They are compared at one random step of the way that the sharp frame leads from random noise, in the model's own
    sampler. That needs neither the truth nor its latents, works for long steps as for short ones, and is zero exactly
    where the blurry frame with its events leads the sharp frame's way; against latents, each sample of the teacher
    would hide that under the noise that no condition can foretell.
    """
    flow = network.flow
    with torch.no_grad():
        tokens = network.condition(views(batch, "sharp"))
        noise = own_noise(flow, len(tokens), generator(rng), tokens.device)
        steps = path(flow, tokens, noise, network.config.flow.sampler)
    step = steps[rng.integers(len(steps))]
    seen = blackened(views(batch, "blurry"), IMAGES, stage.drop_image, rng)
    seen = blackened(seen, EVENTS, stage.drop_events, rng)
    predicted, _ = flow(step.state, step.time, step.step_size, flow.condition(network.condition(seen)))
    return velocity_errors(predicted, step.velocity)


def finishing(network: FlowNetwork, vae: StructureVae) -> LossFunction:
    """The loss of the finishing phase: the truth, in all input modes."""

    def loss(batch: Batch, rng: np.random.Generator) -> Loss:
        mode = str(rng.choice(list(FINISHING_MODES), p=list(FINISHING_MODES.values())))
        tokens = network.condition(mode_views(batch, mode))
        total, parts = shortcut_loss(network.flow, tokens, truth(vae, batch), generator(rng))
        return total, {f"{mode}_{SHAPE}": parts[SHAPE]}

    return loss


def mode_views(batch: Batch, mode: str) -> Batch:
    """What an input mode shows: "sharp", "blurry", "events" or "fused"."""
    if mode == "sharp":
        return views(batch, "sharp")
    return views(batch, "blurry", without={"blurry": EVENTS, "events": IMAGES, "fused": ()}[mode])


def fuse(options: Namespace, config: TrainingConfig, model: ModelConfig) -> None:
    """Stage 2, or with ``options.unfreeze`` the finishing phase, which needs the structure VAE of stage 0."""
    network = trainable(options.weights, model)
    if network.condition.fusion is None:
        raise ConfigurationError(f"the model {model.name} has no event branch: give its fusion a place")
    if options.unfreeze:
        vae = structure.load(options.structure or structure_path(options.weights), model).to(options.device)
        trained: list[Module] = [network.condition, network.flow]
        name, stage, loss = "unfreeze", config.unfreeze, finishing(network, vae)
    else:
        trained = [network.condition.fusion]
        name, stage = "fuse", config.fuse
        loss = lambda b, r: fusion_loss(network, b, r, config.fuse)  # noqa: E731
    with open_batches(options.data, config.data, model, stage, "blurry") as batches:
        train(
            name,
            network,
            trained,
            loss,
            batches,
            stage,
            options.out,
            options.device,
            held_out=batches.held_out,
            tensorboard=options.tensorboard,
        )
