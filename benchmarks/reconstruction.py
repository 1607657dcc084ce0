"""Time of one reconstruction (one object, fused, 346x260) and where it goes.

    python benchmarks/reconstruction.py [--weights nano] [--threads 2] [--repeats 30]

Prints the median and the 95th percentile of wall time, the processor time, and the share of the network in it.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from event_sam3d_ros.preprocess import Observation
from event_sam3d_ros.reconstructor import Reconstructor, find_weights
from event_sam3d_ros.sam3d.checkpoint import load_checkpoint
from event_sam3d_ros.synthetic.world import HELD_OUT_OBJECT_SEEDS, make_case


class Clock:
    """Notes how long a module's calls take."""

    def __init__(self, module: torch.nn.Module, device: torch.device) -> None:
        self.device, self.begin, self.seconds = device, 0.0, 0.0
        module.register_forward_pre_hook(self._start)
        module.register_forward_hook(self._stop)

    def _start(self, *_: object) -> None:
        self.begin = self._now()

    def _stop(self, *_: object) -> None:
        self.seconds += self._now() - self.begin

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--weights", default="nano")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    case = make_case(HELD_OUT_OBJECT_SEEDS[0], 0, "hard")
    observation = Observation(case.blurry, case.degraded_mask, case.event_image, case.K, case.depth)
    model, info = load_checkpoint(find_weights(options.weights))
    reconstructor = Reconstructor(model, info)
    clock = Clock(model, reconstructor.device)
    whole, network, processor = [], [], []
    for _ in range(options.repeats + 3):  # the first three warm up
        clock.seconds, wall, cpu = 0.0, time.perf_counter(), time.process_time()
        reconstructor(observation)
        whole.append(time.perf_counter() - wall)
        processor.append(time.process_time() - cpu)
        network.append(clock.seconds)
    whole, network, processor = (1e3 * np.array(values[3:]) for values in (whole, network, processor))
    print(f"device {reconstructor.device}, {options.threads} threads, {options.repeats} repeats")
    print(f"one object: median {np.median(whole):.0f} ms, p95 {np.percentile(whole, 95):.0f} ms")
    print(f"processor time: median {np.median(processor):.0f} ms")
    print(f"network: {np.median(network / whole):.0%} of the time")


if __name__ == "__main__":
    main()
