"""How long a robot waits for a plan while it acts, over real ROS 2, and for what. Writes JSON.

    . scripts/env.sh && python benchmarks/replan_latency.py

Node, simulated robot and this client are processes of their own. Between two plans the robot moves somewhat.
Then the client does what `examples/execute_plans.py` does: it waits for images of the present state, asks for
one plan in masks, or for six and chooses one, and turns it into waypoints of the hand. Parts, in seconds:

* images: until frame, masks, depth and calibration of one stamp have come. The simulated robot draws `--rate`
  a second, in software, on the same cores as the model: more images a second make plans slower;
* model: as the node reports it;
* service: the rest of the request, which is messages, conversion and transport;
* rules: choosing, and waypoints.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import rclpy
from machine import processor_name

from mask2iv_ros.data.metaworld_execution import ExecutionScene
from mask2iv_ros.planning.arm_appearance import ArmAppearance
from mask2iv_ros.planning.rollout import Planned
from mask2iv_ros.ros.client import InteractionClient
from mask2iv_ros.ros.transport import use_large_shared_memory

sys.path.insert(0, str(Path(__file__).parents[1] / 'examples'))
from execute_plans import TopicRobot, service_planner

CAMERA, TASK = 'corner', 'close the door'
PARTS = ('images', 'model', 'service', 'rules', 'total')
STEPS_BETWEEN = 10  # of the robot, upwards and back in turn


class Client(InteractionClient):
    """Keeps its newest answer, and the seconds that it took."""

    def generate(self, **request):
        start = time.perf_counter()
        self.answer = super().generate(**request)
        self.seconds = time.perf_counter() - start
        return self.answer


@contextmanager
def process(module: str, *parameters: str):
    options = [option for text in parameters for option in ('-p', text)]
    running = subprocess.Popen([sys.executable, '-m', f'mask2iv_ros.ros.{module}', '--ros-args', *options])
    try:
        yield
    finally:
        running.terminate()
        try:
            running.wait(20)
        except subprocess.TimeoutExpired:
            running.kill()


def replan(robot: TopicRobot, policy: Planned, client: Client) -> dict[str, float]:
    """Seconds of each part of one plan."""
    start = time.perf_counter()
    seen = robot.observe(colour=True)
    observed = time.perf_counter()
    policy(seen, holding=False)
    end = time.perf_counter()
    model = client.answer.message.trajectory_time
    return {
        'images': observed - start,
        'model': model,
        'service': client.seconds - model,
        'rules': end - observed - client.seconds,
        'total': end - start,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--runs', type=int, default=10, help='plans a row, after one that is not counted')
    parser.add_argument('--samples', type=int, nargs='+', default=[1, 6])
    parser.add_argument('--poses', type=int, default=2200, help='of the arm, to learn how it looks')
    parser.add_argument('--rate', type=float, default=2.0, help='images a second')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--output', type=Path)
    options = parser.parse_args()
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    use_large_shared_memory()
    arm = ArmAppearance.fit(*ExecutionScene('pick-place', CAMERA).move_about(options.poses))
    rows = {}
    rclpy.init()
    with (
        process('node', f'device:={options.device}'),
        process('sim_robot', 'scene:=door-close', f'camera:={CAMERA}', f'rate:={options.rate}'),
        Client() as client,
    ):
        client.wait_until_ready(120)
        robot = TopicRobot(rclpy.create_node('replan_latency'))
        for samples in options.samples:
            policy = Planned(service_planner(client, robot, TASK, samples), arm, colour=True)
            runs = []
            for run in range(options.runs + 1):
                for _ in range(STEPS_BETWEEN):
                    robot.step(np.array((0.0, 0.0, (-1.0) ** run)), -1.0)
                runs.append(replan(robot, policy, client))
            runs = runs[1:]
            rows[f'{samples} samples'] = {
                'median': {part: statistics.median(run[part] for run in runs) for part in PARTS},
                'runs': runs,
            }
        model = client.answer.message.model
    rclpy.try_shutdown()
    print(f'Seconds, medians of {options.runs} plans of {model} on {options.device}, 320 x 240 pixels')
    for name, row in rows.items():
        print(f'{name:12}' + ''.join(f'{part:>10}{row["median"][part]:7.3f}' for part in PARTS))
    report = {'model': model, 'device': options.device, 'cpu': processor_name(), 'unit': 'seconds'}
    report |= {'cpu_cores': len(os.sched_getaffinity(0)), 'rate': options.rate, **rows}
    output = options.output or Path(__file__).parent / 'results' / f'replan_{options.device}.json'
    output.write_text(json.dumps(report, indent=1) + '\n')


if __name__ == '__main__':
    main()
