"""Observe, plan, move, and plan again when the hand is stuck: the loop of an episode, for any robot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from mask2iv_ros import labels as lb
from mask2iv_ros.planning.arm_appearance import ArmAppearance
from mask2iv_ros.planning.execution import (
    SAWYER,
    Gripper,
    HandController,
    HandMotion,
    Observation,
    Waypoint,
    plan_hand_motion,
)  # fmt: skip

MAX_REPLANS = 5  #: AVDC
MAX_STEPS = 500


class Robot(Protocol):
    """What the loop commands: `data.metaworld_execution.ExecutionScene` is one."""

    hand: np.ndarray
    opening: float
    success: bool

    def observe(self, colour: bool = False) -> Observation: ...

    def step(self, velocity: np.ndarray, grip: float): ...


@dataclass
class Rollout:
    success: bool
    steps: int
    motions: list[HandMotion] = field(default_factory=list)


def execute(
    robot: Robot,
    planner: Callable[[Observation], np.ndarray | None],
    arm: ArmAppearance,
    gripper: Gripper = SAWYER,
    colour: bool = False,
    max_steps: int = MAX_STEPS,
    on_step: Callable[[int], None] | None = None,
    on_plan: Callable[[Observation, np.ndarray | None, HandMotion], None] | None = None,
) -> Rollout:
    """Play an episode until the robot's environment says success, or steps are out.

    Args:
        planner: from an observation to (T, H, W) label images, or None if it has no plan.
        colour: the planner needs RGB.
    """
    rollout, steps, grip = Rollout(False, 0), 0, -1.0
    controller = None
    while steps < max_steps and not robot.success:
        replan = controller is None or controller.done or controller.stuck
        if replan and len(rollout.motions) <= MAX_REPLANS:
            seen = robot.observe(colour)
            holding = grip > 0 and robot.opening > gripper.empty and bool(rollout.motions) and (
                rollout.motions[-1].kind in ('grasp', 'carry'))  # fmt: skip
            labels = None
            if ((seen.labels == lb.OBJECT) | (seen.labels == lb.PART)).any():
                labels = planner(seen)
            if labels is None:
                motion = HandMotion('none', [], 'there is no plan: the object is not to be seen')
            else:
                motion = plan_hand_motion(seen, labels, arm, gripper, holding)
            if not motion.waypoints:  # get out of the way and look again
                motion.waypoints.append(Waypoint(np.array((*seen.hand[:2], gripper.reach_high[2])), -1.0))
            rollout.motions.append(motion)
            if on_plan is not None:
                on_plan(seen, labels, motion)
            controller = HandController(motion)
        velocity, grip = controller.command(robot.hand)
        robot.step(velocity, grip)
        steps += 1
        if on_step is not None:
            on_step(steps)
    rollout.success, rollout.steps = bool(robot.success), steps
    return rollout
