"""The whole pipeline: event_image_node and reconstruction_node. The presets beside this file include it."""

from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction, SetEnvironmentVariable
from launch.conditions import IfCondition, UnlessCondition
from launch.substitutions import EnvironmentVariable, EqualsSubstitution, LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

PACKAGE = "event_sam3d_ros"
EVENT_TYPES = [
    *("event_camera_msgs/msg/EventPacket", "event_array_msgs/msg/EventArray", "dvs_msgs/msg/EventArray"),
    *("prophesee_event_msgs/msg/EventArray", "dv_ros2_msgs/msg/EventArray"),
]
WINDOW_MODES = ["frame", "continuous", "count"]
BOOLEANS = ["true", "false"]
# Topics of the RViz configurations that move with the namespace.
RVIZ_TOPICS = [
    *("/reconstruction_node/points", "/reconstruction_node/markers", "/reconstruction_node/debug_image"),
    "/event_image_node/event_image",
]


def config_file(name):
    return PathJoinSubstitution([FindPackageShare(PACKAGE), "config", name])


def generate_launch_description():
    value = LaunchConfiguration
    declared = [
        argument("namespace", "", "Namespace of both nodes; topics without a leading slash move with it."),
        argument("events_topic", "/event_camera/events", "Event packets."),
        argument("image_topic", "/camera/image_raw", "RGB frames; of a compressed stream its full topic name."),
        argument("camera_info_topic", "/camera/camera_info", "Calibration that comes with each frame."),
        argument("mask_topic", "/camera/mask", "Label images with the stamps of the frames."),
        argument("depth_topic", "/camera/depth", "Depth; nothing has to be published there."),
        argument("event_type", EVENT_TYPES[0], "Type of the event messages.", EVENT_TYPES),
        argument("image_type", "raw", "sensor_msgs/Image or CompressedImage.", ["raw", "compressed"]),
        argument("depth_type", "image", "Image, PointCloud2 or no depth at all.", ["image", "points", "none"]),
        argument("input_mode", "fused", "What the network sees.", ["fused", "rgb", "events"]),
        argument("window_mode", "frame", "Windows around each frame, back to back, or of equal count.", WINDOW_MODES),
        argument("frame_clock", "host", "What stamps the frames: as the packets, or the sensor.", ["host", "sensor"]),
        argument("alignment", "none", "How events get to the RGB camera's pixels.", ["none", "homography", "depth"]),
        argument("calibration_file", "", "Both cameras (docs/cameras.md); empty: CameraInfo of both and /tf_static."),
        argument("event_camera_info_topic", "/event_camera/camera_info", "For alignment without a file."),
        argument("model", "nano", "Name of an installed model, or path of a .safetensors file."),
        argument("device", "auto", "Where the network runs: auto, cpu, cuda, cuda:1 ..."),
        argument("autostart", "true", "Configure and activate the nodes by themselves.", BOOLEANS),
        argument("use_sim_time", "false", "Take the time from /clock, as for recordings.", BOOLEANS),
        argument(
            "event_image_params",
            config_file("event_image_node.yaml"),
            "YAML with the other parameters of event_image_node; arguments of this file win.",
        ),
        argument(
            "reconstruction_params",
            config_file("reconstruction_node.yaml"),
            "YAML with the other parameters of reconstruction_node; arguments of this file win.",
        ),
        argument(
            "fastdds_profile",
            EnvironmentVariable("FASTRTPS_DEFAULT_PROFILES_FILE", default_value=config_file("fastdds_profile.xml")),
            "Transport profile of Fast DDS; this one does not lose large messages.",
        ),
        argument("rviz", "false", "Start RViz, where it is installed.", BOOLEANS),
        argument("rviz_config", config_file("live.rviz"), "What RViz shows."),
        argument("rviz_frame", "", "Fixed frame of RViz, the frame_id of the images; empty: camera_optical_frame."),
        argument("log_level", "info", "Least level that is logged.", ["debug", "info", "warn", "error"]),
    ]
    shared = {
        "autostart": ParameterValue(value("autostart"), value_type=bool),
        "use_sim_time": ParameterValue(value("use_sim_time"), value_type=bool),
    }
    image_names = ["camera/image_raw", "camera/image_raw/compressed"]
    camera_topics = [(name, value("image_topic")) for name in image_names]
    camera_topics += [("camera/camera_info", value("camera_info_topic"))]
    event_image_node = node(
        "event_image_node",
        [
            value("event_image_params"),
            {
                **shared,
                **{name: value(name) for name in ("event_type", "window_mode", "frame_clock", "alignment")},
                "calibration_file": ParameterValue(value("calibration_file"), value_type=str),
            },
        ],
        [
            ("event_camera/events", value("events_topic")),
            ("event_camera/camera_info", value("event_camera_info_topic")),
            ("camera/depth", value("depth_topic")),
            *camera_topics,
        ],
        condition=UnlessCondition(EqualsSubstitution(value("input_mode"), "rgb")),
    )
    reconstruction_node = node(
        "reconstruction_node",
        [
            value("reconstruction_params"),
            {
                **shared,
                # A file may be called 1e3 or true: without a type, launch would take it for a number or a bool.
                "model": ParameterValue(value("model"), value_type=str),
                **{name: value(name) for name in ("device", "input_mode", "image_type", "depth_type")},
            },
        ],
        [("camera/mask", value("mask_topic")), ("camera/depth", value("depth_topic")), *camera_topics],
    )
    profile = SetEnvironmentVariable("FASTRTPS_DEFAULT_PROFILES_FILE", value("fastdds_profile"))
    rviz = OpaqueFunction(function=start_rviz, condition=IfCondition(value("rviz")))
    return LaunchDescription([*declared, profile, event_image_node, reconstruction_node, rviz])


def start_rviz(context):
    """RViz as a node, or a sentence where there is none: the pipeline does not depend on it."""
    try:
        get_package_prefix("rviz2")
    except PackageNotFoundError:
        sentence = "rviz:=true, but there is no package rviz2 (apt install ros-$ROS_DISTRO-rviz2): started without it"
        return [LogInfo(msg=sentence)]
    value = LaunchConfiguration
    frame = value("rviz_frame").perform(context)
    # The right side of these is relative: it gets the node's namespace.
    remappings = [(topic, topic.removeprefix("/")) for topic in RVIZ_TOPICS]
    remappings += [("/camera/image_raw", value("image_topic")), ("/camera/mask", value("mask_topic"))]
    rviz = Node(
        package="rviz2",
        executable="rviz2",
        name="rviz2",
        namespace=value("namespace"),
        arguments=["-d", value("rviz_config"), *(["-f", frame] if frame else [])],
        parameters=[{"use_sim_time": ParameterValue(value("use_sim_time"), value_type=bool)}],
        remappings=remappings,
        output="screen",
    )
    return [rviz]


def argument(name, default, description, choices=None):
    return DeclareLaunchArgument(name, default_value=default, description=description, choices=choices)


def node(name, parameters, remappings, **options):
    return Node(
        package=PACKAGE,
        executable=name,
        name=name,
        namespace=LaunchConfiguration("namespace"),
        parameters=parameters,
        remappings=remappings,
        arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
        output="screen",
        **options,
    )
