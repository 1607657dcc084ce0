"""ROS 2 nodes. The only folder that imports rclpy."""
