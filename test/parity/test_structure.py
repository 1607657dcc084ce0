"""Structure VAE, coordinates, preprocessing and poses against the reference values."""

import numpy as np
import pytest
import torch

from event_sam3d_ros.sam3d import coordinates, layout, pointmap, preprocessing, structure_vae


def state_dict_widths(state, pattern):
    """Widths of the VAE's stages, read from the first convolution of each stage's first block."""
    return [state[key].shape[0] for key in (pattern.format(i) for i in (0, 3, 6)) if key in state]


def test_decoder(case, assert_matches):
    state, inputs, outputs = case["state_dict"], case["inputs"], case["outputs"]
    decoder = structure_vae.StructureDecoder(
        state_dict_widths(state, "blocks.{}.conv1.weight"), state["input_layer.weight"].shape[1]
    )
    decoder.load_state_dict(state, strict=True)
    with torch.inference_mode():
        assert_matches(decoder(inputs["z"]), outputs["occ"], "occ")
    cube = structure_vae.tokens_to_grid(inputs["flat"])
    assert_matches(cube, outputs["cube"], "cube")
    assert torch.equal(structure_vae.grid_to_tokens(cube), inputs["flat"])


def test_encoder(case, assert_matches):
    state, outputs = case["state_dict"], case["outputs"]
    encoder = structure_vae.StructureEncoder(
        state_dict_widths(state, "blocks.{}.conv1.weight"), state["out_layer.2.weight"].shape[0] // 2
    )
    encoder.load_state_dict(state, strict=True)
    (occupancy,) = case["inputs"].values()
    with torch.inference_mode():
        mean, log_variance = encoder(occupancy.float())
    results = {"mean": mean, "logvar": log_variance, "z": mean, "latent": mean}
    assert outputs and outputs.keys() <= results.keys()
    for name, reference in outputs.items():
        assert_matches(results[name], reference, name)


@pytest.mark.parametrize("name", ["ss_decoder", "ss_encoder"])
def test_the_released_tensors_by_name_shape_and_type(name, manifest):
    with torch.device("meta"):
        model = {"ss_decoder": structure_vae.StructureDecoder, "ss_encoder": structure_vae.StructureEncoder}[name]()
    tensors = {k: (tuple(v.shape), str(v.dtype).removeprefix("torch.")) for k, v in model.state_dict().items()}
    assert tensors == manifest(name)


def test_coordinates(case, assert_matches):
    """Window partition and sparse downsampling, which the same cases hold, are the structured-latent stage's."""
    coords, outputs = case["inputs"]["coords"], case["outputs"]
    assert_matches(coordinates.prune_interior(coords), outputs["pruned"], "pruned")
    untouched, factor = coordinates.downsample(coords, 1, limit=len(coords))
    assert_matches(untouched, outputs["untouched"], "untouched")
    assert factor.tolist() == [outputs["factor_untouched"]]
    downsampled, factor = coordinates.downsample(coords, 1, limit=len(outputs["downsampled"]))
    assert_matches(downsampled, outputs["downsampled"], "downsampled")
    assert factor.tolist() == [outputs["factor"]]


def test_preprocessing(case, assert_matches):
    inputs, outputs = case["inputs"], case["outputs"]
    rgba = inputs["rgba"]
    points = pointmap.pointmap_from_points(inputs["points_opencv"].numpy(), metric=False).points
    assert_matches(points, outputs["pointmap_p3d"], "pointmap_p3d")
    # the same object twice, so that a batch is what is compared
    masks = rgba[..., 3].expand(2, -1, -1)
    results = preprocessing.object_inputs(rgba[..., :3], masks, [points, points], size=inputs["px"])
    without_map = preprocessing.object_inputs(rgba[..., :3], masks, size=inputs["px"])
    for stage, result in (("ss", results), ("slat", without_map)):
        for name, reference in outputs[stage].items():
            if name.endswith(("_scale", "_shift")):  # one scale and one shift serve crop and full frame
                value = getattr(result, name.removeprefix("rgb_"))
            else:
                value = result.views[name]
            assert_matches(value, reference.expand_as(value), f"{stage} {name}")
    assert without_map.views.keys() == outputs["slat"].keys() and without_map.pointmap_scale is None


def test_pose(case, assert_matches):
    for sample, reference in zip(case["inputs"], case["outputs"], strict=True):
        latents = {name: latent.numpy() for name, latent in sample["latents"].items()}
        (pose,) = layout.decode_poses(latents, sample["scene_scale"].numpy(), sample["scene_shift"].numpy())
        assert_matches(pose.position[None], reference["translation"], "translation")
        assert_matches(np.full((1, 3), pose.scale), reference["scale"], "scale")
        # the reference's matrices and quaternions act on row vectors
        matrix = np.eye(4)
        matrix[:3, :3], matrix[3, :3] = pose.scale * pose.rotation.T, pose.position
        assert_matches(matrix[None], reference["matrix"], "matrix")
        assert_matches(pose.rotation.T, rotation_matrix(reference["rotation"][0]), "rotation")
        points = sample["points"].double().numpy()
        assert_matches(pose.to_camera(points), reference["points_in_camera"], "points_in_camera")


def rotation_matrix(quaternion):
    """(w, x, y, z) -> (3, 3) matrix that turns column vectors."""
    w, x, y, z = quaternion.double().tolist()
    return torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
