# shellcheck shell=bash disable=SC1091
# The environment of this checkout, for bash. Source it after `make setup`:  . scripts/env.sh
# Activates .venv, the ROS 2 that .venv was made for, and the install space of this package.

_mask2iv_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ ! -f "$_mask2iv_root/.venv/stamp" ] || [ ! -f "$_mask2iv_root/install/setup.bash" ]; then
    echo "$_mask2iv_root is not set up yet: run 'make setup'." >&2
    unset _mask2iv_root
    return 1
fi
. "$_mask2iv_root/.venv/bin/activate"
if [ -f "$_mask2iv_root/.venv/ros" ]; then
    # .venv lies over the ROS 2 that was sourced at set-up.
    . "$(cat "$_mask2iv_root/.venv/ros")/setup.bash"
else
    # ROS 2 from wheels. Nothing of another ROS 2 that this shell may have sourced may come first, and the wheels do
    # not set AMENT_PREFIX_PATH themselves. The last name is their mark of a process whose LD_LIBRARY_PATH is right.
    unset PYTHONPATH COLCON_PREFIX_PATH _ROS_WHEELS_BOOTSTRAP_COMPLETE
    export AMENT_PREFIX_PATH=$VIRTUAL_ENV CMAKE_PREFIX_PATH=$VIRTUAL_ENV
    LD_LIBRARY_PATH=$(tr ':' '\n' <<<"${LD_LIBRARY_PATH:-}" | grep -v '^/opt/ros/' | paste -sd :)
fi
. "$_mask2iv_root/install/setup.bash"
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH%:} # colcon may leave an empty entry, which means the working directory
# The source tree before the install space: a new module is found before the next build.
export PYTHONPATH=$_mask2iv_root:$PYTHONPATH
export MUJOCO_GL=${MUJOCO_GL:-osmesa}
export HF_HUB_OFFLINE=1
unset _mask2iv_root
