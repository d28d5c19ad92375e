"""Mask2IV interaction video generation for robot learning.

`mask2iv_ros.ros` is the only sub-package that needs ROS 2; everything else imports without it.
"""

from pkgutil import extend_path

# The generated `msg`, `srv` and `action` modules live in the colcon install space. Extending the path lets
# a source checkout or a pip install find them there, instead of shadowing them.
__path__ = extend_path(__path__, __name__)

__version__ = '0.1.0'
