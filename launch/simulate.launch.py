"""The whole pipeline on a simulated scene, live: no camera and no recording needed."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

PACKAGE = "event_sam3d_ros"
# name: (default, type, description), as in the table of the node's parameters
SCENE = {
    "seed": ("0", int, "Seed of motion, light, background, noise."),
    "object": ("-1", int, "Which procedural object; -1: that of the seed."),
    "mesh": ("", str, "Mesh file in its place."),
    "motion": ("swing", str, "swing, circle or camera."),
    "speed": ("0.2", float, "Motion during the exposure, in sides of the object's crop."),
    "width": ("240", int, "Pixels; fewer are faster."),
    "height": ("180", int, "Pixels."),
    "occluder": ("false", bool, "A second object drifts before the first."),
    "pixels_per_sub_frame": ("2.0", float, "Larger is faster and coarser."),
}


def generate_launch_description():
    core = PathJoinSubstitution([FindPackageShare(PACKAGE), "launch", "reconstruct.launch.py"])
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, _, description) in SCENE.items()
    ]
    simulator = Node(
        package=PACKAGE,
        executable="simulator_node",
        name="simulator_node",
        parameters=[
            {name: ParameterValue(LaunchConfiguration(name), value_type=kind) for name, (_, kind, _) in SCENE.items()}
        ],
        output="screen",
    )
    return LaunchDescription([*arguments, IncludeLaunchDescription(core), simulator])
