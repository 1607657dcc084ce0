"""Recordings of event cameras: files of all kinds read as one sequence of samples, rosbag2 and HDF5 written."""
