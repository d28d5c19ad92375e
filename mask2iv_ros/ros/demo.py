"""`mask2iv demo`: simulated camera, node and planner over real ROS 2, once through everything."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mask2iv_ros.data.episodes import open_dataset
from mask2iv_ros.data.metaworld import TASKS
from mask2iv_ros.labels import overlay
from mask2iv_ros.msg import InteractionPlan
from mask2iv_ros.pictures import plan_sheet, write_picture, write_video
from mask2iv_ros.ros.client import InteractionClient
from mask2iv_ros.ros.conversions import read_colour, read_labels
from mask2iv_ros.ros.node_process import NodeProcess
from mask2iv_ros.ros.transport import use_large_shared_memory


def run_demo(out: Path, scene: str, seed: int, task: str) -> None:
    """Plan on a simulated test scene over ROS 2 and leave pictures, a video and a LeRobot episode in `out`.

    Args:
        out: folder for the results.
        scene: Meta-World task that the camera sees.
        seed: index of the test scene.
        task: text to ask for; '' for what the scene is made for.

    Raises:
        ValueError: unknown scene.
        RuntimeError: a process ended, or the written episode is not the plan.
        TimeoutError: no answer in time.
        InteractionError: the node refused or failed.
    """
    if scene not in TASKS:
        raise ValueError(f'unknown scene {scene!r}; known: {", ".join(TASKS)}')
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')  # no false images for a real robot
    use_large_shared_memory()
    task = task or TASKS[scene].text
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    camera = ('sim_camera', {'scene': scene, 'seed': seed})
    node = ('node', {'dataset_root': out / 'datasets', 'max_age': 10.0})
    processes = []
    with contextlib.ExitStack() as stack:
        for module, parameters in (camera, node):
            log = out / f'{module}.log'
            print(f'starting {module}, log in {log}')
            processes.append(stack.enter_context(NodeProcess(module, parameters, log)))
        client = stack.enter_context(InteractionClient('/mask2iv'))
        wait(client.wait_until_ready, 900, processes)  # a node that has not ended is still loading
        print(f'asking for a plan: {task!r}')
        plan = request_plan(client, task, processes)
        report_plan(plan, out)
        path, episodes = client.export([plan], f'demo_{scene}', timeout=120)
    clip = open_dataset(path).read(episodes[0])
    if not np.array_equal(clip.labels, read_labels(plan.masks)):
        raise RuntimeError(f'the masks of episode {episodes[0]} in {path} are not those of the plan')
    print(
        f'LeRobot episode {episodes[0]} in {path}, read back: {len(clip)} frames of '
        f'{clip.frames.shape[2]}x{clip.frames.shape[1]}, task {clip.task!r}, masks equal to the plan'
    )


def wait(attempt: Callable, timeout: float, processes: list[NodeProcess]):
    """Repeat `attempt(seconds)` while it raises TimeoutError, and give up early if a process has ended."""
    end = time.monotonic() + timeout
    while True:
        for process in processes:
            process.check()
        try:
            return attempt(1.0)
        except TimeoutError:
            if time.monotonic() > end:
                raise


def request_plan(client: InteractionClient, task: str, processes: list[NodeProcess]) -> InteractionPlan:
    """Ask the action for one plan, with a progress bar."""
    with tqdm(total=100, unit='%', bar_format='{desc:12} {percentage:3.0f}% {bar} {elapsed}') as bar:

        def show(feedback):
            bar.set_description(feedback.stage, refresh=False)
            bar.update(100 * feedback.fraction - bar.n)

        return wait(client.generate_async(task=task, on_feedback=show).result, 600, processes)[0]


def report_plan(plan: InteractionPlan, out: Path) -> None:
    """Print what the plan says and write its pictures to `out`."""
    labels = read_labels(plan.masks)
    frames = np.stack([read_colour(message) for message in plan.video])
    fps = 1 / plan.masks.frame_period
    write_picture(out / 'contact_sheet.png', plan_sheet(labels, frames, plan.task))
    write_video(out / 'video.mp4', frames, fps)
    write_video(out / 'video.gif', frames, fps)
    write_video(out / 'mask_overlay.gif', overlay(frames, labels), fps)
    points = [pose.pose.position for pose in plan.object_path.poses]
    if points:
        first, last = ((round(p.x, 3), round(p.y, 3), round(p.z, 3)) for p in (points[0], points[-1]))
        print(f'object path in {plan.header.frame_id}: {first} m to {last} m, {len(points)} poses')
    print(f'contact in frame {plan.contact_frame}, score {plan.score:.2f} ({plan.score_meaning})')
    names = ('buffer', 'queue', 'preprocess', 'trajectory', 'video', 'message')
    print('seconds:', ', '.join(f'{name} {getattr(plan, f"{name}_time"):.2f}' for name in names))
    print(f'pictures: {out / "contact_sheet.png"}, {out / "video.gif"}, {out / "mask_overlay.gif"}')
