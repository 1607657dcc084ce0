"""Loaders, each on a tiny copy of its dataset's layout: a square that moves to the right, with events where it is."""

import dataclasses
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from event_sam3d_ros.errors import ConfigurationError, InputError, RecordingError, RecordingWarning
from event_sam3d_ros.events.events import Events
from event_sam3d_ros.events.representations import tencode
from event_sam3d_ros.sam3d.config import ModelConfig, from_dict
from event_sam3d_ros.sam3d.network import Network
from training import distill, fuse
from training.augmentations import AugmentationConfig
from training.datasets import TRUTH, DataConfig, fields, render
from training.loaders import check
from training.loaders.base import UNUSABLE, around
from training.loaders.files import EventCache, in_order, read_events
from training.loaders.mixture import Mixture, open_loader, open_mixture, sizes
from training.loaders.settings import DatasetConfig
from training.loaders.source import RecordedSource
from training.pictures import sheet
from training.settings import DistillConfig, FuseConfig, load_config
from training.sources import open_batches

WIDTH, HEIGHT, FRAMES, SIDE = 64, 48, 7, 16
CONFIG = ModelConfig()
CONFIG_FILE = Path(__file__).parents[2] / "config/models/nano.yaml"
PLAIN = AugmentationConfig(flip=0, gain=0, grey=0, pixel_dropout=0)
RNG = np.random.default_rng
PICTURES = set(fields(CONFIG, 96)) - set(TRUTH)


def left(frame):
    """Column where the square begins."""
    return 10 + 4 * frame


def true_mask(frame):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[16 : 16 + SIDE, left(frame) : left(frame) + SIDE] = True
    return mask


def picture(frame, background=26):
    image = np.full((HEIGHT, WIDTH, 3), background, np.uint8)
    image[true_mask(frame)] = (200, 100, 50)
    return image


def events_of(first_us, last_us, count=400, seed=0):
    """Events all over the square's way, sorted, from the first time to the last."""
    rng = RNG(seed)
    t = np.sort(rng.integers(first_us, last_us, count))
    t[0], t[-1] = first_us, last_us
    x, y = rng.integers(10, 54, count).astype(np.uint16), rng.integers(16, 32, count).astype(np.uint16)
    return Events(t, x, y, rng.integers(0, 2, count).astype(np.uint8))


def all_events():
    return events_of(20_000, FRAMES * 33_000, 4000)


def write_picture(path: Path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    quality = [cv2.IMWRITE_JPEG_QUALITY, 100] if path.suffix == ".jpg" else []
    assert cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 else image, quality)


