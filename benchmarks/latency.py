"""Where the time of one GenerateInteraction call goes, over real ROS 2 with the node in its own process.

    . scripts/env.sh && python benchmarks/latency.py

A camera publishes a scene with depth five times a second, of 640 x 480 pixels and then of 1280 x 720; a
client asks with an empty request. The node reports its own times in the plan; transport is what is left of
the client's round trip. Medians go to a table and, with every single run, to
benchmarks/results/latency_<device>.json.

`start-up`: seconds from the start of the node's process until it is ready, in turn `cold` (the embedded
weights are still to be unpacked) and `warm`, and the first call after a start.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import rclpy
from machine import processor_name
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from mask2iv_ros.ros.client import InteractionClient
from mask2iv_ros.ros.conversions import write_image

SIZES = ((640, 480), (1280, 720))  #: width and height of the images
KINDS = {
    'whole call': {},
    'with a goal': {'goal_pixel': (400.0, 300.0)},
    'trajectory only': {'trajectory_only': True},
}
MODEL_PARTS = ('trajectory', 'video')
PARTS = ('buffer', 'queue', 'preprocess', *MODEL_PARTS, 'message')
RESULTS = Path(__file__).parent / 'results'


def scene(width: int, height: int) -> dict[str, Image | CameraInfo]:
    """One image with a drawer-like object, a gripper above it, depth and calibration."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows / height, columns / width, (rows + columns) / (height + width)], axis=-1)
    unit, middle = height / 480, width / 2
    object_mask = (abs(rows - 280 * unit) < 60 * unit) & (abs(columns - middle) < 90 * unit)
    actor_mask = (rows < 230 * unit) & (abs(columns - middle) < 40 * unit)
    focal = 600.0 * unit
    k = [focal, 0, (width - 1) / 2, 0, focal, (height - 1) / 2, 0, 0, 1]
    return {
        'image': write_image(np.uint8(224 * image), 'rgb8'),
        'object_mask': write_image(np.uint8(object_mask), 'mono8'),
        'actor_mask': write_image(np.uint8(actor_mask), 'mono8'),
        'depth': write_image(np.full((height, width), 0.9, np.float32), '32FC1'),
        'camera_info': CameraInfo(width=width, height=height, k=k),
    }


@contextlib.contextmanager
def camera(messages: dict, rate: float = 5.0):
    """Publish the scene with fresh stamps, `rate` times a second, from a thread."""
    rclpy.init()
    node = rclpy.create_node('camera')
    publishers = {name: node.create_publisher(type(message), name, 5) for name, message in messages.items()}
    stop = threading.Event()

    def publish():
        while not stop.wait(1 / rate):
            header = Header(stamp=node.get_clock().now().to_msg(), frame_id='camera_optical_frame')
            for name, message in messages.items():
                message.header = header
                publishers[name].publish(message)

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        rclpy.shutdown()


def measure(client: InteractionClient, **fields) -> dict[str, float]:
    """Seconds of each part of one call."""
    time.sleep(1)  # the camera shares this process, which has just read an answer of 15 MB: let it catch up
    start = time.perf_counter()
    plan = client.generate(task='open the drawer', **fields)
    total = time.perf_counter() - start
    times = {part: getattr(plan.message, f'{part}_time') for part in PARTS}
    times['transport'] = total - sum(times.values())
    times['outside the model'] = total - sum(times[part] for part in MODEL_PARTS)
    times['total'] = total
    return times


@contextlib.contextmanager
def running_node(client: InteractionClient, command: list[str], cache: str):
    """The node in a process of its own; yields the seconds until it was ready."""
    start = time.perf_counter()
    node = subprocess.Popen(command, env={**os.environ, 'XDG_CACHE_HOME': cache})
    try:
        client.wait_until_ready(120)
        yield time.perf_counter() - start
    finally:
        node.send_signal(signal.SIGINT)
        node.wait(20)


def describe(runs: list[dict[str, float]]) -> dict:
    return {'median': {part: statistics.median(run[part] for run in runs) for part in runs[0]}, 'runs': runs}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--model', default='', help='folder of a model; empty: the embedded one')
    parser.add_argument('--device', default='cpu', help='cpu or cuda')
    parser.add_argument(
        '--runs', type=int, default=5, help='calls of each kind, after one that is not counted'
    )
    parser.add_argument('--output', type=Path, help='default: benchmarks/results/latency_<device>.json')
    options = parser.parse_args()

    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    parameters = ['-p', f'device:={options.device}']
    if options.model:
        parameters += ['-p', f'model:={options.model}']
    command = [sys.executable, '-m', 'mask2iv_ros.ros.node', '--ros-args', *parameters]
    starts = {'cold': [], 'warm': [], 'first call': []}
    with camera(scene(*SIZES[0])), InteractionClient() as client:
        for _ in range(options.runs):
            with tempfile.TemporaryDirectory() as cache:
                for kind in ('cold', 'warm'):
                    with running_node(client, command, cache) as seconds:
                        starts[kind].append(seconds)
                        if kind == 'warm':
                            starts['first call'].append(measure(client)['total'])
    calls = {}
    for width, height in SIZES:
        size = f'{width}x{height}'
        with (
            camera(scene(width, height)),
            InteractionClient() as client,
            tempfile.TemporaryDirectory() as cache,
            running_node(client, command, cache),
        ):
            calls[size] = {}
            for kind, fields in KINDS.items():
                measure(client, **fields)
                calls[size][kind] = describe([measure(client, **fields) for _ in range(options.runs)])
            model = client.generate(task='open the drawer', trajectory_only=True).message.model
        print(f'\nSeconds, median of {options.runs} calls of {model} on {options.device}, {size} pixels')
        print(f'{"":20}' + ''.join(f'{kind:>18}' for kind in KINDS))
        for part in calls[size]['whole call']['median']:
            row = (found['median'][part] for found in calls[size].values())
            print(f'{part:20}' + ''.join(f'{seconds:18.3f}' for seconds in row))
    start_up = {kind: {'median': statistics.median(found), 'runs': found} for kind, found in starts.items()}
    print('start-up: ' + ', '.join(f'{kind} {found["median"]:.1f} s' for kind, found in start_up.items()))
    output = options.output or RESULTS / f'latency_{options.device}.json'
    output.parent.mkdir(parents=True, exist_ok=True)
    report = {
        'model': model,
        'device': options.device,
        'cpu': processor_name(),
        'cpu_cores': len(os.sched_getaffinity(0)),
        'unit': 'seconds',
        'start-up': start_up,
        'calls': calls,
    }
    output.write_text(json.dumps(report, indent=1) + '\n')
    print(f'Written to {output}')


if __name__ == '__main__':
    main()
