"""The network: condition stage, event fusion, geometry. Needs torch, nothing of ROS."""
