#!/usr/bin/env bash
# Sets this checkout up: system packages, Python 3.12, .venv with every pinned package and a ROS 2, and the install
# space. `make demo` and `make test` call it; a run that finds nothing to do takes about a second.
#
# Where a ROS 2 is sourced, .venv lies over it; where none is, ROS 2 Jazzy comes from PyPI into .venv. A .venv that
# lies over a ROS 2 keeps to it in later shells too, sourced or not. `make clean` starts anew.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
venv=$root/.venv
log=$root/log/setup.log
started=$SECONDS

exec 9<scripts/setup.sh
flock 9 # of two set-ups at a time the second waits, and then finds nothing to do

die() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}

progress() { # one line on how far the command is that writes the log
    local line
    line=$(tail -n 100 "$log" | grep -v WARNING | tail -n 1)
    case $line in
        'Installing collected'*) # pip says nothing while it unpacks
            line="$(find "$venv"/lib/python3*/site-packages -maxdepth 1 -name '*.dist-info' | wc -l) packages installed" ;;
    esac
    echo "${line#"${line%%[! ]*}"}"
}

step() { # step TITLE COMMAND...: runs the command into the log; prints its progress every ten seconds, and its time
    local title=$1 start=$SECONDS beat status=0
    shift
    mkdir -p "${log%/*}"
    echo "== $title" | tee -a "$log"
    while sleep 10; do printf '   %4d s  %.100s\n' $((SECONDS - start)) "$(progress)"; done 9<&- &
    beat=$!
    trap 'kill $beat 2>/dev/null' EXIT
    "$@" >>"$log" 2>&1 9<&- || status=$?
    kill $beat 2>/dev/null || true
    trap - EXIT
    if [ $status != 0 ]; then
        tail -n 40 "$log" >&2
        die "'$title' failed; all of its output is in $log"
    fi
    printf '   done in %d s\n' $((SECONDS - start))
}

# --- System packages -------------------------------------------------------------------------------------------------

install_system_packages() { # install_system_packages PACKAGE...
    local sudo=
    if [ "$(id -u)" != 0 ]; then
        sudo='sudo -n'
        if ! $sudo true 2>/dev/null; then
            die "missing system packages: $*" "Install them with:  sudo apt-get install -y $*" 'and run make again.'
        fi
    fi
    command -v apt-get >/dev/null || die "missing system packages (Debian's names): $*. Install them and run make again."
    echo "Installing missing system packages with apt-get: $*"
    step 'System packages: lists' $sudo apt-get update
    step 'System packages' $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
}