def write_sam3(path: Path, mask):
    """As SAM 3 gives them: several masks, (N, 1, H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    speck = np.zeros_like(mask)
    speck[:2, :2] = True
    torch.save({"masks": torch.from_numpy(np.stack([speck, mask])[:, None]), "scores": torch.ones(2)}, path)


def write_aedat2(path: Path, events, width=WIDTH, height=HEIGHT):
    """As v2e writes it: pixels counted from the lower right corner of its sensor, which it does not name."""
    x, y = width - 1 - events.x.astype(np.uint32), height - 1 - events.y.astype(np.uint32)
    rows = np.empty((len(events), 2), ">u4")
    rows[:, 0] = y << 22 | x << 12 | events.p.astype(np.uint32) << 11
    rows[:, 1] = events.t
    path.write_bytes(b"#!AER-DAT2.0\r\n# v2e\r\n" + rows.tobytes())


def write_npz(path: Path, events):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, x=events.x, y=events.y, t=events.t, p=events.p)


def write_mvsec(root: Path):
    events, start = all_events(), 1_500_000_000.0
    with h5py.File(root / "indoor_data.hdf5", "w") as file:
        columns = [events.x, events.y, start + events.t / 1e6, events.p.astype(np.float64) * 2 - 1]
        file["davis/left/events"] = np.stack(columns, axis=1)
        file["davis/left/image_raw"] = np.stack([picture(i)[..., 0] for i in range(FRAMES)])
        times = start + np.arange(FRAMES) / 30
        file["davis/left/image_raw_ts"] = times
        file["davis/left/image_raw_event_inds"] = np.searchsorted(events.t / 1e6, times - start)
    (root / "indoor_gt.hdf5").write_bytes(b"depth and poses, never opened")
    for frame in range(1, FRAMES - 1):
        write_sam3(root / f"indoor_data/sam3/barrel_{frame:06d}.pt", true_mask(frame))


def write_co3d(root: Path):
    folder = root / "cup/12_34"
    for frame in range(FRAMES):
        write_picture(folder / f"images/frame{frame + 4}.jpg", picture(frame))  # frame9 before frame10
        write_picture(folder / f"masks/frame{frame + 4}.png", true_mask(frame).astype(np.uint8) * 255)
    write_aedat2(folder / "events.aedat", all_events())


def write_objaverse(root: Path):
    folder = root / "spider/0"
    for frame in range(FRAMES):
        write_picture(folder / f"images/{frame:03d}.png", picture(frame))
    write_aedat2(folder / "events.aedat", all_events())


def write_event_replica(root: Path):
    folder = root / "office0"
    for frame in range(FRAMES):
        blurry = (picture(frame) // 2 + picture(min(frame + 1, FRAMES - 1)) // 2).astype(np.uint8)
        write_picture(folder / f"original_images/{frame:04d}.png", blurry)
        write_picture(folder / f"sharp_images/{frame:04d}.png", picture(frame))
        write_npz(folder / f"event/{frame:04d}.npz", events_of(1000 * frame, 1000 * frame + 30_000, seed=frame))
        write_sam3(folder / f"sam3/barrel_{frame:04d}.pt", true_mask(frame))


def write_rgbe_seg(root: Path):
    folder = root / "train/seq1"
    for frame in range(FRAMES):
        write_picture(folder / f"rgb_image/{frame:05d}.jpg", picture(frame))
        write_npz(folder / f"event/{frame:05d}.npz", events_of(1000 * frame, 1000 * frame + 30_000, seed=frame))
        write_sam3(folder / f"sam3/person_{frame:05d}.pt", true_mask(frame))
    lines = [f"seq1/rgb_image/{frame:05d}.jpg" for frame in range(1, FRAMES)]
    (root / "train/eventsam_split.txt").write_text("\n".join(lines) + "\n")


WRITERS = {
    "mvsec": write_mvsec,
    "co3d": write_co3d,
    "objaverse": write_objaverse,
    "event_replica": write_event_replica,
    "rgbe_seg": write_rgbe_seg,
}
FIRST = {"mvsec": 1, "co3d": 1, "objaverse": 1, "event_replica": 0, "rgbe_seg": 1}
COUNT = {"mvsec": FRAMES - 2, "co3d": FRAMES - 1, "objaverse": FRAMES - 1, "event_replica": FRAMES, "rgbe_seg": 6}


@pytest.fixture(scope="module", params=list(WRITERS))
def dataset(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    WRITERS[request.param](root)
    return entry(request.param, root)


def entry(kind, root, **settings):
    extra = {"object": "barrel"} if kind == "event_replica" else {}
    return DatasetConfig(kind, root=str(root), sensor=(WIDTH, HEIGHT), min_events=50, **{**extra, **settings})


def write(kind, root, **settings):
    WRITERS[kind](root)
    return entry(kind, root, **settings)


# Each layout


def test_moments_are_those_of_the_files(dataset):
    loader = open_loader(dataset, CONFIG)
    assert len(loader) == COUNT[dataset.kind] and not loader.left_out
    for number in (0, len(loader) - 1):
        frame = FIRST[dataset.kind] + number
        moment = loader.read(number, RNG(0))
        seen = picture(frame)[..., :1].repeat(3, -1) if dataset.kind == "mvsec" else picture(frame)
        assert np.abs(moment.sharp.astype(int) - seen).mean() < 3  # what JPEG leaves
        wrong = moment.mask.astype(bool) ^ true_mask(frame)
        assert wrong.mean() < 0.01 and moment.mask.dtype == np.uint8
        assert moment.blurry.shape == moment.sharp.shape and moment.coverage.shape == moment.mask.shape


def test_windows_are_the_robots(dataset):
    """Around the frame's time, as long as the model says, turned into colours by the same function."""
    moment = open_loader(dataset, CONFIG).read(1, RNG(0))
    t0, t1 = moment.window_us
    frame = FIRST[dataset.kind] + 1
    assert t1 - t0 == 50_000
    if dataset.kind in ("event_replica", "rgbe_seg"):
        expected = events_of(1000 * frame, 1000 * frame + 30_000, seed=frame)
        assert (t0 + t1) // 2 == 1000 * frame + 15_000
    else:
        whole, start = all_events(), 1_500_000_000_000_000 if dataset.kind == "mvsec" else 0
        assert abs((t0 + t1) // 2 - start - round(frame * 1e6 / 30)) <= (dataset.kind == "mvsec")  # it keeps seconds
        inside = (whole.t + start >= t0) & (whole.t + start < t1)
        expected = Events(whole.t[inside] + start, whole.x[inside], whole.y[inside], whole.p[inside])
    for name in "xyp":
        assert np.array_equal(getattr(moment.events, name), getattr(expected, name)), name
    assert np.abs(moment.events.t - expected.t).max() <= (dataset.kind == "mvsec")
    assert np.array_equal(moment.event_image(), tencode(moment.events, t0, t1, WIDTH, HEIGHT))


@pytest.fixture
def pool():
    with ThreadPoolExecutor(3) as pool:
        yield pool


def test_batches_have_the_pictures_of_rendered_ones_and_no_truth(dataset, pool):
    batch = RecordedSource(open_loader(dataset, CONFIG), CONFIG, 3, 0, pool)(0)
    size = CONFIG.encoder.image_size
    assert batch.keys() == PICTURES
    for name, value in batch.items():
        assert value.shape == (3, 1 if name.endswith("mask") else 3, size, size) and value.dtype == torch.float32
        assert 0 <= value.min() and value.max() <= 1
    assert batch["degraded_events"].amax((1, 2, 3)).min() > 0.9
    assert batch["true_mask"].mean((1, 2, 3)).min() > 0.3


def test_the_seed_and_the_step_decide(dataset, pool):
    settings = AugmentationConfig(crop=0.1, event_dropout=0.5, time_reversal=0.5, blur=0.5)

    def make(seed=0):
        return RecordedSource(open_loader(dataset, CONFIG), CONFIG, 4, seed, pool, settings)

    goes_on = make()
    goes_on(5)
    first, resumed = goes_on(6), make()(6)
    assert all(torch.equal(first[name], resumed[name]) for name in first)
    assert not torch.equal(first["degraded_events"], make()(7)["degraded_events"])
    assert not torch.equal(first["degraded_events"], make(1)(6)["degraded_events"])
    parts = [make().share(6, rank, 3) for rank in range(3)]
    assert all(torch.equal(parts[rank][name], first[name][rank::3]) for rank in range(3) for name in first)


def test_the_flow_head_gets_its_views(tmp_path, pool):
    config = ModelConfig.from_yaml(Path(__file__).parents[2] / "training/config/flow_toy_model.yaml")
    batch = RecordedSource(open_loader(write("mvsec", tmp_path), config), config, 2, 0, pool)(0)
    size = config.encoder.size
    views = {"image": 3, "mask": 1, "rgb_image": 3, "rgb_image_mask": 1}
    events = {"event_image": 3, "rgb_event_image": 3}
    wanted = {f"sharp.{name}": n for name, n in views.items()}
    wanted |= {f"blurry.{name}": n for name, n in (views | events).items()}
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        name: (2, channels, size, size) for name, channels in wanted.items()
    }
    assert batch["blurry.event_image"].amax((1, 2, 3)).min() > 0.9


