"""RViz and Foxglove show topics that are there, and markers put the plan into space."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from geometry_msgs.msg import Point, PoseStamped, Vector3
from rclpy.qos import (
    DurabilityPolicy,
    QoSCompatibility,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
)
from visualization_msgs.msg import Marker

from mask2iv_ros.msg import FrameMotion, InteractionPlan, PlanCheck
from mask2iv_ros.ros.markers import CONTACT_COLOUR, PHASE_COLOURS, RED, plan_markers

CONFIG = Path(__file__).parents[2] / 'config'
IMAGE, COMPRESSED, INFO = (f'sensor_msgs/msg/{name}' for name in ('Image', 'CompressedImage', 'CameraInfo'))
MARKERS, PATH = 'visualization_msgs/msg/MarkerArray', 'nav_msgs/msg/Path'
RVIZ_TYPES = {'Camera': IMAGE, 'Image': IMAGE, 'MarkerArray': MARKERS, 'Path': PATH}


@pytest.fixture(scope='module')
def published(start_node, peer) -> dict[str, str]:
    """Type of each topic that the node or the simulated camera publishes."""
    start_node(autostart='false')
    start_node(module='sim_camera', width=64, height=48)
    names = ('/mask2iv/plan', '/camera_info')
    peer.spin_until(lambda: all(peer.node.count_publishers(name) for name in names), timeout=60)
    topics = dict(peer.node.get_topic_names_and_types())
    return {name: types[0] for name, types in topics.items() if peer.node.count_publishers(name)}


def test_rviz_shows_what_is_published_with_the_right_type(published):
    manager = yaml.safe_load((CONFIG / 'mask2iv.rviz').read_text())['Visualization Manager']
    displays = [display for display in manager['Displays'] if 'Topic' in display]
    assert len(displays) == 5
    for display in displays:
        kind = RVIZ_TYPES[display['Class'].removeprefix('rviz_default_plugins/')]
        assert published['/' + display['Topic']['Value']] == kind, display['Name']


def test_rviz_asks_for_what_publishers_offer(published, peer):
    """Latched topics are asked for as latched, or RViz, started after a plan, shows nothing of it."""
    manager = yaml.safe_load((CONFIG / 'mask2iv.rviz').read_text())['Visualization Manager']
    for topic in (display['Topic'] for display in manager['Displays'] if 'Topic' in display):
        (offer,) = peer.node.get_publishers_info_by_topic('/' + topic['Value'])
        asked = QoSProfile(
            depth=topic['Depth'],
            durability=DurabilityPolicy[topic['Durability Policy'].upper().replace(' ', '_')],
            reliability=ReliabilityPolicy[topic['Reliability Policy'].upper().replace(' ', '_')],
        )
        assert qos_check_compatible(offer.qos_profile, asked)[0] != QoSCompatibility.ERROR, topic
        assert asked.durability == offer.qos_profile.durability, topic


def test_rviz_places_every_pane():
    """What the window's state leaves out is stacked at the left; RViz has no default for the two flags."""
    content = yaml.safe_load((CONFIG / 'mask2iv.rviz').read_text())
    geometry = content['Window Geometry']
    assert geometry['Hide Left Dock'] is False
    assert geometry['Hide Right Dock'] is False
    displays = content['Visualization Manager']['Displays']
    panes = [display['Name'] for display in displays if display['Class'].endswith(('/Camera', '/Image'))]
    state = bytes.fromhex(geometry['QMainWindow State'])
    for name in panes + [panel['Name'] for panel in content['Panels']]:
        text = name.encode('utf-16-be')
        assert len(text).to_bytes(4) + text in state, name
    (camera,) = (display for display in displays if display['Class'].endswith('/Camera'))
    # Axes at the eye of the camera would hide the image.
    assert camera['Visibility'] == {'Value': True, 'Camera frame': False}
    assert {'Camera frame'} < {display['Name'] for display in displays}


