"""What ``event-sam3d`` does, command by command.

Modules that take seconds to import (torch, numba) are imported by the functions that need them.
"""
