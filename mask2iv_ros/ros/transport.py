"""How the processes of this package send images."""

from __future__ import annotations

import os

from mask2iv_ros.resources import config_path


def use_large_shared_memory() -> None:
    """Have Fast DDS load `config/fastdds.xml`, unless the user chose a profile or another transport.

    Its default shared memory holds half a megabyte, less than one VGA image: on a busy machine most images
    and masks were lost. Call it before `rclpy.init`.
    """
    if 'FASTDDS_BUILTIN_TRANSPORTS' not in os.environ:
        os.environ.setdefault('FASTRTPS_DEFAULT_PROFILES_FILE', str(config_path('fastdds.xml')))
