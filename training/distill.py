"""Stage 1: the event encoder learns the RGB encoder's sharp features from event images.

``python -m training.distill --data DIR --weights pretrained.safetensors --out distilled.safetensors``

Teacher: the frozen RGB encoder on the sharp frame with the true mask. Student: the event encoder, initialised from the
teacher, on the Tencode image and the degraded mask of the same crop. Loss: L1 between features of stages and final
tokens. ``--continue`` starts from the event encoder in the weights instead.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from event_sam3d_ros.errors import ConfigurationError
from event_sam3d_ros.sam3d.layers import Attention
from event_sam3d_ros.sam3d.network import FlowNetwork, Network
from event_sam3d_ros.sam3d.vit import Features, VisionTransformer
from training.engine import load_stage_input, train
from training.losses import feature_loss
from training.pictures import sheet
from training.settings import DistillConfig, arguments, command, prepare
from training.sources import open_batches


def loss(
    network: Network | FlowNetwork, batch: dict[str, Tensor], rng: np.random.Generator, stage: DistillConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    stages = compared_stages(network, stage)
    teacher_encoder, _ = encoders(network)
    weighted = [*stages, last_block(teacher_encoder)] if stage.attention else []
    with class_attention(teacher_encoder, weighted) as attention:
        student, teacher = image_features(network, batch, stages)
    if attention:
        attention["tokens"] = attention[last_block(teacher_encoder)]
    distance = feature_loss(student, teacher, stages, attention)
    return distance, {"features": distance}


def image_features(
    network: Network | FlowNetwork, batch: dict[str, Tensor], stages: Collection[str]
) -> tuple[Features, Features]:
    """The event encoder's features of the events and the frozen RGB encoder's of the sharp frame."""
    if isinstance(network, FlowNetwork):
        from training.flow.stages import image_features as flow_features

        return flow_features(network, batch, stages)
    teacher_encoder, student_encoder = encoders(network)
    with torch.no_grad():
        teacher = teacher_encoder(torch.cat([batch["degraded_sharp"], batch["degraded_true_mask"]], dim=1))
    return student_encoder(torch.cat([batch["degraded_events"], batch["degraded_mask"]], dim=1)), teacher


def encoders(network: Network | FlowNetwork) -> tuple[VisionTransformer, VisionTransformer]:
    """The teacher, which sees images, and the student, which sees events."""
    condition = network.condition
    if isinstance(network, Network):
        return condition.rgb_encoder, condition.event_encoder
    if condition.event_encoder is None:
        raise ConfigurationError(f"the model {network.config.name} has no event branch: give its fusion a place")
    return condition.fuser.image_encoder, condition.event_encoder


def compared_stages(network: Network | FlowNetwork, stage: DistillConfig) -> tuple[str, ...]:
    """The stages whose features are compared; ConfigurationError if the encoder lacks one."""
    chosen = [f"stem.{i}" for i in stage.stems] + [f"block.{i}" for i in stage.blocks]
    encoder = network.config.encoder
    known = {f"stem.{i}" for i in range(len(encoder.stem))} | {f"block.{i}" for i in range(encoder.depth)}
    unknown = sorted(set(chosen) - known)
    if unknown:
        raise ConfigurationError(f"distill names {', '.join(unknown)}, which the encoder lacks")
    return tuple(chosen) or network.condition.fusion.stage_names


def last_block(encoder: VisionTransformer) -> str:
    return f"block.{len(encoder.blocks) - 1}"


@contextmanager
def class_attention(encoder: VisionTransformer, stages: Collection[str]) -> Iterator[dict[str, Tensor]]:
    """Fills in, when the encoder runs, the attention that the class token pays each token in these blocks: (B, N, 1),
    mean over heads, and with a mean of 1 over tokens, so that a weighted loss has the size of a plain one. Stem stages
    have no attention and are left out."""
    found: dict[str, Tensor] = {}
    blocks = {name: encoder.blocks[int(name.removeprefix("block."))] for name in stages if name.startswith("block.")}

    def watch(name: str):
        def hook(layer: Attention, inputs: tuple[Tensor, ...]) -> None:
            found[name] = _paid_by_first(layer, inputs[0].detach())

        return hook

    hooks = [block.attn.register_forward_pre_hook(watch(name)) for name, block in blocks.items()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def _paid_by_first(layer: Attention, x: Tensor) -> Tensor:
    b, n, c = x.shape
    q, k, _ = layer.qkv(x).reshape(b, n, 3, layer.heads, c // layer.heads).permute(2, 0, 3, 1, 4)
    scores = (q[:, :, :1] @ k.transpose(-1, -2)).float() / (c // layer.heads) ** 0.5
    return n * scores.softmax(-1).mean(1).transpose(1, 2)


def trained_parts(network: Network | FlowNetwork, stage: DistillConfig) -> list[nn.Module]:
    """What the stage trains of the event encoder, see `DistillConfig`. event_sam3d also trains the projection of its
    event tokens; here they go through the frozen projection of images, so the norm before it is trained instead."""
    _, student = encoders(network)
    if stage.trained == "all":
        return [student]
    blocks = [int(name.split(".")[1]) for name in compared_stages(network, stage) if name.startswith("block")]
    return [student.stem, student.patch_embed, *(student.blocks[i].mlp for i in blocks), student.norm]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="model file of stage 0")
    parser.add_argument(
        "--continue", action="store_true", dest="goes_on", help="keep the event encoder that the weights have"
    )
    options = parser.parse_args()
    config, model = prepare(options)
    stage = config.distill
    network = load_stage_input(options.weights, model)
    teacher, student = encoders(network)
    if options.goes_on:
        network.origin = f"{network.origin}, with their event encoder"
    else:
        student.load_state_dict(teacher.state_dict())

    def draw(batch: dict[str, Tensor]) -> Tensor:
        return sheet(batch, network(None, batch["degraded_events"], batch["degraded_mask"]))

    with open_batches(options.data, config.data, model, stage) as batches:
        train(
            "distill",
            network,
            trained_parts(network, stage),
            lambda b, r: loss(network, b, r, stage),
            batches,
            stage,
            options.out,
            options.device,
            held_out=batches.held_out,
            draw=draw if isinstance(network, Network) else None,
            tensorboard=options.tensorboard,
        )


if __name__ == "__main__":
    command(main)
