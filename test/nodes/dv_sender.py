"""A dv network server, as a process that can be killed: ``dv_sender.py EVENTS_PORT FRAMES_PORT IMU_PORT``.

When a reader has connected to each port it sends ten batches of 100 events, a frame and an IMU sample with each, and
then stays. A process, because dv-processing's writer waits in its destructor for readers that are still there.
"""

import sys
import time

import dv_processing as dv
import numpy as np

WIDTH, HEIGHT, START_US, BATCHES = 64, 48, 1_700_000_000_000_000, 10


def batch(number):
    """(t, x, y, p) of the events of one batch: 10 ms each."""
    generator = np.random.default_rng(number)
    t = START_US + 10_000 * number + np.arange(100) * 100
    return t, *generator.integers(0, (WIDTH, HEIGHT, 2), (100, 3)).T


def frame(number):
    """Pixels [H,W,3] BGR and time of a frame."""
    pixels = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    return pixels, START_US + 10_000 * number + 5_000


def main():
    size = (WIDTH, HEIGHT)
    streams = (
        dv.io.Stream.EventStream(0, "events", "DAVIS_TEST", size),
        dv.io.Stream.FrameStream(0, "frames", "DAVIS_TEST", size),
        dv.io.Stream.IMUStream(0, "imu", "DAVIS_TEST"),
    )
    writers = [dv.io.NetworkWriter("127.0.0.1", int(port), s) for port, s in zip(sys.argv[1:], streams, strict=True)]
    print("ready", flush=True)
    while not all(writer.getClientCount() for writer in writers):
        time.sleep(0.02)
    time.sleep(0.3)
    for number in range(BATCHES):
        store = dv.EventStore()
        for t, x, y, p in zip(*batch(number), strict=True):
            store.push_back(int(t), int(x), int(y), bool(p))
        writers[0].writeEvents(store)
        pixels, t = frame(number)
        writers[1].writeFrame(dv.Frame(t, pixels))
        imu = dv.IMUPacket.ImuVector()
        imu.append(dv.IMU(t, 30.0, 0.5, -1.0, 0.25, 90.0, -45.0, 180.0, 0.0, 0.0, 0.0))
        writers[2].writeImu(imu)
        time.sleep(0.02)
    time.sleep(600)


if __name__ == "__main__":
    main()