def test_the_order_depends_on_the_files_names_alone(dataset):
    def names():
        return [(sequence.name, frame) for sequence, frame in open_loader(dataset, CONFIG).index]

    assert names() == names() == sorted(names())


# Blur


def test_blur_is_the_mean_in_linear_light(tmp_path):
    loader = open_loader(write("objaverse", tmp_path, blur_frames=(3,)), CONFIG)
    moment = loader.read(2, RNG(0))  # frame 3
    light = np.mean([(picture(i) / 255.0) ** 2.2 for i in (2, 3, 4)], axis=0)
    assert np.abs(moment.blurry - light ** (1 / 2.2) * 255).max() <= 0.51
    coverage = np.mean([true_mask(i) for i in (2, 3, 4)], axis=0)
    assert np.abs(moment.coverage - coverage).max() < 1e-6
    assert np.array_equal(moment.sharp, picture(3))


def test_frames_of_a_davis_are_linear_already(tmp_path):
    moment = open_loader(write("mvsec", tmp_path, blur_frames=(3,)), CONFIG).read(1, RNG(0))
    mean = np.mean([picture(i)[..., :1] for i in (1, 2, 3)], axis=0)
    assert np.abs(moment.blurry - mean).max() <= 0.51


def test_event_replicas_own_blurry_frames_are_used(tmp_path):
    moment = open_loader(write("event_replica", tmp_path), CONFIG).read(2, RNG(0))
    assert np.array_equal(moment.blurry, picture(2) // 2 + picture(3) // 2)


@pytest.mark.parametrize(
    "frame,count,expected",
    [(5, 1, [5]), (5, 3, [4, 5, 6]), (5, 4, [3, 4, 5, 6]), (1, 7, [0, 1, 2]), (9, 7, [9]), (0, 2, [0])],
)
def test_frames_around(frame, count, expected):
    assert list(around(frame, count, 10)) == expected


# Details of layouts


def test_events_of_a_corner_lie_where_v2es_sensor_had_them(tmp_path):
    """The reader takes a small sensor for a file whose events reach a small part of a large one."""
    rng = RNG(0)
    x, y = rng.integers(200, 346, 50).astype(np.uint16), rng.integers(100, 260, 50).astype(np.uint16)
    events = Events(np.arange(50), x, y, np.ones(50, np.uint8))
    write_aedat2(tmp_path / "events.aedat", events, 346, 260)
    found = read_events(tmp_path / "events.aedat", (346, 260))
    assert np.array_equal(found.x, x) and np.array_equal(found.y, y)


def test_events_of_another_sensor_are_refused(tmp_path):
    loader = open_loader(dataclasses.replace(write("mvsec", tmp_path), sensor=(32, 24)), CONFIG)
    with pytest.raises(RecordingError, match="set sensor"):
        loader.read(0, RNG(0))


def test_larger_frames_are_stretched_to_the_sensor_as_v2e_does(tmp_path):
    settings = write("co3d", tmp_path)
    for path in (tmp_path / "cup/12_34").glob("*/*.*g"):
        cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path)), (WIDTH * 3, HEIGHT * 2)))
    moment = open_loader(settings, CONFIG).read(1, RNG(0))
    assert moment.sharp.shape == (HEIGHT, WIDTH, 3)
    assert (moment.mask.astype(bool) ^ true_mask(2)).mean() < 0.03


