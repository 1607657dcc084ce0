"""What the flow head learns from: targets that agree with the pictures, whatever window, mirror or pointmap."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.sam3d.config import ModelConfig
from event_sam3d_ros.sam3d.layout import decode_poses, turn, voxel_centers
from event_sam3d_ros.sam3d.pointmap import pointmap_from_depth, prior_pointmap
from event_sam3d_ros.sam3d.preprocessing import object_inputs
from training.datasets import Batches
from training.flow.batches import FlowBatches, FlowStream, example, mirrored, occupancy, true_pose, views
from training.flow.samples import OCCUPANCY


@pytest.fixture(scope="module")
def source(flow_config, flow_folder):
    return FlowBatches(flow_folder, flow_config[1], 4, 0, 8)


@pytest.fixture
def row(source):
    return {name: store[3] for name, store in source.stores.items()}


def silhouette(points, K, shape):
    """Pixels that points (N, 3) of the optical frame project to."""
    pixels = points @ K.astype(np.float64).T
    columns, rows = np.rint(pixels[:, :2] / pixels[:, 2:]).astype(int).T
    inside = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
    image = np.zeros(shape, bool)
    image[rows[inside], columns[inside]] = True
    return image


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def solid(row):
    return voxel_centers(np.argwhere(occupancy(row["occupancy"], OCCUPANCY)[0, 0].numpy() > 0))


@pytest.mark.parametrize("with_points", [True, False])
@pytest.mark.parametrize("window", ["true_mask", "degraded_mask"])
def test_the_decoded_target_covers_the_mask(row, flow_config, with_points, window):
    """Latents, decoded as the pipeline decodes what it sampled, put the solid onto the object's pixels."""
    batch = example(row, flow_config[1], row["true_mask"], row[window], with_points)
    latents = {name.removeprefix("pose."): x.double().numpy() for name, x in batch.items() if name.startswith("pose.")}
    assert ("pointmap" in batch) == with_points
    pose = true_pose(row)
    moments = scene_moments(row, flow_config[1], window, with_points)
    (decoded,) = decode_poses(latents, *moments)
    points = turn(decoded.to_camera(solid(row)))
    assert iou(silhouette(points, row["K"], row["true_mask"].shape), row["true_mask"] > 0) > 0.9
    np.testing.assert_allclose(decoded.rotation, pose.rotation, atol=1e-5)
    if with_points:
        np.testing.assert_allclose(decoded.position, pose.position, atol=1e-4)
        assert decoded.scale == pytest.approx(row["size"].max(), rel=1e-4)
    else:  # only their ratio can be known
        assert decoded.scale / decoded.position[2] == pytest.approx(row["size"].max() / row["position"][2], rel=1e-4)


def scene_moments(row, model, window, with_points):
    """Scale and shift, (1, 3) each, that the pipeline normalises by."""
    K = row["K"].astype(np.float64)
    scene = (
        pointmap_from_depth(row["depth"], K)
        if with_points
        else prior_pointmap(row[window], K, model.preprocess.prior_size_m)
    )
    inputs = object_inputs(None, torch.tensor(np.array(row[window]))[None], [scene.points], None, model.encoder.size)
    return inputs.pointmap_scale.double().numpy(), inputs.pointmap_shift.double().numpy()


def test_the_solid_touches_the_cube_and_its_longest_side_is_the_objects(row):
    """The decoder's cube is as large as the object's box, so that the scale is the object's size."""
    cells = np.argwhere(occupancy(row["occupancy"], OCCUPANCY)[0, 0].numpy() > 0)
    extent = np.ptp(cells, axis=0) + 1
    assert extent.max() >= OCCUPANCY - 4
    np.testing.assert_allclose(extent / extent.max(), row["size"] / row["size"].max(), atol=0.07)


def test_a_mirrored_case_is_a_case(row):
    """Its solid lies on its mask, its rotation is one, and mirrored twice it is what it was."""
    mirror = mirrored(row)
    assert np.linalg.det(mirror["rotation"]) == pytest.approx(1, abs=1e-5)
    points = turn(true_pose(mirror).to_camera(solid(mirror)))
    assert iou(silhouette(points, mirror["K"], mirror["true_mask"].shape), mirror["true_mask"] > 0) > 0.9
    assert not np.array_equal(mirror["true_mask"], row["true_mask"])
    for name, value in mirrored(mirror).items():
        np.testing.assert_allclose(value, row[name], atol=1e-4)


def test_processes_share_the_batch_that_one_would_make(source):
    whole, parts = source(5), [source.share(5, rank, 2) for rank in range(2)]
    for rank, part in enumerate(parts):
        for name, x in part.items():
            torch.testing.assert_close(x, whole[name][rank::2], rtol=0, atol=0, equal_nan=True)


def test_pointmaps_are_missing_now_and_then_from_whole_batches(flow_config, flow_folder):
    source = FlowBatches(flow_folder, flow_config[1], 1, 0, 8)
    seen = ["pointmap" in source(step) for step in range(40)]
    assert 0 < seen.count(False) < 15


def test_both_frames_are_cut_by_one_window(row, flow_config):
    """The frame that the teacher sees must lie on the student's pixel for pixel; the masks may differ."""
    still = {**row, "blurry": row["sharp"]}
    batch = example(still, flow_config[1], row["true_mask"], row["degraded_mask"])
    for name in ("image", "rgb_image"):
        assert torch.equal(batch[f"sharp.{name}"], batch[f"blurry.{name}"])
    assert not torch.equal(batch["sharp.mask"], batch["blurry.mask"])
    assert set(views(batch, "blurry", without=("event_image", "rgb_event_image"))) == set(views(batch, "sharp"))


def test_samples_of_the_other_head_are_refused(flow_folder):
    with pytest.raises(InputError, match="frames"):
        Batches(flow_folder, ModelConfig(), 2, 0, 4)


def test_a_stream_gives_such_batches_too(flow_config):
    config, model = flow_config
    with ThreadPoolExecutor(1) as pool:
        stream = FlowStream(config.data, model, 1, 0, pool)
        batch, held_out = stream(0), stream.held_out(0)
        for waiting in stream.waiting.values():
            for future in waiting:
                future.cancel()
    assert batch["sharp.image"].shape == held_out["blurry.event_image"].shape == (1, 3, 28, 28)
    assert batch["occupancy"].shape == (1, 1, 8, 8, 8) and not torch.equal(
        batch["sharp.image"], held_out["sharp.image"]
    )
