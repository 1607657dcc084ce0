"""Time of one reconstruction (one object, fused, 346x260) and where it goes.

    python benchmarks/reconstruction.py [--weights nano] [--threads 2] [--repeats 30]

Prints the median and the 95th percentile of wall time, the processor time, and the share of the network in it.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from event_sam3d_ros.preprocess import Observation, network_input, object_crops
from event_sam3d_ros.reconstructor import Reconstructor
from event_sam3d_ros.synthetic.world import HELD_OUT_OBJECT_SEEDS, make_case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--weights", default="nano")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    case = make_case(HELD_OUT_OBJECT_SEEDS[0], 0, "hard")
    observation = Observation(case.blurry, case.degraded_mask, case.event_image, case.K, case.depth)
    reconstructor = Reconstructor.from_pretrained(options.weights)
    crops = object_crops(observation.mask, reconstructor.config.preprocess.crop_factor)
    inputs = network_input(observation, crops, reconstructor.config)
    whole, network, processor = [], [], []
    for _ in range(options.repeats + 3):  # the first three warm up
        wall, cpu = time.perf_counter(), time.process_time()
        reconstructor(observation)
        whole.append(time.perf_counter() - wall)
        processor.append(time.process_time() - cpu)
        wall = time.perf_counter()
        reconstructor._infer(inputs)
        network.append(time.perf_counter() - wall)
    whole, network, processor = (1e3 * np.array(values[3:]) for values in (whole, network, processor))
    print(f"device {reconstructor.device}, {options.threads} threads, {options.repeats} repeats")
    print(f"one object: median {np.median(whole):.0f} ms, p95 {np.percentile(whole, 95):.0f} ms")
    print(f"processor time: median {np.median(processor):.0f} ms")
    print(f"network: {np.median(network) / np.median(whole):.0%} of the time")


if __name__ == "__main__":
    main()