def test_the_opacity_of_a_rendering_is_its_mask(tmp_path):
    settings = write("objaverse", tmp_path)
    for frame in range(FRAMES):
        opacity = true_mask(frame)[..., None].astype(np.uint8) * 255
        image = np.concatenate([np.full((HEIGHT, WIDTH, 3), 90, np.uint8), opacity], axis=-1)
        cv2.imwrite(str(tmp_path / f"spider/0/images/{frame:03d}.png"), image)
    moment = open_loader(settings, CONFIG).read(1, RNG(0))
    assert np.array_equal(moment.mask.astype(bool), true_mask(2))


def test_masks_may_be_pictures(tmp_path):
    settings = write("rgbe_seg", tmp_path)
    for path in (tmp_path / "train/seq1/sam3").glob("*.pt"):
        write_picture(path.with_suffix(".png"), true_mask(int(path.stem[-5:])).astype(np.uint8))
        path.unlink()
    assert len(open_loader(settings, CONFIG)) == COUNT["rgbe_seg"]


def test_sequences_are_chosen_by_pattern(tmp_path):
    for name in ("cup", "tv"):
        (tmp_path / "data" / name).mkdir(parents=True)
        write_co3d(tmp_path)
        (tmp_path / "cup").rename(tmp_path / "data" / name / "x")
        (tmp_path / "data" / name / "x/12_34").rename(tmp_path / "data" / name / "12_34")
    settings = entry("co3d", tmp_path / "data")
    assert len(open_loader(settings, CONFIG)) == 2 * COUNT["co3d"]
    chosen = open_loader(dataclasses.replace(settings, sequences=("tv/*",)), CONFIG)
    assert {sequence.name for sequence, _ in chosen.index} == {"tv/12_34"}


