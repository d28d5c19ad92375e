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
from mask2iv_ros.pictures import plan_sheet, write_picture, write_video
from mask2iv_ros.ros.client import InteractionClient
from mask2iv_ros.ros.node_process import NodeProcess
from mask2iv_ros.ros.received_plan import ReceivedPlan
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
    if not np.array_equal(clip.labels, plan.labels):
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


def request_plan(client: InteractionClient, task: str, processes: list[NodeProcess]) -> ReceivedPlan:
    """Ask the action for one plan, with a progress bar."""
    with tqdm(total=100, unit='%', bar_format='{desc:12} {percentage:3.0f}% {bar} {elapsed}') as bar:

        def show(feedback):
            bar.set_description(feedback.stage, refresh=False)
            bar.update(100 * feedback.fraction - bar.n)

        return wait(client.generate_async(task=task, on_feedback=show).result, 600, processes)


def report_plan(plan: ReceivedPlan, out: Path) -> None:
    """Print what the plan says and write its pictures to `out`."""
    message, fps = plan.message, 1 / plan.message.masks.frame_period
    write_picture(out / 'contact_sheet.png', plan_sheet(plan.labels, plan.video, message.task))
    write_video(out / 'video.mp4', plan.video, fps)
    write_video(out / 'video.gif', plan.video, fps)
    write_video(out / 'mask_overlay.gif', overlay(plan.video, plan.labels), fps)
    if plan.path is not None:
        first, last = (tuple(point.round(3).tolist()) for point in plan.path[[0, -1]])
        frame = message.object_path.header.frame_id
        print(f'object path in {frame}: {first} m to {last} m, {len(plan.path)} poses')
    print(f'contact in frame {plan.contact_frame}, score {message.score:.2f} ({message.score_meaning})')
    names = ('buffer', 'queue', 'preprocess', 'trajectory', 'video', 'message')
    print('seconds:', ', '.join(f'{name} {getattr(message, f"{name}_time"):.2f}' for name in names))
    print(f'pictures: {out / "contact_sheet.png"}, {out / "video.gif"}, {out / "mask_overlay.gif"}')
