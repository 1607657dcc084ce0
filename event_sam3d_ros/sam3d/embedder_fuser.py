"""The embedder fuser: everything that is known about an object -> one sequence of condition tokens.

Images and masks go through two encoders, pointmaps through the pointmap embedder; each embedder's tokens are projected
to one width, marked as seen in the crop or in the full frame, and joined in the order of `INPUTS`. Structure, names and
order are those of the released models (facebookresearch/sam-3d-objects, embedder/embedder_fuser.py).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.sam3d.config import EncoderConfig, PointmapConfig
from event_sam3d_ros.sam3d.layers import SwiGlu
from event_sam3d_ros.sam3d.pointmap_embedder import PointmapEmbedder
from event_sam3d_ros.sam3d.vit import Features, Inject, VisionTransformer

CROPPED, FULL = 0, 1  # rows of idx_emb; the released table has a third one that nothing reads

# input -> (index of its embedder, its position group), in the order of the tokens
INPUTS = {
    "image": (0, CROPPED),
    "rgb_image": (0, FULL),
    "mask": (1, CROPPED),
    "rgb_image_mask": (1, FULL),
    "pointmap": (2, CROPPED),
    "rgb_pointmap": (2, FULL),
}
POINTMAPS = ("pointmap", "rgb_pointmap")
IMAGES = ("image", "rgb_image")

Embedded = dict[str, Features | Tensor]
"""By input: `Features` of an image or a mask, tokens (B, N, C) of a pointmap."""


class EmbedderFuser(nn.Module):
    """Condition tokens (B, N, width) of B objects; the width is that of the widest embedder.

    ``encoder``: both image encoders; ``pointmap``: the pointmap embedder, None for a stage without one (structured
    latents); ``prenorm``: tokens from before the encoders' final norm, registers included, as the structured latents
    take them, else the normed class and patch tokens; ``dropout``: probability with which training drops an object's
    pointmaps.

    State dicts whose image and mask encoders are equal in every tensor are recognised on load: the two then are one
    module, held once, and images and masks go through it in one batch. Training such a network trains one encoder.
    """

    def __init__(
        self, encoder: EncoderConfig, pointmap: PointmapConfig | None, prenorm: bool = False, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.encoder, self.prenorm, self.dropout = encoder, prenorm, dropout
        embedders: list[nn.Module] = [nn.ModuleDict({"backbone": VisionTransformer(encoder)}) for _ in range(2)]
        widths = [encoder.width, encoder.width]
        if pointmap is not None:
            embedders.append(PointmapEmbedder(pointmap))
            widths.append(pointmap.width)
        self.width = max(widths)
        self.names = tuple(name for name, (index, _) in INPUTS.items() if index < len(embedders))
        self.module_list = nn.ModuleList(embedders)
        self.projection_nets = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), SwiGlu(width, 4 * self.width, self.width)) for width in widths
        )
        self.idx_emb = nn.Parameter(torch.empty(3, self.width))
        nn.init.normal_(self.idx_emb, std=1 / math.sqrt(self.width))

    def forward(
        self, inputs: Mapping[str, Tensor], dropped: Collection[str] = (), with_points: Tensor | None = None
    ) -> Tensor:
        """``inputs``: by the names of `INPUTS`, each (B, C, H, W) of any size, or (1, C, H, W) where all objects share
        it (the full frame), which is then embedded once. Images (3 channels) and masks (1) are in [0, 1], pointmaps
        normalised with NaN where unknown.

        ``dropped``: inputs to leave out: their tokens become zeros, as training shows them. Both pointmaps are
        dropped if neither is given. ``with_points``: (B,) bool, the objects whose pointmaps count; those of others are
        dropped; None: all do. Raises InputError for a missing or unknown input, or batches that differ.
        """
        kept = self.check(inputs, dropped)
        return self.join(self.project(self.embed(kept)), batch_size(kept), with_points)

    def check(self, inputs: Mapping[str, Tensor], dropped: Collection[str]) -> dict[str, Tensor]:
        """The inputs to embed, in the order of the tokens; raises InputError as `forward` says."""
        unknown = sorted((set(inputs) | set(dropped)) - set(INPUTS))
        if unknown:
            raise InputError(f"unknown input {', '.join(unknown)}; known are {', '.join(INPUTS)}", reason="bad_input")
        left_out = set(dropped) | (set() if any(name in inputs for name in POINTMAPS) else set(POINTMAPS))
        names = [name for name in self.names if name not in left_out]
        missing = [name for name in names if name not in inputs]
        if missing or not names:
            raise InputError(
                f"no {', '.join(missing) or 'input at all'}; give it, or name single inputs as dropped",
                reason="missing_input",
            )
        kept = {name: inputs[name] for name in names}
        batch = batch_size(kept)
        wrong = [f"{name} has {len(tensor)}" for name, tensor in kept.items() if len(tensor) not in (1, batch)]
        if wrong:
            raise InputError(f"inputs of {batch} objects, but {', '.join(wrong)}", reason="batch_mismatch")
        return kept

    @property
    def tokens(self) -> int:
        """Tokens of an object's sequence, whatever is dropped."""
        return sum(self._count(name) for name in self.names)

    @property
    def pointmap_memory_per_object(self) -> int:
        """Bytes that embedding an object's pointmaps takes beside the weights, from above."""
        embedders = [embedder for embedder in self.module_list if isinstance(embedder, PointmapEmbedder)]
        return len(POINTMAPS) * sum(embedder.memory_per_map for embedder in embedders)

    @property
    def shares_encoder(self) -> bool:
        """Whether images and masks go through one and the same encoder."""
        return self.image_encoder is self._encoder(1)

    def share_encoder(self) -> None:
        """Has masks go through the image encoder from now on; their own is dropped."""
        self.module_list[1].add_module("backbone", self.image_encoder)

    @property
    def image_encoder(self) -> VisionTransformer:
        return self._encoder(0)

    def embed(self, inputs: Mapping[str, Tensor], inject: Inject | None = None) -> Embedded:
        """Checked ``inputs`` -> what each embedder makes of them; every embedder runs once, over all its inputs.

        ``inject`` sees the stages of images alone, all crops and then all full frames.
        """
        embedded: Embedded = {}
        images = [name for name in inputs if INPUTS[name][0] == 0]
        masks = [name for name in inputs if INPUTS[name][0] == 1]
        for encoder, names in ((0, images + masks),) if self.shares_encoder else ((0, images), (1, masks)):
            if names:
                embedded |= self._encode(self._encoder(encoder), inputs, names, images, inject)
        maps = [name for name in inputs if INPUTS[name][0] == 2]
        if maps:
            embedder = self.module_list[2]
            assert isinstance(embedder, PointmapEmbedder)
            # one size for all before they are joined; the embedder's own resize then finds nothing to do
            points = [embedder.resize(inputs[name]).permute(0, 3, 1, 2) for name in maps]
            tokens = embedder(torch.cat(points)).split([len(p) for p in points])
            embedded |= dict(zip(maps, tokens, strict=True))
        return {name: embedded[name] for name in inputs}

    def project(self, embedded: Embedded) -> dict[str, Tensor]:
        """What `embed` gave -> tokens (B, N, width) by input name, projected and marked with their position groups.

        Both stages of a model can project what one of them embedded, where their encoders are equal.
        """
        tokens = {}
        for name in self.names:
            if name in embedded:
                index, group = INPUTS[name]
                features = embedded[name]
                x = self._select(features) if isinstance(features, Features) else features
                tokens[name] = self.projection_nets[index](x) + self.idx_emb[group]
        return tokens

    def join(self, tokens: Mapping[str, Tensor], batch: int, with_points: Tensor | None = None) -> Tensor:
        """Tokens by input name -> the sequence (batch, N, width); zeros for inputs that are not there, and for
        pointmaps of objects that are not ``with_points`` (batch,)."""
        parts = [
            tokens[name].expand(batch, -1, -1)
            if name in tokens
            else self.idx_emb.new_zeros(batch, self._count(name), self.width)
            for name in self.names
        ]
        if with_points is not None:  # not a product: what is dropped may be NaN
            keep = with_points.to(self.idx_emb.device)[:, None, None]
            parts = [
                torch.where(keep, x, 0) if name in POINTMAPS else x for name, x in zip(self.names, parts, strict=True)
            ]
        if self.training and self.dropout > 0:
            keep = torch.rand(batch, 1, 1, device=self.idx_emb.device) >= self.dropout
            parts = [x * keep if name in POINTMAPS else x for name, x in zip(self.names, parts, strict=True)]
        return torch.cat(parts, dim=1)

    def _select(self, features: Features) -> Tensor:
        if self.prenorm:
            return F.layer_norm(features.prenorm, features.prenorm.shape[-1:])
        return torch.cat([features.tokens[:, :1], features.tokens[:, 1 + self.encoder.registers :]], dim=1)

    def _count(self, name: str) -> int:
        """Tokens that the input ``name`` contributes."""
        embedder = self.module_list[INPUTS[name][0]]
        if isinstance(embedder, PointmapEmbedder):
            return embedder.tokens
        patches = (self.encoder.size // self.encoder.patch_size) ** 2
        return 1 + patches + (self.encoder.registers if self.prenorm else 0)

    def _encoder(self, index: int) -> VisionTransformer:
        encoder = self.module_list[index].get_submodule("backbone")
        assert isinstance(encoder, VisionTransformer)
        return encoder

    @staticmethod
    def _encode(
        encoder: VisionTransformer,
        inputs: Mapping[str, Tensor],
        names: list[str],
        injected: list[str],
        inject: Inject | None,
    ) -> dict[str, Features]:
        """Runs all inputs ``names`` as one batch; ``inject`` sees the rows of those that are ``injected``, which come
        first."""
        prepared = [encoder.prepare(inputs[name]) for name in names]
        sizes = [len(x) for x in prepared]
        rows = sum(size for name, size in zip(names, sizes, strict=True) if name in injected)

        def inject_rows(stage: str, x: Tensor) -> Tensor:
            assert inject is not None
            part = x[:rows]
            changed = inject(stage, part)
            return x if changed is part else torch.cat([changed, x[rows:]])

        features = encoder.encode(torch.cat(prepared), inject_rows if inject and rows else None, keep=())
        return dict(zip(names, split(features, sizes), strict=True))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Shares the encoders if the state dict's are equal, else gives each its own, before both are loaded."""
        copies = [
            {key[len(start) :]: tensor for key, tensor in state_dict.items() if key.startswith(start)}
            for start in (f"{prefix}module_list.0.", f"{prefix}module_list.1.")
        ]
        if same_tensors(*copies):
            self.share_encoder()
        elif self.shares_encoder:
            self.module_list[1].add_module("backbone", copy.deepcopy(self.image_encoder))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def same_tensors(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether both hold the same names with bit for bit the same numbers; False if they hold none."""
    return bool(a) and a.keys() == b.keys() and all(x is b[k] or torch.equal(x, b[k]) for k, x in a.items())


def split(features: Features, sizes: list[int]) -> list[Features]:
    """The tokens of a batch made of parts with ``sizes`` rows, part by part."""
    parts = zip(features.tokens.split(sizes), features.prenorm.split(sizes), strict=True)
    return [Features(tokens, prenorm, {}) for tokens, prenorm in parts]


def batch_size(inputs: Mapping[str, Tensor]) -> int:
    """Objects in the batch: inputs that all objects share have one row."""
    return max(len(tensor) for tensor in inputs.values())
