"""Observe, plan, move, and plan again when the hand is stuck: the loop of an episode, for any robot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    choose_plan,
    plan_hand_motion,
    random_hand_motion,
)

MAX_REPLANS = 5  #: AVDC
MAX_STEPS = 500  #: AVDC


class Robot(Protocol):
    """What the loop commands; `mask2iv_ros.data.metaworld_execution.ExecutionScene` is one."""

    hand: np.ndarray  #: (3,) metres
    opening: float  #: 0 closed to 1 open
    success: bool  #: the task is solved, by whoever can tell

    def observe(self, colour: bool = False) -> Observation: ...

    def step(self, velocity: np.ndarray, grip: float): ...


@dataclass
class Planned:
    """Hand motions from plans in masks.

    Attributes:
        planner: from an observation to plans to choose from, best first: (T, H, W) label images whose first
            is `observation.labels`. Empty where there is no plan.
        arm: how the robot looks to the camera; None if it has not learned that.
        colour: the planner needs `Observation.frame`.
        labels: the newest plan.
    """

    planner: Callable[[Observation], Sequence[np.ndarray]]
    arm: ArmAppearance | None
    gripper: Gripper = SAWYER
    colour: bool = False
    labels: np.ndarray | None = None

    def __call__(self, observation: Observation, holding: bool) -> HandMotion:
        plans = self.planner(observation)
        if not len(plans):
            self.labels = None
            return HandMotion('none', [], 'there is no plan')
        self.labels = plans[choose_plan(observation, plans, self.arm, self.gripper)]
        return plan_hand_motion(observation, self.labels, self.arm, self.gripper, holding)


@dataclass
class Random:
    """The floor: take the object from above and go somewhere."""

    rng: np.random.Generator
    gripper: Gripper = SAWYER
    colour: bool = False

    def __call__(self, observation: Observation, holding: bool) -> HandMotion:
        return random_hand_motion(observation, self.rng, self.gripper, holding)


@dataclass
class Rollout:
    """How an episode went: `steps` taken, and the motion of every plan with the step at which it began."""

    success: bool
    steps: int
    motions: list[HandMotion] = field(default_factory=list)
    started: list[int] = field(default_factory=list)


def execute(
    robot: Robot,
    policy: Planned | Random,
    max_steps: int = MAX_STEPS,
    on_step: Callable[[HandMotion], None] | None = None,
) -> Rollout:
    """Play an episode until the robot says success, or steps are out.

    A new plan is made when the hand is stuck or the motion done, `MAX_REPLANS` times. Where the object is not
    to be seen, or the plan shows nothing to do, the hand goes up, out of the way, to look again.
    """
    rollout, grip, controller = Rollout(False, 0), -1.0, None
    while rollout.steps < max_steps and not robot.success:
        again = controller is None or controller.done or controller.stuck
        if again and len(rollout.motions) <= MAX_REPLANS:
            seen = robot.observe(policy.colour)
            before = next((m.kind for m in reversed(rollout.motions) if m.kind != 'none'), '')
            holding = before in ('grasp', 'carry') and grip > 0 and robot.opening > policy.gripper.empty
            if lb.object_mask(seen.labels).any():
                motion = policy(seen, holding)
            else:
                motion = HandMotion('none', [], 'the object is not to be seen')
            if not motion.waypoints:
                above = np.array((*seen.hand[:2], policy.gripper.reach_high[2]))
                motion.waypoints.append(Waypoint(above, 1.0 if holding else -1.0, 0.03))
            rollout.motions.append(motion)
            rollout.started.append(rollout.steps)
            controller = HandController(motion)
        velocity, grip = controller.command(robot.hand)
        robot.step(velocity, grip)
        rollout.steps += 1
        if on_step is not None:
            on_step(controller.motion)
    rollout.success = bool(robot.success)
    return rollout
