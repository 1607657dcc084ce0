"""Plays a rosbag2 through the pipeline, in the recording's time; everything ends with the recording."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, RegisterEventHandler, Shutdown
from launch.event_handlers import OnProcessExit
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

PACKAGE = "event_sam3d_ros"


def generate_launch_description():
    share = FindPackageShare(PACKAGE)
    bag = PathJoinSubstitution([share, "data", "demo_bag"])
    core = PathJoinSubstitution([share, "launch", "reconstruct.launch.py"])
    rviz_config = PathJoinSubstitution([share, "config", "replay.rviz"])
    player = Node(
        package=PACKAGE,
        executable="bag_player_node",
        name="bag_player_node",
        parameters=[
            {
                "bag": ParameterValue(LaunchConfiguration("bag"), value_type=str),
                "rate": ParameterValue(LaunchConfiguration("rate"), value_type=float),
                "loop": ParameterValue(LaunchConfiguration("loop"), value_type=bool),
                "wait_for_subscribers_s": 60.0,  # until the model is loaded
            }
        ],
        output="screen",
    )
    return LaunchDescription(
        [
            DeclareLaunchArgument("bag", default_value=bag, description="Folder of the rosbag2."),
            DeclareLaunchArgument("rate", default_value="1.0", description="Speed; 1.0 is real time."),
            DeclareLaunchArgument("loop", default_value="false", choices=["true", "false"], description="Start over."),
            DeclareLaunchArgument("use_sim_time", default_value="true", description="Take the time from the bag."),
            DeclareLaunchArgument(
                "rviz_config", default_value=rviz_config, description="What RViz shows (rviz:=true)."
            ),
            IncludeLaunchDescription(core),
            player,
            RegisterEventHandler(OnProcessExit(target_action=player, on_exit=[Shutdown(reason="the bag is over")])),
        ]
    )
