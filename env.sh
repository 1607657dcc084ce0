# Environment of this checkout: `. ./env.sh` in bash, zsh or sh (there from the root of the checkout) gives a shell in
# which python, event-sam3d, the nodes and the messages are found. A ROS 2 that was sourced before is set aside: its
# libraries and the ones of the wheels do not mix.

if [ -n "${BASH_VERSION:-}" ]; then
  eval '_esam_root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)'; _esam_shell=bash
elif [ -n "${ZSH_VERSION:-}" ]; then
  eval '_esam_root=${${(%):-%x}:A:h}'; _esam_shell=zsh
else
  _esam_root=$PWD; _esam_shell=sh
fi

if [ ! -x "$_esam_root/.venv/bin/python" ]; then
  echo "env.sh: no environment in $_esam_root/.venv: run 'make build' there first" >&2
  unset _esam_root _esam_shell
  return 1
fi

export VIRTUAL_ENV="$_esam_root/.venv"
for _esam_bin in "$_esam_root/install/lib/event_sam3d_ros" "$VIRTUAL_ENV/bin"; do
  case ":$PATH:" in *":$_esam_bin:"*) ;; *) export PATH="$_esam_bin:$PATH" ;; esac
done
unset PYTHONHOME PYTHONPATH

# The ROS 2 wheels form a ROS prefix inside the virtual environment. Their .pth file would start Python a second time to
# set the library path; the guard variable says that it is set.
export ROS_VERSION=2 ROS_PYTHON_VERSION=3 ROS_DISTRO=jazzy
export RMW_IMPLEMENTATION=rmw_fastrtps_cpp
export AMENT_PREFIX_PATH="$VIRTUAL_ENV" CMAKE_PREFIX_PATH="$VIRTUAL_ENV"
LD_LIBRARY_PATH="$VIRTUAL_ENV/lib"
for _esam_libs in "$VIRTUAL_ENV"/lib/python3.*/site-packages/ros_*.libs; do
  LD_LIBRARY_PATH="$LD_LIBRARY_PATH:$_esam_libs"
done
export LD_LIBRARY_PATH
export _ROS_WHEELS_BOOTSTRAP_COMPLETE=1

# Shared memory for large messages; the default transports lose them.
export FASTRTPS_DEFAULT_PROFILES_FILE="$_esam_root/config/fastdds_profile.xml"

# ROS writes logs and numba compiled kernels below HOME unless told; a container may have none that can be written.
if [ ! -w "${HOME:-/nonexistent}" ]; then
  export ROS_LOG_DIR="${ROS_LOG_DIR:-${TMPDIR:-/tmp}/event_sam3d_ros_log}"
  export NUMBA_CACHE_DIR="${NUMBA_CACHE_DIR:-${TMPDIR:-/tmp}/event_sam3d_ros_numba}"
fi

if [ -f "$_esam_root/install/setup.$_esam_shell" ]; then
  COLCON_CURRENT_PREFIX="$_esam_root/install"
  . "$_esam_root/install/local_setup.$_esam_shell"
  unset COLCON_CURRENT_PREFIX
fi
# The source tree comes first, so that edited Python code runs without another build.
export PYTHONPATH="$_esam_root${PYTHONPATH:+:$PYTHONPATH}"
unset _esam_root _esam_shell _esam_libs _esam_bin