check_system_packages() {
    local missing=()
    command -v c++ >/dev/null && command -v cc >/dev/null || missing+=(g++)
    # The simulator renders with OSMesa where there is no GPU.
    PATH=$PATH:/sbin:/usr/sbin ldconfig -p | grep libOSMesa >/dev/null || missing+=(libosmesa6)
    if [ ${#missing[@]} != 0 ]; then install_system_packages "${missing[@]}"; fi
}

# --- Python 3.12 -----------------------------------------------------------------------------------------------------

base_python() { # prints the real interpreter behind $1, if it is a Python 3.12 that runs (a pyenv shim may not)
    "$1" -c 'import sys; print(sys._base_executable) if sys.version_info[:2] == (3, 12) else sys.exit(1)' 2>/dev/null
}

is_complete() { # it can make a virtual environment, and has the headers that the interfaces are compiled against
    "$1" -c 'import ensurepip, os, sysconfig, venv
os.stat(os.path.join(sysconfig.get_path("include"), "Python.h"))' 2>/dev/null
}

pythons_on_path() { type -aP python3.12 python3 python | grep -v "^$venv/" || true; }

python_candidates() {
    if [ -n "$ros" ]; then # it works with one interpreter only
        echo "$ros_python"
        return
    fi
    pythons_on_path
    local dir
    for dir in ${PYENV_ROOT:+"$PYENV_ROOT"} "$HOME/.pyenv" $(tr ':' '\n' <<<"$PATH" | sed -n 's#/shims$##p'); do
        ls "$dir"/versions/3.12*/bin/python3.12 2>/dev/null || true
    done
    ls "${UV_PYTHON_INSTALL_DIR:-${XDG_DATA_HOME:-$HOME/.local/share}/uv/python}"/*-3.12*/bin/python3.12 2>/dev/null || true
}

find_python() { # sets $python
    local candidate incomplete=
    while read -r candidate; do
        python=$(base_python "$candidate") || continue
        if is_complete "$python"; then return 0; fi
        incomplete=$python
    done < <(python_candidates)
    python=
    [ "${1-}" != again ] || return 1
    if [ "$incomplete" = /usr/bin/python3.12 ] || apt-cache show python3.12-venv >/dev/null 2>&1; then
        install_system_packages python3.12 python3.12-venv python3.12-dev
    elif command -v uv >/dev/null; then
        step 'Python 3.12, by uv' uv python install 3.12
    fi
    find_python again || die "no Python 3.12 with venv and headers was found${incomplete:+ ($incomplete lacks them)}." \
        'Install one, for this user alone, with:' \
        '  python3 -m venv ~/.uv && ~/.uv/bin/pip install uv && ~/.uv/bin/uv python install 3.12' \
        'and run make again.'
}

# --- ROS 2 -----------------------------------------------------------------------------------------------------------

sourced_ros() { # the underlay comes last; what lies in this checkout is our own
    tr ':' '\n' <<<"${AMENT_PREFIX_PATH:-}" | grep -v -e "^$root/" -e '^$' | tail -n 1 || true
}

find_ros() { # sets $ros, the prefix of the ROS 2 to use, e.g. /opt/ros/jazzy, and $ros_python; $ros empty: wheels
    ros=$(sourced_ros)
    if [ -z "$ros" ] && [ -f "$venv/ros" ]; then
        set +u # ROS 2's set-up files do not bear it
        . "$(cat "$venv/ros")/setup.bash"
        set -u
        ros=$(sourced_ros)
    fi
    if [ -n "$ros" ]; then
        local candidate
        while read -r candidate; do
            ros_python=$(base_python "$candidate") || continue
            if "$ros_python" -c 'import rclpy' 2>/dev/null; then return; fi
        done < <(pythons_on_path)
        echo "The ROS 2 in $ros is not one for Python 3.12; ROS 2 Jazzy comes from PyPI."
        ros=
    fi
    unset PYTHONPATH COLCON_PREFIX_PATH AMENT_PREFIX_PATH CMAKE_PREFIX_PATH _ROS_WHEELS_BOOTSTRAP_COMPLETE
}

# The wheels' CMake files name the include directories of the machine that built them, and CMake stops at a directory
# that does not exist. This is the one place that puts it right; the wheels come from one build, with one such Python.
fix_wheels() {
    local python_include numpy_include
    python_include=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    numpy_include=$("$venv/bin/python" -c 'import numpy; print(numpy.get_include())')
    find "$venv/share" -name '*.cmake' -exec sed -i \
        -e "s#/opt/python/cp312-cp312/lib/python3.12/site-packages/numpy/_core/include#$numpy_include#g" \
        -e "s#/opt/python/cp312-cp312/include/python3.12#$python_include#g" {} +
}

# --- The two halves, each skipped when its inputs are as they were ----------------------------------------------------

hash_of() { sha256sum | cut -c1-64; }

make_venv() {
    local stamp
    stamp=$({ echo "$root" "$ros"; cat scripts/setup.sh setup.py constraints.txt; } | hash_of)
    if [ "$(cat "$venv/stamp" 2>/dev/null)" = "$stamp" ] && "$venv/bin/python" -c ''; then return; fi

    check_system_packages
    find_python
    echo "Python: $python"
    echo "ROS 2:  ${ros:-Jazzy, from PyPI}"
    # An environment of another place, interpreter or ROS 2 is of no use.
    local identity="$root $python $ros"
    if [ "$(cat "$venv/identity" 2>/dev/null)" != "$identity" ]; then
        rm -rf "$venv" build install
        step 'Virtual environment .venv' "$python" -m venv ${ros:+--system-site-packages} "$venv"
        touch "$venv/COLCON_IGNORE"
        if [ -n "$ros" ]; then echo "$ros" >"$venv/ros"; fi
        echo "$identity" >"$venv/identity"
    fi
    rm -f "$venv/stamp"
    if [ -n "$ros" ]; then
        grep -v '^ros-' constraints.txt >"$venv/packages.txt"
    else
        cp constraints.txt "$venv/packages.txt"
    fi
    # The list is complete, so nothing is left to resolve. Compiling all modules takes a minute; few are ever imported.
    step "$(grep -c '==' "$venv/packages.txt") Python packages (about 3 GB to download once)" \
        "$venv/bin/pip" install --disable-pip-version-check --progress-bar off --no-compile --no-deps -r "$venv/packages.txt"
    step 'mask2iv_ros, editable' \
        "$venv/bin/pip" install --disable-pip-version-check --no-deps --no-build-isolation -e .
    if [ -z "$ros" ]; then step 'Include directories of the ROS 2 wheels' fix_wheels; fi
    echo "$stamp" >"$venv/stamp"
}

colcon_build() (
    # With --symlink-install an edited file needs no build; a removed one would stay behind as a dangling link.
    if [ -d install ]; then find install -xtype l -delete; fi
    set +u
    . "$venv/bin/activate"
    if [ -z "$ros" ]; then export AMENT_PREFIX_PATH=$venv CMAKE_PREFIX_PATH=$venv; fi
    # Else colcon adds -l, with which make waits for other programs' load to fall.
    export MAKEFLAGS=-j$(nproc)
    colcon build --symlink-install --event-handlers console_direct+ --cmake-args "-DPython3_EXECUTABLE=$venv/bin/python" -DBUILD_TESTING=OFF
)

build() {
    local stamp
    stamp=$({
        cat "$venv/stamp" CMakeLists.txt package.xml scripts/executable.in msg/* srv/* action/*
        find mask2iv_ros weights config launch -type f -not -name '*.pyc' | sort
    } | hash_of)
    if [ "$(cat install/stamp 2>/dev/null)" = "$stamp" ]; then return; fi
    check_system_packages
    step 'Interfaces and install space (colcon build)' colcon_build
    echo "$stamp" >install/stamp
}

find_ros
make_venv
build
if [ $((SECONDS - started)) -gt 2 ]; then echo "Set-up done in $((SECONDS - started)) s."; fi
