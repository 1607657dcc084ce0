"""Events: packets in, windows and images out. Needs numpy and numba, no torch and no ROS."""
