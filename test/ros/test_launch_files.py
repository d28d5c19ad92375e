"""The launch files load and start what they promise; only where launch is installed (it is not on PyPI)."""

from pathlib import Path

import pytest

pytest.importorskip('launch_ros')

from launch.launch_description_sources import PythonLaunchDescriptionSource

import launch
from mask2iv_ros.ros.requests import INPUTS

FOLDER = Path(__file__).parents[2] / 'launch'
ARGUMENTS = {'params_file', 'namespace', 'model', 'device', 'autostart', 'log_level'}
DEMO_ARGUMENTS = {'scene', 'seed', 'rate', 'rviz'}


@pytest.mark.parametrize(('name', 'more'), [('mask2iv', {'use_sim_time'}), ('demo', DEMO_ARGUMENTS)])
def test_every_argument_has_a_default_and_a_description(name, more):
    source = PythonLaunchDescriptionSource(str(FOLDER / f'{name}.launch.py'))
    arguments = source.get_launch_description(launch.LaunchContext()).get_launch_arguments()
    assert {argument.name for argument in arguments} >= ARGUMENTS | set(INPUTS) | more
    assert all(argument.description and argument.default_value is not None for argument in arguments)


def test_arguments_reach_the_node_and_empty_ones_do_not(tmp_path):
    """Runs the launch file until the node has said what it was told."""
    expected = f'{tmp_path}/no_model has no model_index.json'
    output = []

    def listen(event):
        output.append(event.text.decode())
        return [launch.actions.Shutdown()] if expected in ''.join(output) else []

    description = launch.LaunchDescription(
        [
            launch.actions.IncludeLaunchDescription(
                PythonLaunchDescriptionSource(str(FOLDER / 'mask2iv.launch.py')),
                launch_arguments={
                    'model': str(tmp_path / 'no_model'),
                    'namespace': 'robot1',
                    'image': '/camera/colour',
                }.items(),
            ),
            launch.actions.RegisterEventHandler(
                launch.event_handlers.OnProcessIO(on_stdout=listen, on_stderr=listen)
            ),
            launch.actions.TimerAction(period=120.0, actions=[launch.actions.Shutdown()]),
        ]
    )
    service = launch.LaunchService(noninteractive=True)
    service.include_launch_description(description)
    assert service.run() == 0
    text = ''.join(output)
    assert expected in text
    assert '[robot1.mask2iv]' in text
    assert 'Traceback' not in text
