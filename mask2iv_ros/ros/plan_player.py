"""Shows a plan on topics: its 3-D path at once, its masks and video once through at the plan's rate."""

from __future__ import annotations

import numpy as np
from nav_msgs.msg import Path
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from mask2iv_ros.msg import InteractionPlan
from mask2iv_ros.planning.request import Plan
from mask2iv_ros.ros.conversions import write_image
from mask2iv_ros.ros.plans import overlay_frame


class PlanPlayer:
    """Owns `~/plan`, `~/object_path`, `~/mask_overlay` and `~/video`; a newer plan ends the older."""

    def __init__(self, node: LifecycleNode):
        self._node = node
        self._timer = None
        # Not the node's clock: under `use_sim_time` it stands still while a recording is paused.
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)

        def publisher(kind, topic: str, qos: QoSProfile):
            options = QoSOverridingOptions.with_default_policies()
            return node.create_lifecycle_publisher(kind, topic, qos, qos_overriding_options=options)

        def latched() -> QoSProfile:  # a new one each time: overrides are written into it
            return QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)

        self._plan = publisher(InteractionPlan, '~/plan', latched())
        self._path = publisher(Path, '~/object_path', latched())
        self._overlay = publisher(Image, '~/mask_overlay', QoSProfile(depth=5))
        self._video = publisher(Image, '~/video', QoSProfile(depth=5))

    def play(self, plan: Plan, message: InteractionPlan, observed: np.ndarray):
        """Show a plan and its message; `observed` is the (H, W, 3) uint8 image it starts from."""
        self.stop()
        self._plan.publish(message)
        self._path.publish(message.object_path)
        indices = iter(range(len(plan.labels)))

        def show_next():
            index = next(indices, None)
            if index is None:
                self.stop()
                return
            header = Header(stamp=self._node.get_clock().now().to_msg(), frame_id=message.header.frame_id)
            if self._overlay.get_subscription_count():
                self._overlay.publish(write_image(overlay_frame(plan, observed, index), 'rgb8', header))
            if plan.frames is not None and self._video.get_subscription_count():
                self._video.publish(write_image(plan.frames[index], 'rgb8', header))

        self._timer = self._node.create_timer(message.masks.frame_period, show_next, clock=self._steady)

    def stop(self):
        """End the plan that plays, if one does."""
        if self._timer is not None:
            self._node.destroy_timer(self._timer)
            self._timer = None
