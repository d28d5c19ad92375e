"""Draws a plan as RViz shows it, without a screen: doc/images/plan_3d.png.

    . scripts/env.sh && python doc/plan_picture.py

Left the camera's image with the first and last masks, the object's way and the contact; right the depth image
as points in the camera optical frame, with the path and the contact point of the same plan. The plan is the
embedded model's for a simulated test scene.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mask2iv_ros.data.metaworld import FIRST_SEED, TASKS, record_clip
from mask2iv_ros.labels import ACTOR, OBJECT, overlay
from mask2iv_ros.pipelines import load_pipeline
from mask2iv_ros.planning.assess import Geometry, lift_plans
from mask2iv_ros.planning.generate import generate_plans
from mask2iv_ros.planning.motion import PHASE_NAMES
from mask2iv_ros.planning.path import pixel_rays, valid_depth
from mask2iv_ros.planning.request import GenerationRequest

SCENE, HEIGHT, WIDTH = 'drawer-open', 480, 640
COLOURS = {'approach': '#9a9a9a', 'interact': '#f2c12e', 'release': '#4878a8'}


def main() -> None:
    clip = record_clip(SCENE, FIRST_SEED['test'], HEIGHT, WIDTH, num_frames=2)
    frame, labels, depth, intrinsics = clip.frames[0], clip.labels[0], clip.depth[0], clip.camera.intrinsics
    request = GenerationRequest(
        frame, labels == OBJECT, labels == ACTOR, TASKS[SCENE].text, trajectory_only=True
    )
    plans = generate_plans(load_pipeline(), request)
    lift_plans(plans, Geometry(depth, intrinsics))
    (plan,) = plans
    motion, path = plan.motion, plan.path
    colours = [COLOURS[PHASE_NAMES[phase]] for phase in motion.phases]

    figure = Figure(figsize=(13, 5), layout='constrained')
    left = figure.add_subplot(1, 2, 1)
    left.imshow(
        overlay(
            overlay(frame, labels), np.where(plan.labels[-1] == OBJECT, np.uint8(OBJECT), np.uint8(0)), 0.25
        )
    )
    left.plot(*motion.position.T, color='white', linewidth=1)
    left.scatter(*motion.position.T, c=colours, s=14, zorder=3)
    if motion.contact_pixel is not None:
        left.scatter(*motion.contact_pixel, marker='x', c='black', s=60, zorder=4)
    left.set_axis_off()
    left.set_title(f'"{plan.task}": masks, the way of the object, x contact in frame {motion.contact_frame}')

    ys, xs = np.mgrid[0:HEIGHT:4, 0:WIDTH:4].reshape(2, -1)
    keep = valid_depth(depth[ys, xs]) & (depth[ys, xs] < 1.7 * np.median(depth[labels == OBJECT]))
    xs, ys = xs[keep], ys[keep]
    points = pixel_rays(np.stack((xs, ys), axis=1), intrinsics) * depth[ys, xs][:, None]
    right = figure.add_subplot(1, 2, 2, projection='3d', computed_zorder=False)
    # Matplotlib's z points up: the optical frame's x, z, -y are right, forward, up.
    right.scatter(points[:, 0], points[:, 2], -points[:, 1], c=frame[ys, xs] / 255, s=1.5)
    right.plot(path.points[:, 0], path.points[:, 2], -path.points[:, 1], color='red', linewidth=2)
    right.scatter(path.points[:, 0], path.points[:, 2], -path.points[:, 1], c=colours, s=22, depthshade=False)
    right.set(xlabel='x right, m', ylabel='z forward, m', zlabel='up, m (-y)')
    right.set_aspect('equal')
    right.view_init(elev=28, azim=-62)
    length = np.linalg.norm(np.diff(path.points, axis=0), axis=1).sum()
    right.set_title(f'path of {100 * length:.0f} cm, depth by {path.depth_model}')
    names = [name for name in COLOURS if COLOURS[name] in colours]
    for name in names:
        left.scatter([], [], c=COLOURS[name], label=name)
    left.legend(loc='lower right', framealpha=0.8)
    figure.savefig(Path(__file__).parent / 'images' / 'plan_3d.png', dpi=90)


if __name__ == '__main__':
    main()
