"""The condition stage: what the cameras saw of an object -> features for the geometry head.

`ConditionStage` is that of the direct head: the RGB encoder sees the crop and its mask; the event encoder, the same
network trained to give the RGB encoder's sharp features from a Tencode image, sees the events and the mask. What is
given decides the mode: RGB alone runs the plain network and the event branch costs nothing; events alone are decoded
from the event encoder's features; both are fused.

`TokenConditionStage` is that of the flow head: SAM 3D's embedders, with the same event branch beside them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.sam3d.config import EncoderConfig, FusionConfig, ModelConfig, PointmapConfig
from event_sam3d_ros.sam3d.embedder_fuser import IMAGES, EmbedderFuser, batch_size, split
from event_sam3d_ros.sam3d.event_fusion import EventFusion
from event_sam3d_ros.sam3d.vit import Features, VisionTransformer


class ConditionStage(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.rgb_encoder = VisionTransformer(config.encoder)
        self.event_encoder = VisionTransformer(config.encoder)
        self.fusion = EventFusion(config.encoder, config.fusion)

    def forward(self, image: Tensor | None, event_image: Tensor | None, mask: Tensor) -> Features:
        """``image``, ``event_image``: (B, 3, S, S) float in [0, 1] or None; ``mask``: (B, 1, S, S) float in [0, 1].

        Raises InputError if both are None.
        """
        if event_image is None:
            if image is None:
                raise InputError("neither an RGB nor an event image is given; give at least one", reason="no_input")
            return self.rgb_encoder(torch.cat([image, mask], dim=1))
        events: Features = self.event_encoder(torch.cat([event_image, mask], dim=1))
        if image is None:
            return events
        fused: Features = self.rgb_encoder(
            torch.cat([image, mask], dim=1), inject=lambda stage, x: self.fusion(stage, x, events.stages[stage])
        )
        return replace(fused, tokens=self.fusion.fuse_tokens(fused.tokens, events.tokens))


EVENT_IMAGES = {"image": "event_image", "rgb_image": "rgb_event_image"}
"""Which event image belongs to which image: cut out, padded and resized alike."""


class TokenConditionStage(nn.Module):
    """Images, masks, pointmaps and event images of B objects -> condition tokens (B, N, width) of the flow head.

    ``fuser`` has the released names and can be loaded from the released weights alone; ``fusion`` None leaves the event
    branch out. Events enter the image encoder at the blocks that ``fusion`` names, and the projected tokens by the
    fusion that it names: the crop's events into the crop's tokens, the frame's into the frame's (event_sam3d fuses
    both into the frame's). Event tokens go through the projection of images, because the event encoder is trained to
    give the image encoder's features. Masks and pointmaps stay as they are.
    """

    def __init__(self, encoder: EncoderConfig, pointmap: PointmapConfig | None, fusion: FusionConfig | None) -> None:
        super().__init__()
        self.fuser = EmbedderFuser(encoder, pointmap)
        self.event_encoder = VisionTransformer(encoder) if fusion else None
        self.fusion = EventFusion(encoder, fusion, self.fuser.width) if fusion else None

    def forward(
        self, inputs: Mapping[str, Tensor], dropped: Collection[str] = (), with_points: Tensor | None = None
    ) -> Tensor:
        """``inputs``: those of `EmbedderFuser.forward`, and for fusion ``event_image`` and ``rgb_event_image``, Tencode
        (B, 3, H, W) in [0, 1] with as many rows as the images that they belong to.

        Without event images the event branch does not run; without images (events alone) the event encoder's tokens
        take their places. ``dropped``, ``with_points``: see there. Raises InputError for wrong inputs.
        """
        events = {image: inputs[name] for image, name in EVENT_IMAGES.items() if name in inputs}
        plain = {name: tensor for name, tensor in inputs.items() if name not in EVENT_IMAGES.values()}
        if not events:
            return self.fuser(plain, dropped, with_points)
        alone = not any(name in plain for name in IMAGES)
        kept = self.fuser.check({**events, **plain} if alone else plain, dropped)
        images = {name: kept[name] for name in IMAGES if name in kept}
        if not images:  # all dropped, and their events with them
            return self.fuser(plain, dropped, with_points)
        seen = self._see(events, images)
        by_image = dict(zip(images, split(seen, [len(x) for x in images.values()]), strict=True))
        if alone:
            embedded = self.fuser.embed({name: x for name, x in kept.items() if name not in images})
            return self.fuser.join(self.fuser.project({**embedded, **by_image}), batch_size(kept), with_points)
        tokens = self.fuser.project(self.fuser.embed(kept, lambda stage, x: self._fuse(stage, x, seen)))
        if self.fusion is not None and self.fusion.tokens is not None:
            for name, event_tokens in self.fuser.project(dict(by_image)).items():
                tokens[name] = self.fusion.fuse_tokens(tokens[name], event_tokens)
        return self.fuser.join(tokens, batch_size(kept), with_points)

    def _see(self, events: Mapping[str, Tensor], images: Mapping[str, Tensor]) -> Features:
        """The event images that belong to ``images`` through the event encoder, in one batch."""
        if self.event_encoder is None or self.fusion is None:
            raise InputError(
                "event images are given, but this model has no event branch: give RGB alone (input_mode rgb), or "
                "import or train it with one",
                reason="no_event_branch",
            )
        for name, image in images.items():
            if name not in events:
                raise InputError(f"no {EVENT_IMAGES[name]} beside the other event image", reason="missing_input")
            if len(events[name]) != len(image):
                raise InputError(
                    f"{EVENT_IMAGES[name]} has {len(events[name])} rows, {name} has {len(image)}; give as many",
                    reason="batch_mismatch",
                )
        prepared = torch.cat([self.event_encoder.prepare(events[name]) for name in images])
        return self.event_encoder.encode(prepared, keep=self.fusion.stage_names)

    def _fuse(self, stage: str, x: Tensor, seen: Features) -> Tensor:
        return self.fusion(stage, x, seen.stages[stage]) if self.fusion and stage in seen.stages else x
