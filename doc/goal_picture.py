"""Draws one scene with three goals, and what the embedded model makes of each: doc/images/goals.jpg.

    . scripts/env.sh && python doc/goal_picture.py

The goal is a pixel (cross); nothing else says where the block goes. The object's predicted mask is outlined.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from mask2iv_ros.data.metaworld import FIRST_SEED, record_clip
from mask2iv_ros.labels import ACTOR, OBJECT
from mask2iv_ros.pipelines import load_pipeline
from mask2iv_ros.planning.generate import generate_plans
from mask2iv_ros.planning.request import GenerationRequest

SCENE, SEED, HEIGHT, WIDTH = 'push-block-anywhere', FIRST_SEED['test'] + 1, 240, 320
GOALS = (150, 150), (215, 125), (235, 165)
SHOWN = 0, 5, 10, 15


def main() -> None:
    clip = record_clip(SCENE, SEED, HEIGHT, WIDTH, num_frames=2)
    frame, labels = clip.frames[0], clip.labels[0]
    pipeline = load_pipeline()
    figure = Figure(figsize=(2 * len(SHOWN), 1.5 * len(GOALS)), layout='constrained')
    axes = figure.subplots(len(GOALS), len(SHOWN))
    for row, goal in zip(axes, GOALS, strict=True):
        request = GenerationRequest(frame, labels == OBJECT, labels == ACTOR, goal_pixel=goal)
        (plan,) = generate_plans(pipeline, request)
        for axis, t in zip(row, SHOWN, strict=True):
            axis.imshow(plan.frames[t])
            axis.contour(plan.labels[t] == OBJECT, levels=[0.5], colors='yellow', linewidths=0.8)
            axis.plot(*goal, marker='x', color='white', markersize=7, markeredgewidth=1.5)
            axis.set_axis_off()
            if goal is GOALS[0]:
                axis.set_title(f'frame {t}', fontsize=8)
    figure.savefig(Path(__file__).parent / 'images' / 'goals.jpg', dpi=100, pil_kwargs={'quality': 80})


if __name__ == '__main__':
    main()
