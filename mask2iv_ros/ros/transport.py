"""How the processes of this package send and hear images."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from mask2iv_ros.resources import config_path


def use_large_shared_memory() -> None:
    """Have Fast DDS load `config/fastdds.xml`, unless the user chose a profile or another transport.

    Its default shared memory holds half a megabyte, less than one VGA image: on a busy machine most images
    and masks were lost. Call it before `rclpy.init`.
    """
    if 'FASTDDS_BUILTIN_TRANSPORTS' not in os.environ:
        os.environ.setdefault('FASTRTPS_DEFAULT_PROFILES_FILE', str(config_path('fastdds.xml')))


def offered_by_all(offers: Sequence[QoSProfile]) -> tuple[ReliabilityPolicy, DurabilityPolicy]:
    """The most that a subscription can ask of all publishers of a topic; of none, the least."""
    is_reliable = [offer.reliability == ReliabilityPolicy.RELIABLE for offer in offers]
    is_latched = [offer.durability == DurabilityPolicy.TRANSIENT_LOCAL for offer in offers]
    return (
        ReliabilityPolicy.RELIABLE if offers and all(is_reliable) else ReliabilityPolicy.BEST_EFFORT,
        DurabilityPolicy.TRANSIENT_LOCAL if offers and all(is_latched) else DurabilityPolicy.VOLATILE,
    )
