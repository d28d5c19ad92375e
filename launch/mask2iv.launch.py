"""Starts the mask2iv node.

An empty value of `model`, `device`, `autostart` or `use_sim_time` keeps what `params_file` says.

    ros2 launch mask2iv_ros mask2iv.launch.py image:=/camera/color/image_raw object_mask:=/sam/mask
"""

import os

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchDescription

TOPICS = {
    'image': 'camera image',
    'object_mask': 'mask of the object to interact with',
    'actor_mask': 'mask of the robot or hand',
    'depth': 'depth image, registered to the camera image',
    'camera_info': 'calibration of the camera',
}
PARAMETERS = {
    'model': 'folder of the model',
    'device': 'auto, cpu, cuda or cuda:N',
    'autostart': 'true: configure and activate the node when it starts; false: do not',
    'use_sim_time': 'true: live in the time of /clock, of a simulator or `ros2 bag play --clock`',
}
SWITCHES = ('autostart', 'use_sim_time')


def start_node(context):
    given = {name: LaunchConfiguration(name).perform(context) for name in PARAMETERS}
    overrides = {name: value for name, value in given.items() if value}
    for name in set(SWITCHES) & set(overrides):
        overrides[name] = overrides[name].lower() in ('true', '1', 'yes')
    return [
        Node(
            package='mask2iv_ros',
            executable='mask2iv_node',
            name='mask2iv',
            namespace=LaunchConfiguration('namespace'),
            parameters=[LaunchConfiguration('params_file'), overrides],
            remappings=[(topic, LaunchConfiguration(topic)) for topic in TOPICS],
            arguments=['--ros-args', '--log-level', LaunchConfiguration('log_level')],
            output='screen',
            emulate_tty=True,
        )
    ]


def generate_launch_description():
    share = get_package_share_directory('mask2iv_ros')
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                'params_file',
                default_value=os.path.join(share, 'config', 'mask2iv.yaml'),
                description='YAML file of node parameters',
            ),
            DeclareLaunchArgument('namespace', default_value='', description='namespace of the node'),
            *(
                DeclareLaunchArgument(name, default_value='', description=f'{text}; empty: as in params_file')
                for name, text in PARAMETERS.items()
            ),
            *(
                DeclareLaunchArgument(name, default_value=name, description=f'topic of the {text}')
                for name, text in TOPICS.items()
            ),
            DeclareLaunchArgument(
                'log_level',
                default_value='info',
                choices=['debug', 'info', 'warn', 'error', 'fatal'],
                description='what the node prints',
            ),
            OpaqueFunction(function=start_node),
        ]
    )
