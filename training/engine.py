"""One training loop for all stages: Muon and AdamW, cosine schedule, EMA, validation; resumable, on several GPUs."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from event_sam3d_ros import __version__
from event_sam3d_ros.errors import CheckpointError, ConfigurationError, EventSam3dError
from event_sam3d_ros.sam3d.checkpoint import PRECISIONS, load_checkpoint, save_checkpoint
from event_sam3d_ros.sam3d.config import ModelConfig, to_dict
from event_sam3d_ros.sam3d.network import FlowNetwork, Network
from training.distributed import Team, join, mean
from training.monitor import Monitor
from training.muon import Muon
from training.settings import StageConfig, first_difference

MIN_HIDDEN = 32  # channels in and out; first layers have fewer, and so have all last ones but LAST_LAYER
LAST_LAYER = "columns"
LOG_EVERY = 20  # steps
LICENCE = "Apache-2.0"  # of weights that nothing but procedural objects went into
HARMLESS = ("save_every", "picture_every")  # settings that may change when a run is resumed: its weights stay the same
_LAYERS = (nn.Conv2d, nn.Linear)

LossFunction = Callable[[dict[str, Tensor], np.random.Generator], tuple[Tensor, dict[str, Tensor]]]
"""(batch, random numbers of the step) -> loss to minimise and scalars for the log. Each of several processes has its
part of the batch and all have the same random numbers: see `training.distributed.whole_batch`."""
BatchSource = Callable[[int], dict[str, Tensor]]
"""The batch of a step, tensors (batch_size, ...), always the same for the same step. A source that makes batches at
some cost has a method ``share(step, rank, count)`` as well, which makes one process's part alone."""
Draw = Callable[[dict[str, Tensor]], Tensor]
"""A picture (3, H, W) in [0, 1] of what the network makes of a batch."""


def load_stage_input(path: Path, config: ModelConfig) -> Network | FlowNetwork:
    """The network that an earlier stage wrote, or one that shipped, in float32; it must have the configuration that is
    trained now. fp16 weights are enough to go on from: a stage starts with a fresh optimizer anyway."""
    network, info = load_checkpoint(path)
    difference = first_difference(to_dict(network.config), to_dict(config))
    if difference:
        raise CheckpointError(f"{path} was made for another configuration: {difference}", reason="wrong_checkpoint")
    network.licence = info.get("licence", LICENCE)  # what is made from weights keeps theirs
    network.origin = info["sha256"]
    return network.float()


def train(
    name: str,
    network: Network | FlowNetwork,
    trained: Sequence[nn.Module],
    loss_function: LossFunction,
    batches: BatchSource,
    stage: StageConfig,
    out: Path,
    device: str,
    *,
    held_out: BatchSource | None = None,
    draw: Draw | None = None,
    tensorboard: Path | None = None,
) -> None:
    """Trains the modules ``trained`` of ``network`` and writes the averaged (EMA) weights to ``out``.

    A state file beside ``out`` is taken up, or refused if it is of a run with other settings or weights. All random
    choices depend on the stage's seed and the step, so a resumed run goes on as if it had not stopped. ``held_out``
    gives the validation batches by number. Started several times by torchrun or SLURM, the processes share each batch;
    ``out``'s folder must then be one that all of them see. A loss that is not finite ends the run with an
    EventSam3dError; what was saved before stays.
    """
    with join(device) as team:
        run = _Run(name, network, trained, loss_function, batches, stage, out, team, held_out)
        run.resume()
        if not team.same(run.step):
            raise CheckpointError(
                f"the processes resume at different steps: all machines must see the folder {run.state_file.parent}",
                reason="other_state",
            )
        monitor = Monitor(out, run.step, tensorboard) if team.writes else None
        steps = range(run.step, stage.steps if not run.stopped else run.step)
        with tqdm(steps, initial=run.step, total=stage.steps, desc=name, mininterval=5, disable=not team.writes) as bar:
            for _ in bar:
                run.train_step()
                done = run.step == stage.steps
                scalars: dict[str, float] = {}
                if run.step % LOG_EVERY == 0 or run.step == 1 or done:
                    scalars = run.scalars()
                    bar.set_postfix_str(" ".join(f"{k}={v:.3f}" for k, v in scalars.items() if "/" not in k))
                if stage.validate_every and (run.step % stage.validate_every == 0 or done):
                    scalars |= run.validate()
                if monitor and scalars:
                    monitor.scalars(run.step, scalars)
                if monitor and draw and stage.picture_every and (run.step % stage.picture_every == 0 or done):
                    monitor.picture(run.step, run.draw(draw))
                if team.writes and (run.step % stage.save_every == 0 or done or run.stopped):
                    run.save()
                if run.stopped:
                    bar.write(f"{name}: stopped early after {run.step} steps")
                    break
        if monitor:
            monitor.close()
        del run.module  # with DDP, freeing it after its process group can wait for ever