def test_foxglove_shows_what_is_published_with_the_right_type(published):
    panels = json.loads((CONFIG / 'foxglove.json').read_text())['configById']
    kinds = {}
    for name, panel in panels.items():
        kinds |= {topic: {MARKERS, PATH} for topic in panel.get('topics', {})}
        if name.startswith('Image!'):
            kinds[panel['imageMode']['imageTopic']] = {IMAGE, COMPRESSED}
            kinds[panel['imageMode'].get('calibrationTopic', '/camera_info')] = {INFO}
        elif name.startswith('RawMessages!'):
            topic, field = panel['topicPath'].split('.')
            kinds[topic] = {'mask2iv_ros/msg/InteractionPlan'}
            assert field in InteractionPlan.get_fields_and_field_types()
        elif name.startswith('DiagnosticSummary!'):
            kinds[panel['topicToRender']] = {'diagnostic_msgs/msg/DiagnosticArray'}
    assert len(kinds) == 8
    for topic, expected in kinds.items():
        assert published[topic] in expected, topic


def test_the_foxglove_layout_places_every_panel_once():
    content = json.loads((CONFIG / 'foxglove.json').read_text())

    def leaves(tree) -> list[str]:
        if isinstance(tree, str):
            return [tree]
        assert set(tree) == {'direction', 'splitPercentage', 'first', 'second'}
        assert tree['direction'] in ('row', 'column')
        return leaves(tree['first']) + leaves(tree['second'])

    assert set(content) == {'configById', 'globalVariables', 'userNodes', 'playbackConfig', 'layout'}
    assert sorted(leaves(content['layout'])) == sorted(content['configById'])
    for name, panel in content['configById'].items():  # Lichtblick, its open successor, has another key
        assert panel.get('lichtblickPanelTitle') == panel.get('foxglovePanelTitle'), name
    assert {name.split('!')[0] for name in content['configById']} == {
        'Image',
        '3D',
        'RawMessages',
        'DiagnosticSummary',
    }


@pytest.fixture
def message() -> InteractionPlan:
    message = InteractionPlan(task='push', contact_frame=1)
    message.object_path.header.frame_id = 'camera'
    for i in range(3):
        pose = PoseStamped()
        pose.pose.position = Point(x=float(i))
        message.object_path.poses.append(pose)
    return message


def by_namespace(message: InteractionPlan) -> dict[str, list[Marker]]:
    first, *markers = plan_markers(message).markers
    assert first.action == Marker.DELETEALL  # what an earlier plan left
    assert len({marker.id for marker in markers}) == len(markers)
    assert {marker.header.frame_id for marker in markers} <= {'camera'}
    found = {}
    for marker in markers:
        found.setdefault(marker.ns, []).append(marker)
    return found


def rgb(colour) -> tuple[float, ...]:
    assert colour.a == 1
    return tuple(np.round((colour.r, colour.g, colour.b), 3).tolist())


def test_the_path_is_coloured_by_phase(message):
    message.motion = [FrameMotion(phase=phase) for phase in (0, 1, 2)]
    line, points = by_namespace(message)['path']
    assert (line.type, points.type) == (Marker.LINE_STRIP, Marker.SPHERE_LIST)
    for marker in (line, points):
        assert [point.x for point in marker.points] == [0, 1, 2]
        assert [rgb(colour) for colour in marker.colors] == [PHASE_COLOURS[phase] for phase in (0, 1, 2)]


def test_contact_normal_and_failed_checks_are_marked_where_they_are(message):
    message.contact_point = [Point(x=1.0, y=2.0, z=3.0)]
    message.support_normal = Vector3(y=-1.0)
    message.checks = [PlanCheck(name='workspace'), PlanCheck(name='jump', passed=True)]
    markers = by_namespace(message)
    (contact,), (normal,), (task,) = markers['contact'], markers['normal'], markers['task']
    assert contact.pose.position == message.contact_point[0]
    assert rgb(contact.color) == CONTACT_COLOUR
    assert [point.y for point in normal.points] == [0, -0.1]
    assert (task.text, rgb(task.color)) == ('push (fails: workspace)', RED)
    assert task.pose.position.x == 2


def test_a_plan_without_these_has_a_path_and_a_task_only(message):
    assert set(by_namespace(message)) == {'path', 'task'}


def test_a_plan_without_a_path_clears_the_markers():
    assert by_namespace(InteractionPlan(task='push')) == {}
