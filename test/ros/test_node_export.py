"""Plans become episodes that LeRobot itself reads; bad names, full disks and the like are named errors."""

import shutil
import subprocess

import numpy as np
import pytest
from unique_identifier_msgs.msg import UUID

from mask2iv_ros.msg import InteractionPlan
from mask2iv_ros.ros.client import InteractionError
from mask2iv_ros.ros.received_plan import ReceivedPlan
from ros_harness import set_parameter

NAMESPACE = ('unshare', '--user', '--map-root-user', '--mount')


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return tmp_path_factory.mktemp('export') / 'datasets'


@pytest.fixture(scope='module')
def small_disk(tmp_path_factory):
    """A mount point, and the command prefix under which it is a disk of 200 KiB."""
    point = tmp_path_factory.mktemp('disk')
    mount = f'mount -t tmpfs -o size=200k tmpfs {point}'
    if (
        not shutil.which('unshare')
        or subprocess.run([*NAMESPACE, 'sh', '-c', mount], capture_output=True).returncode
    ):
        return None, ()
    return point, (*NAMESPACE, 'sh', '-c', f'{mount} && exec "$@"', 'node')


@pytest.fixture(scope='module', autouse=True)
def node(start_node, tiny_model, root, small_disk, client):
    node = start_node(model=tiny_model, dataset_root=root, max_plans=3, prefix=small_disk[1])
    client.wait_until_ready()
    return node


def big_scene() -> dict:
    """LeRobot's video encoder needs more than a few pixels."""
    image = np.zeros((120, 160, 3), np.uint8)
    image[..., 0] = np.arange(160)
    mask = np.zeros((120, 160), np.uint8)
    mask[40:80, 60:100] = 1
    return {'image': image, 'object_mask': mask}


def refused(client, name: str, *phrases: str, **fields):
    with pytest.raises(InteractionError) as refusal:
        client.export(**fields, timeout=60)
    assert refusal.value.name == name
    for phrase in phrases:
        assert phrase in str(refusal.value)


def test_before_the_first_plan_there_is_nothing_to_export(client):
    refused(client, 'UNKNOWN_PLAN', 'no plan yet')


def test_a_plan_is_read_back_by_lerobot(client, root):
    plan = client.generate(**big_scene(), task='open the drawer', goal_pixel=(90, 60), seed=5)
    path, episodes = client.export([plan], 'drawers')
    assert path == str(root / 'drawers')
    assert episodes == [0]

    from lerobot.datasets import LeRobotDataset

    from mask2iv_ros.data.episodes import read_clips

    dataset = LeRobotDataset('drawers', root=path, video_backend='pyav')
    assert len(dataset) == len(plan.video)
    assert dataset[0]['task'] == 'open the drawer'
    assert not {'action', 'observation.state'} & set(dataset.features)  # unknown, so not there

    (clip,) = read_clips(path)
    assert clip.task == 'open the drawer'
    assert clip.fps == 15
    np.testing.assert_array_equal(clip.labels, plan.labels)
    assert np.abs(clip.frames.astype(int) - plan.video).mean() < 10  # random pixels, lossy video
    assert clip.goal is not None
    assert (clip.source['model'], clip.source['seed']) == ('tiny', 5)
    assert clip.source['plan_id'].replace('-', '') == bytes(plan.message.id.uuid).hex()


def test_the_best_newest_plan_is_appended_when_none_is_named(client):
    from mask2iv_ros.data.episodes import open_dataset

    scene = big_scene()
    client.generate(**scene, task='one')
    client.export(dataset_name='appended')
    best = client.generate(**scene, task='two', num_samples=2)
    _, episodes = client.export([best, *best.alternatives], 'appended')
    assert episodes == [1, 2]
    path, episodes = client.export(dataset_name='appended')
    assert episodes == [3]
    assert open_dataset(path).read(3).source['plan_id'].replace('-', '') == bytes(best.message.id.uuid).hex()


def test_only_the_newest_plans_are_kept(client):
    scene = big_scene()
    old = client.generate(**scene, task='old')
    client.generate(**scene, task='new', num_samples=3)
    refused(client, 'UNKNOWN_PLAN', 'max_plans', plans=[old])
    unknown = ReceivedPlan(InteractionPlan(id=UUID(uuid=np.full(16, 9, np.uint8))))
    refused(client, 'UNKNOWN_PLAN', '09090909-0909', plans=[unknown])


def test_a_trajectory_is_no_episode(client):
    plan = client.generate(**big_scene(), task='push', trajectory_only=True)
    refused(client, 'NO_VIDEO', 'trajectory_only', plans=[plan])


def test_a_dataset_root_that_cannot_be_is_named(client, peer, root):
    client.generate(**big_scene(), task='push')
    set_parameter(peer, 'dataset_root', string='~nosuchuser/x')
    try:
        refused(client, 'WRITE_FAILED', dataset_name='x')
    finally:
        set_parameter(peer, 'dataset_root', string=str(root))


@pytest.mark.parametrize('name', ['../../x', '/tmp/x', 'a/b', '..', '.hidden', 'a\\b', 'x' * 300, 'a b'])
def test_a_dataset_name_never_leaves_the_root(client, root, name):
    client.generate(**big_scene(), task='push')
    refused(client, 'INVALID_DATASET_NAME', dataset_name=name)
    assert not (root / '../../x').exists()
    assert not root.with_name('x').exists()


def test_a_dataset_of_another_size_is_left_alone(client, root):
    client.generate(**big_scene(), task='push')
    client.export(dataset_name='sized')
    before = sorted(path.stat().st_mtime_ns for path in (root / 'sized').rglob('*'))
    scene = {name: np.ascontiguousarray(value[:, :128]) for name, value in big_scene().items()}
    client.generate(**scene, task='push')
    refused(client, 'INCOMPATIBLE_DATASET', 'observation.images', dataset_name='sized')
    assert sorted(path.stat().st_mtime_ns for path in (root / 'sized').rglob('*')) == before


def test_a_root_that_cannot_be_written_is_named(client, peer, root, tmp_path):
    client.generate(**big_scene(), task='push')
    occupied = tmp_path / 'file'
    occupied.write_text('not a folder')
    assert set_parameter(peer, 'dataset_root', string=str(occupied)) == ''
    refused(client, 'WRITE_FAILED', str(occupied))
    assert set_parameter(peer, 'dataset_root', string=str(root)) == ''


def test_a_full_disk_is_named_and_survived(client, peer, root, small_disk):
    point, _ = small_disk
    if point is None:
        pytest.skip('making a small disk needs user namespaces (unshare)')
    noise = np.random.default_rng(0).integers(0, 255, (240, 320, 3)).astype(np.uint8)
    mask = np.zeros((240, 320), np.uint8)
    mask[80:160, 120:200] = 1
    client.generate(image=noise, object_mask=mask, task='push')
    assert set_parameter(peer, 'dataset_root', string=str(point)) == ''
    refused(client, 'DISK_FULL', str(point))
    assert set_parameter(peer, 'dataset_root', string=str(root)) == ''
    _, episodes = client.export(dataset_name='after_the_full_disk')
    assert episodes == [0]