class _WithLoss(nn.Module):
    """The network with its loss as one module, for what is wrapped around a whole forward pass."""

    def __init__(self, network: nn.Module, loss_function: LossFunction) -> None:
        super().__init__()
        self.network, self.loss_function = network, loss_function

    def forward(self, batch: dict[str, Tensor], rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss_function(batch, rng)


class _Run:
    """A stage under way: everything that changes from step to step, and how it is saved."""

    def __init__(
        self,
        name: str,
        network: Network | FlowNetwork,
        trained: Sequence[nn.Module],
        loss_function: LossFunction,
        batches: BatchSource,
        stage: StageConfig,
        out: Path,
        team: Team,
        held_out: BatchSource | None,
    ) -> None:
        if stage.batch_size % team.count:
            raise ConfigurationError(f"batch_size {stage.batch_size} can't be shared by {team.count} processes evenly")
        if stage.validate_every and held_out is None:
            raise ConfigurationError(f"validate_every is set, but these samples have no held-out part for {name}")
        self.name, self.network, self.stage, self.team = name, network, stage, team
        self.batches, self.held_out = batches, held_out
        self.out, self.state_file = out, out.with_suffix(".state")
        network.to(team.device).train()
        network.requires_grad_(False)
        self.parameters = [parameter for module in trained for parameter in module.parameters()]
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self.module = team.wrap(_WithLoss(network, loss_function))
        self.loss_function = loss_function
        self.optimizers = make_optimizers(trained, stage)
        self.schedules = [
            torch.optim.lr_scheduler.LambdaLR(o, lambda step: _learning_rate(step, stage)) for o in self.optimizers
        ]
        self.scaler = torch.amp.GradScaler(team.device.type, enabled=stage.precision == "fp16")
        self.averaged = [p.detach().clone() for p in self.parameters]
        self.means: dict[str, Tensor] = {}
        self.step, self.best, self.waited = 0, math.inf, 0

    @property
    def stopped(self) -> bool:
        """Whether validation has ended the stage."""
        return 0 < self.stage.patience <= self.waited

    def train_step(self) -> None:
        """One step of all optimizers on the batch of the step."""
        batch = self._share(self.batches, self.step)
        self.network.zero_grad(set_to_none=True)
        with self._autocast():
            loss, parts = self.module(batch, np.random.default_rng([self.stage.seed, 1, self.step]))
        logged = self._mean_parts({"loss": loss, **parts})
        self._require_finite(logged)
        self.scaler.scale(loss).backward()
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(self.parameters, self.stage.clip)
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            self.scaler.step(optimizer)
            schedule.step()
        self.scaler.update()
        decay = min(self.stage.ema, (self.step + 1) / (self.step + 10))
        torch._foreach_lerp_(self.averaged, [p.detach() for p in self.parameters], 1 - decay)
        for key, value in logged.items():
            self.means[key] = self.means[key].lerp(value, 0.02) if key in self.means else value
        self.step += 1

    def _require_finite(self, logged: dict[str, Tensor]) -> None:
        """Ends the run in all processes at once, before the weights are lost."""
        if logged["loss"].isfinite():
            return
        wrong = ", ".join(name for name, value in logged.items() if not value.isfinite())
        raise EventSam3dError(
            f"{self.name}: not finite at step {self.step}: {wrong}; try smaller learning rates, or precision fp32, "
            "and another --out",
            reason="loss_not_finite",
        )

    def scalars(self) -> dict[str, float]:
        """Running means of the loss and its parts, and the learning rate's share of its peak."""
        return {k: float(v) for k, v in self.means.items()} | {"schedule/rate": _learning_rate(self.step, self.stage)}

    def validate(self) -> dict[str, float]:
        """The averaged weights on the held-out batches; if they are the best so far they are written to ``out``."""
        assert self.held_out is not None
        sums: dict[str, list[Tensor]] = {}
        with self._averaged_weights(), torch.no_grad(), self._autocast():
            for number in range(self.stage.validation // self.stage.batch_size):
                rng = np.random.default_rng([self.stage.seed, 2, number])
                loss, parts = self.loss_function(self._share(self.held_out, number), rng)
                for key, value in self._mean_parts({"loss": loss, **parts}).items():
                    sums.setdefault(key, []).append(value)
        result = {f"validation/{key}": float(torch.stack(values).mean()) for key, values in sums.items()}
        better = result["validation/loss"] < self.best
        self.waited = 0 if better else self.waited + 1
        if better:
            self.best = result["validation/loss"]
            if self.team.writes:
                self._write_model()
        return result

    def draw(self, draw: Draw) -> Tensor:
        """The picture that the averaged weights give of a batch that is always the same."""
        with self._averaged_weights(), torch.no_grad():
            batch = self.held_out(0) if self.held_out else self.batches(0)
            return draw({name: tensor.to(self.team.device) for name, tensor in batch.items()})

    def resume(self) -> None:
        """Takes up the state file if there is one. Raises CheckpointError if it is of another run or damaged."""
        if not self.state_file.exists():
            return
        try:
            state = torch.load(self.state_file, map_location=self.team.device, weights_only=True)
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"{self.state_file} is not a readable state ({error}); delete it to start the stage again",
                reason="corrupt_checkpoint",
            ) from error
        difference = first_difference(state.get("identity", {}), self.identity())
        if difference:
            raise CheckpointError(
                f"{self.state_file} is the state of another run: {difference}; delete it to start again, or give "
                "another --out",
                reason="other_state",
            )
        self.network.load_state_dict(state["network"])
        for optimizer, schedule, saved in zip(self.optimizers, self.schedules, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved["optimizer"])
            schedule.load_state_dict(saved["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.averaged, self.means = state["averaged"], state["means"]
        self.step, self.best, self.waited = state["step"], state["best"], state["waited"]
        if not self.out.exists():
            self._restore_model()

    def identity(self) -> dict[str, Any]:
        """What a state must agree in for this run to go on from it: numbers, texts, lists and dicts."""
        settings = {name: value for name, value in asdict(self.stage).items() if name not in HARMLESS}
        return {
            "stage": self.name,
            "sha256 of the weights": str(getattr(self.network, "origin", "")),
            "model": to_dict(self.network.config),
            **json.loads(json.dumps(settings, default=str)),
        }

    def _restore_model(self) -> None:
        """Writes the model file that was lost beside its state."""
        if not self.stage.validate_every:
            if self.team.writes:
                self._write_model()
        elif self.best < math.inf:
            raise CheckpointError(
                f"{self.out} is missing, and with it the best weights; delete {self.state_file} to start again",
                reason="no_checkpoint",
            )

    def save(self) -> None:
        """Writes the model, unless validation chooses when, then the state to resume from: each whole or not at all,
        and the state last, so that a finished state has its model."""
        if not self.stage.validate_every:
            self._write_model()
        state = {
            "identity": self.identity(),
            "network": self.network.state_dict(),
            "optimizers": [
                {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
                for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True)
            ],
            "scaler": self.scaler.state_dict(),
            "averaged": self.averaged,
            "means": self.means,
            "step": self.step,
            "best": self.best,
            "waited": self.waited,
        }
        temporary = self.state_file.with_suffix(".part")
        torch.save(state, temporary)
        temporary.replace(self.state_file)

    def _write_model(self) -> None:
        licence = getattr(self.network, "licence", LICENCE)
        info = {"tag": self.name, "version": __version__, "licence": licence, "steps": str(self.step)}
        with self._averaged_weights():
            save_checkpoint(self.out, self.network, info, torch.float32)

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """Has the averaged weights in the network meanwhile."""
        current = [p.detach().clone() for p in self.parameters]
        _assign(self.parameters, self.averaged)
        try:
            yield
        finally:
            _assign(self.parameters, current)

    def _autocast(self) -> torch.autocast:
        """Without autocast's cache: it would keep weights that were cast under no_grad, for a teacher or a target that
        is the network itself, and their gradients would be lost."""
        precision = PRECISIONS[self.stage.precision]
        lower = precision != torch.float32
        kind = self.team.device.type
        return torch.autocast(kind, precision if lower else None, enabled=lower, cache_enabled=False)

    def _share(self, source: Any, number: int) -> dict[str, Tensor]:
        """This process's part of a batch, on its device."""
        if self.team.count > 1 and hasattr(source, "share"):
            part = source.share(number, self.team.rank, self.team.count)
            return {name: tensor.to(self.team.device) for name, tensor in part.items()}
        return self.team.share(source(number))

    def _mean_parts(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scalars averaged over all processes."""
        means = mean(torch.stack([value.detach().float() for value in parts.values()]))
        return dict(zip(parts, means, strict=True))


def make_optimizers(trained: Sequence[nn.Module], stage: StageConfig) -> list[torch.optim.Optimizer]:
    """Muon for the weights of hidden convolutions and linear layers, AdamW for all else (biases, norms, gates,
    embeddings, first and last layers), as Muon's authors recommend. From scratch it needs about half the samples that
    AdamW alone needs here."""
    layers = [named for module in trained for named in module.named_modules() if isinstance(named[1], _LAYERS)]
    matrices = [
        layer.weight
        for name, layer in layers
        if min(layer.weight.shape[:2]) >= MIN_HIDDEN and not name.endswith(LAST_LAYER)
    ]
    chosen = {id(matrix) for matrix in matrices}
    others = [p for module in trained for p in module.parameters() if id(p) not in chosen]
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(Muon(matrices, lr=stage.matrix_learning_rate, weight_decay=stage.weight_decay / 2))
    return [*optimizers, torch.optim.AdamW(others, lr=stage.learning_rate, weight_decay=stage.weight_decay)]


def _assign(parameters: list[nn.Parameter], values: list[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def _learning_rate(step: int, stage: StageConfig) -> float:
    """Linear warm-up, then a cosine to 2 % of the peak."""
    if step < stage.warmup:
        return (step + 1) / stage.warmup
    progress = (step - stage.warmup) / max(1, stage.steps - stage.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
