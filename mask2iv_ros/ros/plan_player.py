"""Shows a plan on topics: path and markers at once, masks and video once through at the plan's rate."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from nav_msgs.msg import Path
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from visualization_msgs.msg import MarkerArray

from mask2iv_ros.msg import InteractionPlan
from mask2iv_ros.planning.request import Plan
from mask2iv_ros.ros.conversions import write_image, write_jpeg
from mask2iv_ros.ros.markers import plan_markers
from mask2iv_ros.ros.plans import overlay_frame

OVERLAY, VIDEO = '~/mask_overlay', '~/video'


class PlanPlayer:
    """Owns the topics on which a plan is shown; a newer plan ends the older.

    Latched: `~/plan`, `~/object_path` and `~/markers`. Played: `~/mask_overlay` and `~/video`, each also as
    JPEG under `/compressed`; what nobody subscribes to is not made.
    """

    def __init__(self, node: LifecycleNode):
        self._node = node
        self._show_next = lambda: None
        # Not the node's clock: under `use_sim_time` it stands still while a recording is paused. One timer
        # for all plans: rclpy's callback group keeps a reference of each that was ever made.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = node.create_timer(1.0, lambda: self._show_next(), clock=steady)
        self.stop()

        def publisher(kind, topic: str, qos: QoSProfile):
            options = QoSOverridingOptions.with_default_policies()
            return node.create_lifecycle_publisher(kind, topic, qos, qos_overriding_options=options)

        def latched() -> QoSProfile:  # a new one each time: overrides are written into it
            return QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)

        self._plan = publisher(InteractionPlan, '~/plan', latched())
        self._path = publisher(Path, '~/object_path', latched())
        self._markers = publisher(MarkerArray, '~/markers', latched())
        self._pictures = {
            topic: [
                (publisher(Image, topic, QoSProfile(depth=5)), partial(write_image, encoding='rgb8')),
                (publisher(CompressedImage, f'{topic}/compressed', QoSProfile(depth=5)), write_jpeg),
            ]
            for topic in (OVERLAY, VIDEO)
        }

    def play(self, plan: Plan, message: InteractionPlan, observed: np.ndarray):
        """Show a plan and its message; `observed` is the (H, W, 3) uint8 image it starts from."""
        self.stop()
        self._plan.publish(message)
        self._path.publish(message.object_path)
        self._markers.publish(plan_markers(message))
        indices = iter(range(len(plan.labels)))

        def show_next():
            index = next(indices, None)
            if index is None:
                self.stop()
                return
            header = Header(stamp=self._node.get_clock().now().to_msg(), frame_id=message.header.frame_id)
            self._show(OVERLAY, lambda: overlay_frame(plan, observed, index), header)
            if plan.frames is not None:
                self._show(VIDEO, lambda: plan.frames[index], header)

        self._show_next = show_next
        self._timer.timer_period_ns = round(message.masks.frame_period * 1e9)
        self._timer.reset()

    def _show(self, topic: str, make_pixels: Callable[[], np.ndarray], header: Header):
        heard = [(out, write) for out, write in self._pictures[topic] if out.get_subscription_count()]
        if heard:
            pixels = make_pixels()
            for out, write in heard:
                out.publish(write(pixels, header=header))

    def stop(self):
        """End the plan that plays, if one does, and forget it."""
        self._timer.cancel()
        self._show_next = lambda: None
