"""The plans that a node keeps for ExportDemonstration."""

from __future__ import annotations

import uuid
from collections import OrderedDict

from mask2iv_ros.msg import InteractionPlan
from mask2iv_ros.planning.request import Plan
from mask2iv_ros.ros.export import ExportError
from mask2iv_ros.ros.requests import Observation

#: Of labels and video. A plan of 16 frames of VGA size has 20 MB, one of 4 megapixels 270 MB.
MAX_BYTES = 2**30


class KeptPlans:
    """The newest plans by id, each with what it observed; of one answer, the best is the newest."""

    def __init__(self):
        self._plans: OrderedDict[bytes, tuple[Plan, Observation]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._plans)

    def add(self, plans: list[tuple[Plan, InteractionPlan]], observation: Observation, max_plans: int):
        """Keep an answer's plans, best first, and forget the oldest ones.

        At most `max_plans` and MAX_BYTES are kept, but the newest plan always is.
        """
        for plan, message in reversed(plans):
            self._plans[bytes(message.id.uuid)] = (plan, observation)
        while len(self._plans) > max_plans or (len(self._plans) > 1 and self._bytes() > MAX_BYTES):
            self._plans.popitem(last=False)

    def find(self, ids: list[bytes]) -> list[tuple[str, Plan, Observation]]:
        """Return the plans with these ids, or the newest for no ids. Raises ExportError UNKNOWN_PLAN."""
        ids = ids or list(self._plans)[-1:]
        if not ids:
            raise ExportError('UNKNOWN_PLAN', 'there is no plan yet; call generate_interaction first')
        for plan_id in ids:
            if plan_id not in self._plans:
                raise ExportError(
                    'UNKNOWN_PLAN',
                    f'{uuid.UUID(bytes=plan_id)} is none of the {len(self._plans)} plans that are kept (at '
                    f'most max_plans, a parameter of the node, and {MAX_BYTES >> 20} MiB)',
                )
        return [(str(uuid.UUID(bytes=plan_id)), *self._plans[plan_id]) for plan_id in ids]

    def clear(self):
        """Forget everything."""
        self._plans.clear()

    def _bytes(self) -> int:
        return sum(
            array.nbytes
            for plan, _ in self._plans.values()
            for array in (plan.labels, plan.frames)
            if array is not None
        )
