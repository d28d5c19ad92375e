"""Where the time of one GenerateInteraction call goes, over real ROS 2 with the node in its own process.

    . scripts/env.sh && python benchmarks/latency.py

A camera publishes a 640 x 480 scene with depth five times a second; a client asks with an empty request. The
node reports its own times in the plan; transport is what is left of the client's round trip. Medians go to a
table and, with every single run, to benchmarks/results/latency_<device>.json.

`start-up`: seconds from the start of the node's process until it is ready, in turn `cold` (the embedded
weights are still to be unpacked) and `warm`, and the first call after a start.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
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
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from mask2iv_ros.ros.client import InteractionClient
from mask2iv_ros.ros.conversions import write_image

HEIGHT, WIDTH = 480, 640
MODEL_PARTS = ('trajectory', 'video')
PARTS = ('buffer', 'queue', 'preprocess', *MODEL_PARTS, 'message')
RESULTS = Path(__file__).parent / 'results'


def scene() -> dict[str, Image | CameraInfo]:
    """One image with a drawer-like object, a gripper above it, depth and calibration."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    image = np.stack([rows / 2, columns / 3, (rows + columns) / 5], axis=-1).astype(np.uint8)
    object_mask = (abs(rows - 280) < 60) & (abs(columns - 320) < 90)
    actor_mask = (rows < 230) & (abs(columns - 320) < 40)
    return {
        'image': write_image(image, 'rgb8'),
        'object_mask': write_image(np.uint8(object_mask), 'mono8'),
        'actor_mask': write_image(np.uint8(actor_mask), 'mono8'),
        'depth': write_image(np.full((HEIGHT, WIDTH), 0.9, np.float32), '32FC1'),
        'camera_info': CameraInfo(width=WIDTH, height=HEIGHT, k=[600.0, 0, 319.5, 0, 600.0, 239.5, 0, 0, 1]),
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
    with camera(scene()), InteractionClient() as client:
        for _ in range(options.runs):
            with tempfile.TemporaryDirectory() as cache:
                for kind in ('cold', 'warm'):
                    with running_node(client, command, cache) as seconds:
                        starts[kind].append(seconds)
                        if kind == 'warm':
                            starts['first call'].append(measure(client)['total'])
        kinds = {'whole call': {}, 'trajectory only': {'trajectory_only': True}}
        results = {}
        with tempfile.TemporaryDirectory() as cache, running_node(client, command, cache):
            for name, fields in kinds.items():
                measure(client, **fields)
                results[name] = describe([measure(client, **fields) for _ in range(options.runs)])
            model = client.generate(task='open the drawer', trajectory_only=True).message.model

    print(
        f'\nSeconds, median of {options.runs} calls of {model} on {options.device}, {WIDTH} x {HEIGHT} pixels'
    )
    print(f'{"":20}' + ''.join(f'{name:>18}' for name in results))
    for part in results['whole call']['median']:
        print(f'{part:20}' + ''.join(f'{result["median"][part]:18.3f}' for result in results.values()))
    start_up = {kind: {'median': statistics.median(found), 'runs': found} for kind, found in starts.items()}
    print('start-up: ' + ', '.join(f'{kind} {found["median"]:.1f} s' for kind, found in start_up.items()))
    output = options.output or RESULTS / f'latency_{options.device}.json'
    output.parent.mkdir(parents=True, exist_ok=True)
    report = {
        'model': model,
        'device': options.device,
        'cpu': processor_name(),
        'cpu_cores': len(os.sched_getaffinity(0)),
        'image': [WIDTH, HEIGHT],
        'unit': 'seconds',
        'start-up': start_up,
        **results,
    }
    output.write_text(json.dumps(report, indent=1) + '\n')
    print(f'Written to {output}')


def processor_name() -> str:
    names = [line for line in Path('/proc/cpuinfo').read_text().splitlines() if line.startswith('model name')]
    return names[0].split(':', 1)[1].strip() if names else platform.machine()


if __name__ == '__main__':
    main()
