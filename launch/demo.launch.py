"""Starts the mask2iv node, a simulated robot camera that it looks through, and RViz where it is installed.

Then ask for a plan, for example with

    ros2 service call /mask2iv/generate_interaction mask2iv_ros/srv/GenerateInteraction \
        "{request: {task: 'open the drawer'}}"
"""

import os

from ament_index_python.packages import PackageNotFoundError, get_package_prefix, get_package_share_directory
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.conditions import IfCondition
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchDescription

FORWARDED = ('params_file', 'namespace', 'model', 'device', 'autostart', 'log_level')


def has_rviz() -> str:
    try:
        get_package_prefix('rviz2')
    except PackageNotFoundError:
        return 'false'
    return 'true'


def generate_launch_description():
    share = get_package_share_directory('mask2iv_ros')
    node = os.path.join(share, 'launch', 'mask2iv.launch.py')
    defaults = {'params_file': os.path.join(share, 'config', 'mask2iv.yaml'), 'log_level': 'info'}
    return LaunchDescription(
        [
            DeclareLaunchArgument('scene', default_value='drawer-open', description='Meta-World task'),
            DeclareLaunchArgument('seed', default_value='0', description='number of the test scene'),
            DeclareLaunchArgument('rate', default_value='5.0', description='images a second'),
            DeclareLaunchArgument('rviz', default_value=has_rviz(), description='start RViz'),
            *(
                DeclareLaunchArgument(
                    name, default_value=defaults.get(name, ''), description='see mask2iv.launch.py'
                )
                for name in FORWARDED
            ),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(node),
                launch_arguments={name: LaunchConfiguration(name) for name in FORWARDED}.items(),
            ),
            Node(
                package='mask2iv_ros',
                executable='sim_camera',
                namespace=LaunchConfiguration('namespace'),
                parameters=[
                    {
                        'scene': LaunchConfiguration('scene'),
                        'seed': ParameterValue(LaunchConfiguration('seed'), value_type=int),
                        'rate': ParameterValue(LaunchConfiguration('rate'), value_type=float),
                    }
                ],
                output='screen',
            ),
            Node(
                package='rviz2',
                executable='rviz2',
                namespace=LaunchConfiguration('namespace'),
                arguments=['-d', os.path.join(share, 'config', 'mask2iv.rviz')],
                # Its camera display looks for the calibration outside of any namespace.
                remappings=[('/camera_info', 'camera_info')],
                condition=IfCondition(LaunchConfiguration('rviz')),
            ),
        ]
    )
