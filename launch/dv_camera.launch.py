"""An iniVation camera, an AEDAT4 file or a dv network stream through the pipeline; the rest as in reconstruct."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

PACKAGE = "event_sam3d_ros"
DEFAULTS = {
    "events_topic": "/event_camera/events",
    "image_topic": "/event_camera/image_raw",
    "camera_info_topic": "/event_camera/camera_info",
    "mask_topic": "/event_camera/mask",
    "depth_topic": "/event_camera/depth",
}
# Parameters of dv_camera_node: default, type and description.
SOURCE = {
    "source": ("camera", str, "Where the data come from: camera, file or network."),
    "camera": ("", str, "Serial number; empty takes the first camera that is found."),
    "file": ("", str, "AEDAT4 file, for source:=file."),
    "rate": ("1.0", float, "Speed of a file; 1.0 is real time."),
    "loop": ("false", bool, "Start a file again at its end."),
    "restamp": ("true", bool, "Move a file's times so that it begins now."),
    "address": ("127.0.0.1", str, "IP address of the sender, for source:=network."),
    "events_port": ("7777", int, "Its TCP port for events; 0 for none."),
    "frames_port": ("0", int, "Its TCP port for frames; 0 for none."),
    "imu_port": ("0", int, "Its TCP port for the IMU; 0 for none."),
    "frame_id": ("event_camera", str, "Optical frame of events and images."),
    "camera_info_file": ("", str, "Calibration as ROS's camera_calibration writes it."),
}


def generate_launch_description():
    core = PathJoinSubstitution([FindPackageShare(PACKAGE), "launch", "reconstruct.launch.py"])
    preset = "Preset for this camera; the meaning is that of reconstruct.launch.py."
    declared = [
        DeclareLaunchArgument(name, default_value=value, description=preset) for name, value in DEFAULTS.items()
    ]
    declared += [
        DeclareLaunchArgument(name, default_value=value, description=description)
        for name, (value, _, description) in SOURCE.items()
    ]
    kinds = {name: kind for name, (_, kind, _) in SOURCE.items()} | {"autostart": bool}
    camera = Node(
        package=PACKAGE,
        executable="dv_camera_node",
        name="dv_camera_node",
        namespace=LaunchConfiguration("namespace"),
        parameters=[{name: ParameterValue(LaunchConfiguration(name), value_type=kind) for name, kind in kinds.items()}],
        remappings=[
            ("event_camera/events", LaunchConfiguration("events_topic")),
            ("event_camera/image_raw", LaunchConfiguration("image_topic")),
            ("event_camera/camera_info", LaunchConfiguration("camera_info_topic")),
        ],
        arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
        output="screen",
    )
    # The included file declares autostart, namespace and log_level, so the camera comes after it.
    return LaunchDescription([*declared, IncludeLaunchDescription(core), camera])
