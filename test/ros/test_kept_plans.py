"""What the node keeps for export is bounded in number and in bytes."""

import uuid

import numpy as np
import pytest
from unique_identifier_msgs.msg import UUID

from mask2iv_ros.msg import InteractionPlan
from mask2iv_ros.planning.request import Plan
from mask2iv_ros.ros.export import ExportError
from mask2iv_ros.ros.kept_plans import MAX_BYTES, KeptPlans


def answer(*seeds: int, pixels: int = 1) -> list[tuple[Plan, InteractionPlan]]:
    """Plans of 16 frames, whose memory is not touched."""
    return [
        (
            Plan(
                labels=np.zeros((16, 1, pixels), np.uint8),
                frames=np.zeros((16, 1, pixels, 3), np.uint8),
                task='',
                seed=seed,
                model_name='',
                score=0.0,
                score_meaning='',
                motion=None,
                fps=15.0,
            ),
            InteractionPlan(id=UUID(uuid=np.frombuffer(uuid.UUID(int=seed).bytes, np.uint8))),
        )
        for seed in seeds
    ]


def kept(plans: KeptPlans, seeds: range) -> list[int]:
    found = []
    for seed in seeds:
        try:
            ((plan_id, plan, _),) = plans.find([uuid.UUID(int=seed).bytes])
        except ExportError:
            continue
        assert plan_id == str(uuid.UUID(int=seed))
        found.append(plan.seed)
    return found


def test_the_oldest_answers_go_first_and_the_best_of_an_answer_last():
    plans = KeptPlans()
    plans.add(answer(1), None, 3)
    plans.add(answer(2, 3, 4), None, 3)
    assert kept(plans, range(6)) == [2, 3, 4]
    assert plans.find([])[0][1].seed == 2
    plans.add(answer(5), None, 3)
    assert kept(plans, range(6)) == [2, 3, 5]


def test_large_plans_are_bounded_by_their_bytes():
    plans = KeptPlans()
    large = MAX_BYTES // 3 // (16 * 4)  # three fit
    for seed in range(1, 6):
        plans.add(answer(seed, pixels=large), None, 100)
    assert kept(plans, range(6)) == [3, 4, 5]
    plans.add(answer(6, pixels=4 * large), None, 100)
    assert kept(plans, range(7)) == [6]  # too large, but the newest
    with pytest.raises(ExportError, match='1024 MiB'):
        plans.find([uuid.UUID(int=1).bytes])
