"""The ROS 2 interfaces: generated, found wherever Python starts, documented by field."""

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mask2iv_ros import labels
from mask2iv_ros.action import GenerateInteraction as GenerateInteractionAction
from mask2iv_ros.msg import InteractionPlan, InteractionRequest, MaskTrajectory
from mask2iv_ros.srv import ExportDemonstration, GenerateInteraction

REPOSITORY = Path(__file__).parents[1]
FILES = sorted(path for kind in ('msg', 'srv', 'action') for path in (REPOSITORY / kind).iterdir())


def constants(path: Path) -> dict[str, int]:
    found = re.findall(r'^uint16 ([A-Z_]+)=(\d+) ', path.read_text(), re.MULTILINE)
    return {name: int(value) for name, value in found}


def test_service_and_action_have_the_same_error_codes():
    codes = constants(REPOSITORY / 'srv/GenerateInteraction.srv')
    assert list(codes.values()) == list(range(16))
    assert constants(REPOSITORY / 'action/GenerateInteraction.action') == codes
    for name, value in codes.items():
        assert getattr(GenerateInteraction.Response, name) == value
        assert getattr(GenerateInteractionAction.Result, name) == value


def test_service_and_action_have_the_same_request_and_result():
    request = GenerateInteraction.Request.get_fields_and_field_types()
    assert GenerateInteractionAction.Goal.get_fields_and_field_types() == request
    response = GenerateInteraction.Response.get_fields_and_field_types()
    assert GenerateInteractionAction.Result.get_fields_and_field_types() == response


def test_export_has_its_error_codes():
    codes = constants(REPOSITORY / 'srv/ExportDemonstration.srv')
    assert list(codes.values()) == list(range(7))
    for name, value in codes.items():
        assert getattr(ExportDemonstration.Response, name) == value


def test_label_values_are_those_of_the_python_package():
    for name in ('BACKGROUND', 'OBJECT', 'ACTOR', 'PART'):
        assert getattr(MaskTrajectory, name) == getattr(labels, name)


def test_an_empty_request_asks_for_defaults_only():
    request = InteractionRequest()
    assert not request.image.data
    assert not request.goal_pixel
    assert (request.task, request.num_samples, request.seed, request.num_inference_steps) == ('', 0, 0, 0)
    assert request.trajectory_only is False


def test_a_plan_has_no_contact_until_one_is_found():
    assert InteractionPlan().contact_frame == -1


@pytest.mark.parametrize('path', FILES, ids=lambda path: f'{path.parent.name}/{path.name}')
def test_every_field_has_a_comment(path):
    # A comment covers the lines that follow it up to the next empty one, or stands on the field's own line.
    for paragraph in re.split(r'\n\s*\n|^---$', path.read_text(), flags=re.MULTILINE):
        lines = paragraph.strip().splitlines()
        assert not lines or lines[0].startswith('#') or all('#' in line for line in lines), paragraph


@pytest.mark.parametrize('folder', [REPOSITORY, Path('/')])
def test_interfaces_are_found_from_anywhere(folder):
    code = 'import mask2iv_ros.labels, mask2iv_ros.msg as m; print(m.InteractionPlan().seed)'
    run = subprocess.run([sys.executable, '-c', code], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout == '0\n'


def install_space() -> Path:
    """Where this package is installed: the prefix in AMENT_PREFIX_PATH that has it."""
    prefixes = map(Path, os.environ['AMENT_PREFIX_PATH'].split(':'))
    return next(p for p in prefixes if (p / 'share/mask2iv_ros/package.xml').is_file())


@pytest.mark.parametrize('name', ['mask2iv', 'mask2iv_node', 'sim_camera'])
def test_executables_run_in_the_interpreter_that_the_build_found(name):
    executable = install_space() / 'lib/mask2iv_ros' / name
    assert os.access(executable, os.X_OK)
    interpreter = executable.read_text().splitlines()[0].removeprefix('#!')
    # Not of a shell's PATH: `ros2 run` must work where .venv is not active.
    assert Path(interpreter).samefile(sys.executable)


def test_launch_files_and_configuration_are_installed():
    share = install_space() / 'share/mask2iv_ros'
    for folder in ('launch', 'config'):
        here = {path.name for path in (REPOSITORY / folder).iterdir() if path.is_file()}
        assert here
        assert here <= set(os.listdir(share / folder))


def test_every_ros_package_that_is_imported_is_declared():
    sources = [*(REPOSITORY / 'mask2iv_ros/ros').glob('*.py'), *(REPOSITORY / 'launch').glob('*.py')]
    imports = {
        name
        for path in sources
        for name in re.findall(r'^\s*(?:from|import) (\w+)', path.read_text(), re.MULTILINE)
    }
    packages = {
        name for name in imports if re.fullmatch(r'(rclpy|launch|ament_)\w*|\w+_(msgs|interfaces)', name)
    }
    assert 'rclpy' in packages
    manifest = ElementTree.parse(REPOSITORY / 'package.xml').getroot()
    assert packages <= {element.text for element in manifest if element.tag.endswith('depend')}