def test_numbers_in_names_decide_the_order(tmp_path):
    for name in ("f10.png", "f9.png", "f100.png"):
        (tmp_path / name).touch()
    assert [path.name for path in in_order(tmp_path, "*.png")] == ["f9.png", "f10.png", "f100.png"]


# What is wrong with a dataset


def test_a_root_that_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match="no folder") as error:
        open_loader(entry("mvsec", tmp_path / "nowhere"), CONFIG)
    assert error.value.reason == "no_dataset"


@pytest.mark.parametrize("kind", list(WRITERS))
def test_an_empty_folder_says_what_was_expected(kind, tmp_path):
    with pytest.raises(InputError, match="expected <") as error:
        len(open_loader(entry(kind, tmp_path), CONFIG))
    assert error.value.reason == "no_samples"


def test_sequences_without_events_are_counted_and_the_first_is_named(tmp_path):
    settings = write("objaverse", tmp_path)
    for name in ("a", "b"):
        write_objaverse(tmp_path / name)
        (tmp_path / name / "spider/0/events.aedat").unlink()
        (tmp_path / name / "spider").rename(tmp_path / f"{name}_spider")
        (tmp_path / name).rmdir()
    loader = open_loader(settings, CONFIG)
    with pytest.warns(RecordingWarning, match=r"a_spider/0/events\.aedat is missing"):
        assert len(loader) == COUNT["objaverse"]
    assert loader.left_out == {"missing_events": 2}


BREAK = {
    "cut picture": ("co3d", "cup/12_34/images/frame6.jpg", 60, "broken_picture"),
    "cut mask": ("rgbe_seg", "train/seq1/sam3/person_00003.pt", 100, "broken_mask"),
    "cut events": ("rgbe_seg", "train/seq1/event/00003.npz", 200, "broken_recording"),
    "empty events": ("event_replica", "office0/event/0003.npz", 0, "broken_recording"),
}


@pytest.mark.parametrize("what", list(BREAK))
def test_a_broken_file_is_left_out_and_counted(what, tmp_path, pool):
    kind, name, size, reason = BREAK[what]
    settings = dataclasses.replace(write(kind, tmp_path), blur_frames=(1,))
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:size])
    loader = open_loader(settings, CONFIG)
    source = RecordedSource(loader, CONFIG, len(loader), 0, pool, PLAIN)
    with pytest.warns(RecordingWarning, match=Path(name).name):
        batch = source(0)
        pool.shutdown()  # the batches that were begun ahead
    assert len(batch["true_mask"]) == len(loader)
    assert loader.left_out.keys() == {reason} and loader.left_out[reason] >= 3


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(list(WRITERS)), st.integers(0, 2**32), st.booleans())
def test_damage_of_any_file_is_told(kind, seed, is_cut):
    """Whatever is in the files, reading gives a moment or one of the errors that the source counts."""
    rng = RNG(seed)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chosen = write(kind, Path(folder))
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        path = files[rng.integers(len(files))]
        data = bytearray(path.read_bytes())
        if is_cut:
            data = data[: rng.integers(len(data))]
        else:
            for place in rng.integers(0, len(data), 20):
                data[place] = rng.integers(256)
        path.write_bytes(data)
        try:
            loader = open_loader(chosen, CONFIG)
            for number in range(len(loader)):
                try:
                    moment = loader.read(number, rng)
                    assert moment.mask.shape == (HEIGHT, WIDTH) and moment.mask.any()
                    assert moment.event_image().shape == moment.blurry.shape == (HEIGHT, WIDTH, 3)
                except UNUSABLE:
                    continue
        except InputError as error:
            assert error.reason == "no_samples"


