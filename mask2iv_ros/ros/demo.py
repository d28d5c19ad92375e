"""`mask2iv demo`: simulated camera, node and planner over real ROS 2, once through everything."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mask2iv_ros.data.lerobot import read_clips
from mask2iv_ros.data.metaworld import FIRST_SEED, TASKS
from mask2iv_ros.evaluation.pictures import plan_sheet, write_png, write_video
from mask2iv_ros.labels import overlay
from mask2iv_ros.msg import InteractionPlan
from mask2iv_ros.ros.client import InteractionClient
from mask2iv_ros.ros.conversions import read_colour


def run_demo(out: Path, scene: str, seed: int, task: str) -> None:
    """Plan on a simulated test scene over ROS 2 and leave pictures, a video and a LeRobot episode in `out`.

    Args:
        out: folder for the results.
        scene: Meta-World task that the camera sees.
        seed: index of the test scene.
        task: text to ask for; '' for what the scene is made for.

    Raises:
        ValueError: unknown scene.
        RuntimeError, TimeoutError: a process ended or did not get ready.
    """
    if scene not in TASKS:
        raise ValueError(f'unknown scene {scene!r}; known: {", ".join(TASKS)}')
    task = task or TASKS[scene].text
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    camera = ('sim_camera', {'task': scene, 'seed': FIRST_SEED['test'] + seed})
    node = ('node', {'dataset_root': out / 'datasets', 'max_age': 10.0})
    with contextlib.ExitStack() as stack:
        for module, parameters in (camera, node):
            print(f'starting {module}, log in {out / module}.log')
            stack.enter_context(ros_process(module, parameters, out / f'{module}.log'))
        client = stack.enter_context(InteractionClient('/mask2iv'))
        client.wait_until_ready(120)
        print(f'asking for a plan: {task!r}')
        plan = request_plan(client, task)
        report_plan(plan, out)
        path, episodes = client.export([plan], f'demo_{scene}', timeout=120)
    clip = next(read_clips(path, episodes=episodes))
    print(
        f'LeRobot episode {episodes[0]} in {path}, read back: {len(clip)} frames of '
        f'{clip.frames.shape[2]}x{clip.frames.shape[1]}, task {clip.task!r}, masks '
        f'{"equal" if np.array_equal(clip.labels, plan_labels(plan)) else "NOT EQUAL"} to the plan'
    )


@contextlib.contextmanager
def ros_process(module: str, parameters: dict, log: Path) -> Iterator[subprocess.Popen]:
    """Run `mask2iv_ros.ros.<module>` with parameters, and stop it at the end."""
    arguments = [f'{name}:={value}' for name, value in parameters.items()]
    command = [sys.executable, '-m', f'mask2iv_ros.ros.{module}', '--ros-args']
    command += [word for argument in arguments for word in ('-p', argument)]
    with log.open('w') as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=os.environ)
    try:
        yield process
        if process.poll() is not None:
            raise RuntimeError(f'{module} ended with status {process.returncode}; its log is {log}')
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()


def request_plan(client: InteractionClient, task: str) -> InteractionPlan:
    """Ask the action for one plan, with a progress bar."""
    with tqdm(total=100, unit='%', bar_format='{desc:12} {percentage:3.0f}% {bar} {elapsed}') as bar:

        def show(feedback):
            bar.set_description(feedback.stage, refresh=False)
            bar.update(100 * feedback.fraction - bar.n)

        return client.generate_async(task=task, on_feedback=show).result(timeout=600)[0]


def plan_labels(plan: InteractionPlan) -> np.ndarray:
    """The plan's (T, H, W) uint8 label images."""
    return np.stack([np.frombuffer(m.data, np.uint8).reshape(m.height, m.width) for m in plan.masks.frames])


def report_plan(plan: InteractionPlan, out: Path) -> None:
    """Print what the plan says and write its pictures to `out`."""
    labels = plan_labels(plan)
    frames = np.stack([read_colour(message) for message in plan.video])
    fps = 1 / plan.masks.frame_period
    write_png(out / 'contact_sheet.png', plan_sheet(labels, frames, plan.task))
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
