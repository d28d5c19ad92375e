"""The newest messages of the input topics, and the choice of those that belong together.

Messages stay serialised until a request needs them: a callback costs one append, and nothing is decoded
between requests. All five inputs begin with a std_msgs/Header, so the stamp is read from the first bytes.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from mask2iv_ros.image_messages import read_stamp

#: Bytes that the messages of one topic may take; the newest message is kept whatever its size.
MAX_BYTES = 256 * 1024**2


class Stamped(NamedTuple):
    """A serialised message and its header stamp, nanoseconds."""

    stamp: int
    data: bytes


class PerceptionBuffer:
    """Keeps the newest `size` messages a topic, or as many of them as `MAX_BYTES` hold."""

    def __init__(self, size: int):
        self.size = size
        self._topics: dict[str, deque[Stamped]] = {}

    def add(self, topic: str, serialised: bytes):
        """Store a message that was received on `topic`; the oldest ones beyond the limits are dropped."""
        messages = self._topics.setdefault(topic, deque(maxlen=self.size))
        messages.append(Stamped(read_stamp(serialised), serialised))
        while len(messages) > 1 and sum(len(message.data) for message in messages) > MAX_BYTES:
            messages.popleft()

    def newest(self, topic: str) -> Stamped | None:
        """Return the message of `topic` that was received last."""
        messages = self._topics.get(topic)
        return messages[-1] if messages else None

    def closest(self, topic: str, stamp: int) -> Stamped | None:
        """Return the message of `topic` whose stamp is closest to `stamp` (nanoseconds)."""
        return min(self._topics.get(topic, ()), key=lambda message: abs(message.stamp - stamp), default=None)

    def matching(
        self, reference: str, others: list[str], tolerance: int, not_before: int = 0
    ) -> tuple[dict[str, Stamped], int]:
        """Choose one message a topic so that their stamps are close and they are new.

        The spread of a set is the largest distance of a stamp from the reference's. Of sets with a spread up
        to `tolerance`, that with the smallest sum of its age and twice its spread is chosen: a mask that
        comes late is matched with its own image, but a good fit is no reason to act on an old picture.

        Args:
            reference: the topic that the others are compared with; it must have a message.
            others: topics to match; those without any message are left out of the result.
            tolerance: nanoseconds.
            not_before: oldest stamp of the reference, nanoseconds; if all are older, the newest one is taken.

        Returns:
            The messages by topic, and their spread, nanoseconds. If no set is within `tolerance`, it is the
            set with the smallest spread.
        """
        candidates = [m for m in self._topics[reference] if m.stamp >= not_before] or [self.newest(reference)]
        newest = max(candidate.stamp for candidate in candidates)
        sets = []
        for candidate in candidates:
            found = {topic: self.closest(topic, candidate.stamp) for topic in others if self.newest(topic)}
            spread = max((abs(message.stamp - candidate.stamp) for message in found.values()), default=0)
            sets.append(({reference: candidate, **found}, spread))
        if close := [chosen for chosen in sets if chosen[1] <= tolerance]:
            return min(close, key=lambda chosen: newest - chosen[0][reference].stamp + 2 * chosen[1])
        return min(sets, key=lambda chosen: chosen[1])

    def span(self, topic: str) -> float:
        """Seconds between the oldest and the newest stamp that are kept."""
        stamps = [message.stamp for message in self._topics.get(topic, ())]
        return (max(stamps) - min(stamps)) / 1e9 if stamps else 0.0

    def clear(self, keep: str = ''):
        """Forget everything, but for the topic `keep`."""
        self._topics = {topic: kept for topic, kept in self._topics.items() if topic == keep}