def test_frames_with_few_events_are_left_out(tmp_path):
    settings = write("rgbe_seg", tmp_path)
    write_npz(tmp_path / "train/seq1/event/00002.npz", events_of(0, 1000, 10))
    loader = open_loader(settings, CONFIG)
    with pytest.raises(InputError, match="10 events, fewer than 50"):
        loader.read(1, RNG(0))


def test_many_broken_moments_one_after_another_do_not_end_the_training(tmp_path, pool):
    chosen = write("objaverse", tmp_path)
    for i in range(9):
        write_objaverse(tmp_path / f"more{i}")
        (tmp_path / f"more{i}/spider").rename(tmp_path / f"a{i}")
    for path in tmp_path.glob("a*/0/events.aedat"):
        path.write_bytes(b"#!AER-DAT2.0\r\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = RecordedSource(open_loader(chosen, CONFIG), CONFIG, 12, 0, pool)
        assert len(source(0)["degraded_events"]) == 12
    assert source.loader.left_out["too_few_events"] > 0


def test_a_dataset_that_is_broken_throughout_is_one_error(tmp_path, pool):
    settings = write("co3d", tmp_path)
    (tmp_path / "cup/12_34/events.aedat").write_bytes(b"#!AER-DAT2.0\r\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError, match="none of 50 samples") as error:
            RecordedSource(open_loader(settings, CONFIG), CONFIG, 2, 0, pool)(0)
    assert error.value.reason == "bad_dataset"


def test_objects_must_be_named_where_masks_are(tmp_path):
    settings = dataclasses.replace(write("event_replica", tmp_path), object="")
    with pytest.raises(ConfigurationError, match="set object"):
        len(open_loader(settings, CONFIG))


def test_recordings_are_read_once_and_forgotten_when_memory_is_short(tmp_path):
    for name in "ab":
        write_aedat2(tmp_path / name, all_events())
    cache = EventCache(budget=all_events().nbytes)
    a = cache.read(tmp_path / "a", (WIDTH, HEIGHT))
    assert cache.read(tmp_path / "a", (WIDTH, HEIGHT)) is a
    cache.read(tmp_path / "b", (WIDTH, HEIGHT))
    assert cache.read(tmp_path / "a", (WIDTH, HEIGHT)) is not a


def test_many_threads_read_many_archives(tmp_path):
    for number in range(20):
        write_npz(tmp_path / f"{number}.npz", events_of(0, 1000, 50))
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(read_events, tmp_path / f"{n % 20}.npz", (WIDTH, HEIGHT)) for n in range(200)]
        assert all(len(job.result()) == 50 for job in jobs)


# Mixtures


def numbered(first, *names):
    """A source of four samples that say where they come from, and when."""
    return lambda step: {name: torch.arange(4) + first + 1000.0 * step for name in names}


class Sharing:
    """A source of three samples that makes parts of batches."""

    def __call__(self, step):
        return self.share(step, 0, 1)

    def share(self, step, rank, count):
        return {"a": torch.arange(3)[rank::count] + 30.0 + 1000 * step}


def test_mixtures_have_all_samples_and_what_all_sources_have():
    mixture = Mixture([numbered(0, "a", "b"), Sharing(), numbered(10, "a", "c")], [4, 3, 4])
    batch = mixture(2)
    assert batch.keys() == {"a"}
    assert (batch["a"] - 2000).tolist() == [0, 1, 2, 3, 30, 31, 32, 10, 11, 12, 13]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_processes_share_a_mixture_as_they_would_the_whole_batch(count):
    mixture = Mixture([numbered(0, "a"), Sharing(), numbered(10, "a")], [4, 3, 4])
    for rank in range(count):
        assert mixture.share(0, rank, count)["a"].tolist() == mixture(0)["a"][rank::count].tolist()
    with pytest.raises(ConfigurationError, match="3 samples of a batch, too few for 4 processes"):
        mixture.share(0, 0, 4)


def test_a_batch_is_split_by_weight():
    def split(weights, batch_size):
        return sizes([DatasetConfig("rendered", weight) for weight in weights], batch_size)

    assert split([1, 3], 32) == [8, 24]
    assert split([1, 1, 1], 32) == [11, 11, 10]
    assert split([0.5], 7) == [7]
    with pytest.raises(ConfigurationError, match="none would come from rendered, whose weight is 0.01"):
        split([1, 0.01], 32)


def test_rendered_and_recorded_samples_mix(dataset, pool):
    asked = []

    def rendered(batch_size):
        asked.append(batch_size)
        source = lambda step: {name: torch.zeros(batch_size, 3, 64, 64) for name in (*PICTURES, *TRUTH)}  # noqa: E731
        source.held_out = source
        return source

    listed = [DatasetConfig("rendered", 3.0), dataclasses.replace(dataset, weight=1.0)]
    mixture = open_mixture(listed[1:], CONFIG, 4, 0, rendered, pool, PLAIN)
    assert mixture(0).keys() == PICTURES and mixture.held_out is None and not asked
    mixture = open_mixture(listed, CONFIG, 8, 0, rendered, pool, PLAIN)
    assert asked == [6] and mixture.held_out is not None
    with pytest.raises(ConfigurationError, match="named twice"):
        open_mixture([*listed, listed[0]], CONFIG, 8, 0, rendered, pool, PLAIN)


def test_the_event_stages_learn_from_what_has_no_truth(tmp_path):
    """distill and fuse, from a dataset alone and from a mixture with rendered samples."""
    (tmp_path / "mvsec").mkdir()
    recorded = write("mvsec", tmp_path / "mvsec")
    data = DataConfig(cases=2, sensor=96)
    render(tmp_path / "rendered", data, CONFIG, workers=1)
    torch.manual_seed(0)
    network = Network(CONFIG)
    for datasets in ((recorded,), (DatasetConfig("rendered"), recorded)):
        settings = {"cases": 2, "batch_size": 4, "datasets": datasets}
        stages = {
            DistillConfig: lambda batch, stage: distill.loss(network, batch, RNG(0), stage),
            FuseConfig: lambda batch, stage: fuse.fusion_loss(network, batch, RNG(0), stage),
        }
        for kind, loss in stages.items():
            stage = kind(**settings)
            with open_batches(tmp_path / "rendered", data, CONFIG, stage) as batches:
                batch, again = batches(0), batches(0)
                assert all(torch.equal(batch[name], again[name]) for name in batch) and batch.keys() == PICTURES
                assert len(batch["degraded_events"]) == 4 and (batches.held_out is None) == (len(datasets) == 1)
                total, parts = loss(batch, stage)
                assert total.isfinite() and total > 0 and "iou" not in parts
    geometry = network(None, batch["degraded_events"], batch["degraded_mask"])
    assert sheet(batch, geometry).shape == (3, 4 * 64, 8 * 64)


def test_a_stage_that_needs_truth_names_the_data_that_lack_it(tmp_path):
    path = tmp_path / "t.yaml"
    listed = "datasets: [{kind: rendered}, {kind: mvsec, root: x}]"
    for stage in ("pretrain", "unfreeze", "structure", "shortcut"):
        path.write_text(f"{stage}: {{{listed}}}\n")
        with pytest.raises(ConfigurationError, match=rf"t\.yaml: {stage} learns from the truth .* mvsec have not"):
            load_config(path)
    path.write_text(f"model: {CONFIG_FILE}\ndistill: {{{listed}}}\nfuse: {{augmentation: {{blur: 0.5}}}}\n")
    config, _ = load_config(path)
    assert [entry.kind for entry in config.distill.datasets] == ["rendered", "mvsec"]
    assert config.fuse.augmentation == AugmentationConfig(blur=0.5) and config.fuse.datasets == ()


# The command


def test_check_says_what_is_there_and_draws_it(tmp_path, monkeypatch, capsys):
    (tmp_path / "mvsec").mkdir()
    write_mvsec(tmp_path / "mvsec")
    (tmp_path / "mvsec/indoor_data/sam3/barrel_000003.pt").write_bytes(b"cut")
    entries = (
        f"{{kind: mvsec, root: {tmp_path / 'mvsec'}, sensor: [{WIDTH}, {HEIGHT}], min_events: 50, blur_frames: [1]}}, "
        f"{{kind: co3d, root: {tmp_path / 'nowhere'}}}, {{kind: rendered}}"
    )
    path = tmp_path / "t.yaml"
    path.write_text(f"model: {CONFIG_FILE}\ndistill: {{datasets: [{entries}]}}\nfuse: {{datasets: [{entries}]}}\n")
    monkeypatch.setattr("sys.argv", ["check", "--config", str(path), "--out", str(tmp_path / "out")])
    with pytest.warns(RecordingWarning, match="barrel_000003"):
        check.main()
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"mvsec {tmp_path / 'mvsec'}: 5 samples in 1 sequences"
    assert said[1] == "  4 of 5 samples that were read can be used; left out: 1 broken_mask"
    assert said[2].startswith("co3d: ") and said[2].endswith("is no folder") and len(said) == 3
    sheet_of_samples = cv2.imread(str(tmp_path / "out/0_mvsec.png"))[..., ::-1]
    assert sheet_of_samples.shape == (4 * HEIGHT, 5 * WIDTH, 3)
    assert np.array_equal(sheet_of_samples[:HEIGHT, 3 * WIDTH : 4 * WIDTH, 0] > 0, true_mask(1))


def test_check_of_a_configuration_without_datasets_is_refused(tmp_path, monkeypatch):
    (tmp_path / "t.yaml").write_text(f"model: {CONFIG_FILE}\n")
    monkeypatch.setattr("sys.argv", ["check", "--config", str(tmp_path / "t.yaml")])
    with pytest.raises(ConfigurationError, match="names no datasets"):
        check.main()


# Settings


def test_datasets_are_read_from_yaml():
    @dataclasses.dataclass(frozen=True)
    class Some:
        datasets: tuple[DatasetConfig, ...] = ()

    listed = [
        {"kind": "rendered"},
        {"kind": "co3d", "root": "x", "weight": 2, "sequences": ["cup/*"], "sensor": [4, 3]},
    ]
    first, second = from_dict(Some, {"datasets": listed}, "here").datasets
    assert first == DatasetConfig("rendered")
    assert second == DatasetConfig("co3d", 2.0, "x", ("cup/*",), sensor=(4, 3))
    for wrong, said in (
        ({"kind": "mvsek"}, r"datasets\[0\].*'mvsek'.*mvsec"),
        ({"kind": "mvsec"}, "needs root"),
        ({"kind": "rendered", "weight": 0}, "weight"),
        ({"kind": "rendered", "wait": 1}, "unknown setting wait"),
        ({"kind": "mvsec", "root": "x", "sensor": [3]}, "sensor"),
        ({"kind": "mvsec", "root": "x", "blur_frames": [0]}, "blur_frames"),
        ({"kind": "mvsec", "root": "x", "sequences": [1]}, r"sequences\[0\] must be of type str"),
        ({}, "kind"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            from_dict(Some, {"datasets": [wrong]}, "here")
    with pytest.raises(ConfigurationError, match="must be a list"):
        from_dict(Some, {"datasets": {"kind": "rendered"}}, "here")
