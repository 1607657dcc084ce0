"""A DAVIS: events and frames from one sensor, on the topics of its driver; other arguments as in reconstruct."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.substitutions import PathJoinSubstitution
from launch_ros.substitutions import FindPackageShare

DEFAULTS = {
    "events_topic": "/event_camera/events",
    "image_topic": "/event_camera/image_raw",
    "camera_info_topic": "/event_camera/camera_info",
    "mask_topic": "/event_camera/mask",
    "depth_topic": "/event_camera/depth",
    "frame_clock": "sensor",  # libcaer_driver stamps images with sensor time, but event packets with the host's
}


def generate_launch_description():
    core = PathJoinSubstitution([FindPackageShare("event_sam3d_ros"), "launch", "reconstruct.launch.py"])
    preset = "Preset for this camera; the meaning is that of reconstruct.launch.py."
    defaults = [
        DeclareLaunchArgument(name, default_value=value, description=preset) for name, value in DEFAULTS.items()
    ]
    return LaunchDescription([*defaults, IncludeLaunchDescription(core)])
