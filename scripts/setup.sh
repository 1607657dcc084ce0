#!/usr/bin/env bash
# From a fresh clone to a checkout that runs: system packages, .venv with pinned packages, colcon build, compiled kernels.
#
# Each step leaves a stamp in .venv/stamps: the checksum of what it was made from. A step runs again only if that
# changed, and an environment whose making was interrupted (it still holds .venv/incomplete) is made anew.
set -euo pipefail
cd "$(dirname "$0")/.."
# What a sourced ROS 2 or another environment left in this shell must not leak into ours.
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH LD_LIBRARY_PATH
PATH=:$PATH: PATH=${PATH//":$PWD/.venv/bin:"/:} PATH=${PATH#:} PATH=${PATH%:} # a base Python is looked for
export _ROS_WHEELS_BOOTSTRAP_COMPLETE=1 # the wheels' .pth file would start each Python twice

say() { echo "== $*"; }
die() { echo "setup: $*" >&2; exit 1; }

# --- Python and system packages -------------------------------------------------------------------------------------

# Prints the version of a Python that will do, as 3.11; fails for others and for names that only look like one.
python_version() {
  "$1" -c 'import sys; v = sys.version_info; print("%d.%d" % v[:2]); sys.exit(not (3, 10) <= v[:2] <= (3, 12))' 2>/dev/null
}

# True if virtual environments and extension modules can be made with this Python.
python_complete() {
  "$1" -c 'import ensurepip, os, sysconfig, venv
raise SystemExit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' 2>/dev/null
}

# Prints the newest Python that is complete, else the newest one (what it lacks is reported as system packages).
find_python() {
  local name usable=()
  for name in python3.12 python3.11 python3.10 python3; do
    python_version "$name" >/dev/null || continue
    if python_complete "$name"; then echo "$name"; return; fi
    usable+=("$name")
  done
  [ ${#usable[@]} -gt 0 ] && echo "${usable[0]}"
}

has_library() { { ldconfig -p 2>/dev/null || /sbin/ldconfig -p; } | grep -F "$1" >/dev/null; }

# Installs the Debian packages that the wheels and the build need, or names them.
system_packages() {
  local missing=() version
  version=$(python_version "$python")
  command -v cmake >/dev/null || missing+=(cmake)
  command -v make >/dev/null || missing+=(make)
  command -v g++ >/dev/null && command -v gcc >/dev/null || missing+=(g++)
  has_library libusb-1.0.so.0 || missing+=(libusb-1.0-0)
  has_library libgomp.so.1 || missing+=(libgomp1)
  python_complete "$python" || missing+=("python$version-venv" "python$version-dev")
  # The viewer's tests drive a browser. Elsewhere they are skipped where there is none.
  if [ "${CI:-}" = true ]; then command -v chromium >/dev/null || missing+=(chromium); fi
  [ ${#missing[@]} -eq 0 ] && return
  if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    say "installing system packages: ${missing[*]}"
    apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}" \
      >/dev/null || die "apt-get could not install: ${missing[*]}"
  else
    die "missing system packages: run 'sudo apt-get install ${missing[*]}', then this command again"
  fi
}

# --- Stamps ---------------------------------------------------------------------------------------------------------

contents() { find "$@" -type f -not -path '*/__pycache__/*' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum; }
names() { find "$@" -type f -not -path '*/__pycache__/*' | LC_ALL=C sort; }

# step NAME CHECKSUM FUNCTION: runs FUNCTION unless the stamp NAME holds CHECKSUM.
step() {
  local stamp=.venv/stamps/$1
  [ "$(cat "$stamp" 2>/dev/null)" = "$2" ] && return
  rm -f "$stamp"
  "$3"
  mkdir -p .venv/stamps
  echo "$2" >"$stamp"
}

# --- Steps ----------------------------------------------------------------------------------------------------------

# An environment is kept if it is complete, works, stands where it was made and is of the wanted Python.
environment_fits() {
  [ -x .venv/bin/python ] && [ ! -e .venv/incomplete ] || return 1
  [ "$(.venv/bin/python -c 'import sys; print(sys.prefix)' 2>/dev/null)" = "$PWD/.venv" ] || return 1
  grep -qF "$PWD/.venv" .venv/bin/activate || return 1
  [ -z "${PYTHON:-}" ] || [ "$(python_version .venv/bin/python)" = "$(python_version "$PYTHON")" ]
}

make_environment() {
  say "making .venv with $python ($(python_version "$python"))"
  rm -rf .venv build install
  mkdir .venv && touch .venv/incomplete
  "$python" -m venv .venv
}

install_packages() {
  say "installing Python packages: several minutes, 3 GB (7 GB with CUDA); details in .venv/pip.log"
  touch .venv/incomplete
  rm -rf build install # made with other headers
  .venv/bin/python -m pip install --disable-pip-version-check --progress-bar off \
    -c "$constraints" -r requirements.txt -r requirements-ros.txt -r requirements-dev.txt 2>&1 \
    | tee .venv/pip.log | sed -nu -E 's/^ *(Downloading .*[0-9]{2}\.[0-9] MB.*)/   \1/p; s/^(Installing) .*/   \1/p' \
    || { rm .venv/incomplete; tail -n 20 .venv/pip.log >&2; die "pip could not install the packages"; }
  .venv/bin/python scripts/fix_ros_wheels.py
  rm .venv/incomplete
}

# Names the packages in interfaces/ that no ROS prefix has.
lacking_interfaces() {
  local package
  for package in interfaces/*/; do
    [ -e ".venv/share/ament_index/resource_index/packages/$(basename "$package")" ] || echo "${package%/}"
  done
}

build() {
  say "building messages and nodes"
  (
    set +u # colcon's scripts read variables that are not set
    . ./env.sh
    unset COLCON_PREFIX_PATH # an earlier build is no underlay of this one
    export AMENT_PREFIX_PATH="$VIRTUAL_ENV" CMAKE_PREFIX_PATH="$VIRTUAL_ENV"
    export MAKEFLAGS="-j$(nproc)"
    mapfile -t interfaces < <(lacking_interfaces)
    colcon build --merge-install --symlink-install --base-paths . "${interfaces[@]}" --cmake-args -DBUILD_TESTING=OFF
  ) || die "colcon build failed; its logs are in log/latest_build"
}

compile_kernels() {
  say "compiling the numba kernels"
  (
    set +u && . ./env.sh
    for folder in "${kernels[@]}"; do python -m "${folder//\//.}.warmup" || exit 1; done
  ) || die "the numba kernels do not compile"
}

[ "$(uname -m)" = x86_64 ] || die "the ROS 2 wheels exist for x86_64 only; on $(uname -m) install ROS 2 Jazzy, see README.md"
if environment_fits; then
  python=.venv/bin/python
else
  python=${PYTHON:-$(find_python)} || true
  [ -n "$python" ] || die "no Python 3.10, 3.11 or 3.12 found: install one, or name it: PYTHON=/path/to/python make build"
  python_version "$python" >/dev/null || die "PYTHON=$python is not a Python 3.10, 3.11 or 3.12"
fi
system_packages
environment_fits || make_environment
constraints=constraints/$(python_version .venv/bin/python).txt
step packages "$(contents requirements*.txt "$constraints" scripts/fix_ros_wheels.py | sha256sum)" install_packages
step build "$({ contents CMakeLists.txt package.xml msg interfaces scripts/executable.py.in .venv/stamps/packages
  names event_sam3d_ros config data launch weights; } | sha256sum)" build
kernels=(event_sam3d_ros/{events,camera,recordings})
step kernels "$(contents "${kernels[@]}" .venv/stamps/packages | sha256sum)" compile_kernels
