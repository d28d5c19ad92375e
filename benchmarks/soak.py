"""Whether the node leaks: memory, threads and files of one real node process over hundreds of requests.

    . scripts/env.sh && python benchmarks/soak.py
    python test/tiny_model.py tiny/ && python benchmarks/soak.py --model tiny/   # in a tenth of the time

A camera publishes a small RGB-D scene all the time, and a viewer hears every topic that shows a plan.
Requests (two steps, every third with video) go through the service and the action in turn; every 20th comes
from a new client, every 25th is refused, every 40th cancelled at its first feedback, and every 50th is of a
process that is killed before it has its answer. Results: benchmarks/results/soak.json and soak.png.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
import rclpy
from latency import camera
from nav_msgs.msg import Path as PathMessage
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from visualization_msgs.msg import MarkerArray

from mask2iv_ros.msg import InteractionPlan
from mask2iv_ros.ros.client import InteractionClient, InteractionError
from mask2iv_ros.ros.conversions import write_image
from mask2iv_ros.ros.node_process import NodeProcess

HEIGHT, WIDTH = 120, 160
SHOWN = {
    'plan': InteractionPlan,
    'object_path': PathMessage,
    'markers': MarkerArray,
    'mask_overlay': Image,
    'video': Image,
    'video/compressed': CompressedImage,
}
RESULTS = Path(__file__).parent / 'results'
WARM_UP = 100  # requests until all that is kept on purpose is there: plans, answers, allocators' pools
ASK_AND_HANG = """
import sys
from mask2iv_ros.ros.client import InteractionClient
client = InteractionClient()
client.wait_until_ready()
fields = dict(task='open the drawer', trajectory_only=True, num_inference_steps=50)
client.generate_async(**fields, on_feedback=lambda _: print('asked', flush=True)).result()
"""


def scene() -> dict[str, Image | CameraInfo]:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    image = np.stack([rows, columns, (rows + columns) / 2], axis=-1).astype(np.uint8)
    object_mask = (abs(rows - 70) < 15) & (abs(columns - 80) < 22)
    actor_mask = (rows < 58) & (abs(columns - 80) < 10)
    return {
        'image': write_image(image, 'rgb8'),
        'object_mask': write_image(np.uint8(object_mask), 'mono8'),
        'actor_mask': write_image(np.uint8(actor_mask), 'mono8'),
        'depth': write_image(np.full((HEIGHT, WIDTH), 0.9, np.float32), '32FC1'),
        'camera_info': CameraInfo(width=WIDTH, height=HEIGHT, k=[150.0, 0, 79.5, 0, 150.0, 59.5, 0, 0, 1]),
    }


@contextlib.contextmanager
def viewer():
    """Hear what shows a plan, as RViz does; yields the number of messages of each topic."""
    heard = Counter()
    context = rclpy.Context()
    rclpy.init(args=[], context=context)
    node = rclpy.create_node('viewer', context=context)
    for topic, kind in SHOWN.items():
        count = lambda _, topic=topic: heard.update([topic])  # noqa: E731
        node.create_subscription(kind, f'/mask2iv/{topic}', count, 5, raw=True)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)

    def spin():
        with contextlib.suppress(ExternalShutdownException):
            executor.spin()

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        yield heard
    finally:
        context.try_shutdown()
        thread.join()


def sample(pid: int) -> dict[str, float]:
    """Resident memory, threads and open files of a process, as Linux tells them."""
    process = Path('/proc', str(pid))
    pages = int((process / 'statm').read_text().split()[1])
    return {
        'rss_mib': round(pages * os.sysconf('SC_PAGE_SIZE') / 2**20, 2),
        'threads': len(list((process / 'task').iterdir())),
        'files': len(list((process / 'fd').iterdir())),
    }


def ask(client: InteractionClient, number: int) -> str:
    """One request; returns what became of it."""
    if number % 50 == 0:
        with subprocess.Popen([sys.executable, '-c', ASK_AND_HANG], stdout=subprocess.PIPE) as process:
            said = process.stdout.readline()
            process.kill()
        return 'client killed' if said == b'asked\n' else 'client died before it asked'
    fields = {'task': 'open the drawer', 'trajectory_only': number % 3 != 0, 'num_inference_steps': 2}
    if number % 25 == 0:
        try:
            client.generate(**fields, goal_pixel=(-5, 0))
        except InteractionError as error:
            return f'refused: {error.name}'
    if number % 40 == 0:
        fields['num_inference_steps'] = 50
        try:
            client.generate_async(**fields, on_feedback=lambda _: client.cancel()).result(120)
            return 'answered before it was cancelled'
        except InteractionError as error:
            return error.name.lower()
    plan = client.generate(**fields) if number % 2 else client.generate_async(**fields).result(120)
    return 'answered' if plan.path is not None else 'answered without a path'


def soak(count: int, log: Path, parameters: dict) -> tuple[list[dict], Counter]:
    """One sample a request, of the node and of this process with its client; and what a viewer heard."""
    samples = []
    with (
        NodeProcess('node', {'device': 'cpu', 'max_age': 30.0, **parameters}, log) as node,
        camera(scene()),
        viewer() as heard,
    ):
        client = InteractionClient()
        client.wait_until_ready(600)
        for number in range(1, count + 1):
            if number % 20 == 0:
                client.close()
                client = InteractionClient()
                client.wait_until_ready(60)
            start = time.perf_counter()
            outcome = ask(client, number)
            seconds = round(time.perf_counter() - start, 3)
            here = {'outcome': outcome, 'seconds': seconds, 'client': sample(os.getpid())}
            samples.append({**here, **sample(node.process.pid)})
            if number % 20 == 0:
                print(number, samples[-1], flush=True)
        client.close()
    return samples, heard


def summarise(samples: list[dict]) -> dict:
    """First and last level, and the slope after the warm-up (least squares)."""
    late = samples[WARM_UP:]

    def levels(values: list[float]) -> dict[str, float]:
        slope = np.polyfit(np.arange(len(values)), values, 1)[0] if len(values) > 1 else float('nan')
        return {
            'after the warm-up': values[0],
            'at the end': values[-1],
            'least': min(values),
            'most': max(values),
            'slope in 100 requests': round(float(slope) * 100, 3),
        }

    outcomes = [entry['outcome'] for entry in samples]
    names = ('rss_mib', 'threads', 'files')
    return {
        'outcomes': {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))},
        'node': {name: levels([entry[name] for entry in late]) for name in names},
        'client process': {name: levels([entry['client'][name] for entry in late]) for name in names},
        'median seconds a request': float(np.median([entry['seconds'] for entry in samples])),
    }


def plot(samples: list[dict], path: Path):
    figure, (memory, counts) = plt.subplots(2, 1, figsize=(7, 5), sharex=True, layout='constrained')
    numbers = range(1, len(samples) + 1)
    memory.plot(numbers, [entry['rss_mib'] for entry in samples], label='node')
    memory.plot(
        numbers, [entry['client']['rss_mib'] for entry in samples], label='clients, camera and viewer'
    )
    memory.set_ylabel('resident memory, MiB')
    memory.set_ylim(0)
    memory.legend()
    counts.plot(numbers, [entry['threads'] for entry in samples], label='threads of the node')
    counts.plot(numbers, [entry['files'] for entry in samples], label='open files of the node')
    counts.set_ylim(0)
    counts.legend()
    counts.set_xlabel('requests')
    for axes in (memory, counts):
        for number in range(50, len(samples) + 1, 50):
            axes.axvline(number, color='0.85', zorder=0)  # a client was killed
    figure.savefig(path, dpi=80)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--requests', type=int, default=500)
    parser.add_argument('--model', default='', help='folder of a model; empty: the embedded one')
    parser.add_argument('--output', type=Path, default=RESULTS, help='folder for soak.json and soak.png')
    options = parser.parse_args()
    if options.requests <= WARM_UP:
        parser.error(f'--requests {options.requests}: more than the {WARM_UP} of the warm-up are needed')
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        parameters = {'model': options.model} if options.model else {}
        samples, heard = soak(options.requests, Path(folder, 'node.log'), parameters)
    report = {
        'requests': options.requests,
        'model': Path(options.model).name if options.model else 'mask2iv-sim',
        'seconds': round(time.perf_counter() - start),
        'image': [WIDTH, HEIGHT],
        'warm_up_requests': WARM_UP,
        'messages heard by a viewer': heard,
        **summarise(samples),
        'every 10th sample': samples[::10],
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / 'soak.json').write_text(json.dumps(report, indent=1) + '\n')
    plot(samples, options.output / 'soak.png')
    del report['every 10th sample']
    print(json.dumps(report, indent=1))


if __name__ == '__main__':
    main()
