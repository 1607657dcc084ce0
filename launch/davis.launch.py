"""A DAVIS: events and frames from one sensor, on the topics of its driver; other arguments as in reconstruct."""

from launch import LaunchDescription
from launch.actions import IncludeLaunchDescription
from launch.substitutions import PathJoinSubstitution
from launch_ros.substitutions import FindPackageShare

ARGUMENTS = {
    "events_topic": "/event_camera/events",
    "image_topic": "/event_camera/image_raw",
    "camera_info_topic": "/event_camera/camera_info",
    "mask_topic": "/event_camera/mask",
}


def generate_launch_description():
    core = PathJoinSubstitution([FindPackageShare("event_sam3d_ros"), "launch", "reconstruct.launch.py"])
    return LaunchDescription([IncludeLaunchDescription(core, launch_arguments=ARGUMENTS.items())])
