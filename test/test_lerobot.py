"""LeRobot v3 datasets: what is written is read back, by us and by LeRobot, and nothing written is lost."""

import errno
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

pytest.importorskip('lerobot')

from lerobot.datasets import LeRobotDataset, delete_episodes, merge_datasets
from lerobot.utils.feature_utils import dataset_to_policy_features

from mask2iv_ros.clip import Camera, InteractionClip
from mask2iv_ros.data.lerobot import (
    IncompatibleDataset,
    LeRobotClipWriter,
    decode_masks,
    encode_masks,
    read_clips,
    read_sources,
    resolve_dataset_dir,
)


def make_clip(seed=0, length=6, height=64, width=96, **fields):
    """A smooth picture with a moving object and a moving actor; labels also have lone pixels."""
    y, x = np.mgrid[:height, :width]
    frames = np.stack([np.stack((x * 2, y * 2, x + y + 5 * t), axis=-1) for t in range(length)]).astype(
        np.uint8
    )
    labels = np.random.default_rng(seed).choice(4, (length, height, width), p=(0.97, 0.01, 0.01, 0.01))
    for t in range(length):
        labels[t, 20:30, 10 + 4 * t : 30 + 4 * t] = 1
        labels[t, :25, 30 + 4 * t : 40 + 4 * t] = 2
    return InteractionClip(frames, labels.astype(np.uint8), f'task {seed % 2}', 15.0, **fields)


def full_clip(seed=0, length=6):
    rng = np.random.default_rng(seed)
    pose = np.eye(4)
    pose[:3, 3] = 0.1, -0.2, 1 / 3
    return make_clip(
        seed,
        length,
        goal=(make_clip(seed + 100).labels[-1] == 1).astype(np.uint8),
        actions=rng.normal(size=(length, 4)).astype(np.float32),
        states=rng.normal(size=(length, 7)).astype(np.float32),
        camera=Camera(np.array(((100.1, 0, 47.5), (0, 100.1, 31.5), (0, 0, 1))), pose),
        source={
            'dataset': 'test',
            'seed': seed,
            'frame_times': (np.cumsum(rng.uniform(size=length)) + 1e9).tolist(),
        },
    )


def write(root, *clips, **options):
    with LeRobotClipWriter(root, **options) as writer:
        for clip in clips:
            writer.add(clip)


def assert_same(read, written):
    for name in ('labels', 'goal', 'actions', 'states'):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name), err_msg=name)
    assert (read.task, read.fps, read.source) == (written.task, written.fps, written.source)
    np.testing.assert_array_equal(read.camera.intrinsics, written.camera.intrinsics)
    np.testing.assert_array_equal(read.camera.cam_to_world, written.camera.cam_to_world)
    error = np.mean((read.frames.astype(float) - written.frames) ** 2)
    assert 10 * np.log10(255**2 / error) > 35


def test_every_label_survives_the_run_length_code():
    for labels in (make_clip().labels[0], np.zeros((5, 7), np.uint8), np.full((3, 2), 3, np.uint8)):
        np.testing.assert_array_equal(decode_masks(encode_masks(labels)), labels)


def test_a_clip_comes_back_with_all_that_is_known_about_it(tmp_path):
    clips = [full_clip(0), full_clip(1, length=9), full_clip(2)]
    write(tmp_path / 'data', *clips)
    for read, written in zip(read_clips(tmp_path / 'data'), clips, strict=True):
        assert_same(read, written)
    assert [source['seed'] for source in read_sources(tmp_path / 'data')] == [0, 1, 2]


def test_episodes_are_read_in_the_order_asked(tmp_path):
    write(tmp_path / 'data', *(full_clip(seed, length=4 + seed) for seed in range(4)))
    assert [clip.source['seed'] for clip in read_clips(tmp_path / 'data', episodes=[3, 1])] == [3, 1]


def test_lerobot_itself_reads_the_dataset_offline(tmp_path, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    clip = full_clip()
    write(tmp_path / 'data', clip, camera='wrist', robot_type='sawyer')
    dataset = LeRobotDataset('data', root=tmp_path / 'data', video_backend='pyav')
    item = dataset[2]
    assert len(dataset) == 6
    assert dataset.meta.robot_type == 'sawyer'
    assert item['task'] == 'task 0'
    assert item['observation.images.wrist'].shape == (3, 64, 96)
    np.testing.assert_array_equal(item['action'], clip.actions[2])
    np.testing.assert_array_equal(decode_masks(item['annotation.masks.wrist']), clip.labels[2])


def test_policies_see_camera_state_and_action_alone(tmp_path):
    write(tmp_path / 'data', full_clip())
    features = LeRobotDataset('data', root=tmp_path / 'data', video_backend='pyav').meta.features
    assert set(dataset_to_policy_features(features)) == {
        'observation.images.front',
        'observation.state',
        'action',
    }


def test_unknown_state_and_action_have_no_column(tmp_path):
    write(tmp_path / 'data', make_clip())
    features = LeRobotDataset('data', root=tmp_path / 'data', video_backend='pyav').meta.features
    assert not {'observation.state', 'action'} & set(features)
    (clip,) = read_clips(tmp_path / 'data')
    assert (clip.states, clip.actions, clip.camera, clip.goal, clip.depth) == (None,) * 5


def test_depth_comes_back_in_metres_and_invalid_depth_as_zero(tmp_path):
    clip = make_clip()
    clip.depth = np.random.default_rng(0).uniform(0.3, 3, clip.labels.shape).astype(np.float32)
    clip.depth[:, :8] = 0
    write(tmp_path / 'data', clip, depth=True)
    (read,) = read_clips(tmp_path / 'data')
    assert read.depth.dtype == np.float32
    assert not read.depth[:, :8].any()
    np.testing.assert_allclose(read.depth, clip.depth, rtol=0.01)


def test_appending_keeps_what_was_there(tmp_path):
    clips = [full_clip(seed) for seed in range(3)]
    write(tmp_path / 'data', clips[0])
    (tmp_path / 'data/README.md').write_text('mine')
    write(tmp_path / 'data', clips[1])
    write(tmp_path / 'data', clips[2])
    for read, written in zip(read_clips(tmp_path / 'data'), clips, strict=True):
        assert_same(read, written)
    assert (tmp_path / 'data/README.md').read_text() == 'mine'


@pytest.mark.parametrize(
    'other',
    [make_clip(), make_clip(height=48), make_clip(actions=np.zeros((6, 4), np.float32))],
    ids=['no goal of the columns', 'another size', 'no states'],
)
def test_a_clip_that_does_not_fit_is_refused_and_the_dataset_stays(tmp_path, other):
    write(tmp_path / 'data', full_clip())
    with pytest.raises(IncompatibleDataset, match=r'dataset .* clip'):
        write(tmp_path / 'data', other)
    assert_same(next(read_clips(tmp_path / 'data')), full_clip())
    assert [path.name for path in tmp_path.iterdir() if path.suffix != '.lock'] == ['data']


def test_another_frame_rate_is_refused(tmp_path):
    write(tmp_path / 'data', full_clip())
    clip = full_clip()
    clip.fps = 10.0
    with pytest.raises(IncompatibleDataset, match='fps: dataset 15, clip 10'):
        write(tmp_path / 'data', clip)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / 'thesis.tex').write_text('all of it')
    with pytest.raises(IncompatibleDataset, match='not a complete LeRobot'):
        write(tmp_path, make_clip())
    assert (tmp_path / 'thesis.tex').read_text() == 'all of it'


def test_an_error_drops_only_what_was_not_committed(tmp_path):
    def fail_after_commit():
        with LeRobotClipWriter(tmp_path / 'data') as writer:
            writer.add(full_clip(0))
            writer.commit()
            writer.add(full_clip(1))
            raise KeyError('stop')

    with pytest.raises(KeyError, match='stop'):
        fail_after_commit()
    assert len(read_sources(tmp_path / 'data')) == 1


def test_the_dataset_is_readable_while_a_writer_adds_to_it(tmp_path):
    write(tmp_path / 'data', full_clip(0))
    with LeRobotClipWriter(tmp_path / 'data') as writer:
        writer.add(full_clip(1))
        assert len(list(read_clips(tmp_path / 'data'))) == 1
    assert len(list(read_clips(tmp_path / 'data'))) == 2


def test_a_second_writer_is_refused(tmp_path):
    with (
        LeRobotClipWriter(tmp_path / 'data'),
        pytest.raises(BlockingIOError, match='another process is writing'),
    ):
        LeRobotClipWriter(tmp_path / 'data')


def run_python(code, *arguments, **options):
    """Run a snippet in a process of its own, with this file importable."""
    folders = [os.path.dirname(__file__), os.path.dirname(os.path.dirname(__file__))]
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join([*folders, os.environ.get('PYTHONPATH', '')])}
    command = [sys.executable, '-c', textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, **options)


def test_a_killed_writer_leaves_the_dataset_and_the_next_one_goes_on(tmp_path):
    write(tmp_path / 'data', full_clip(0))
    killed = run_python(
        """
        import os, signal, sys
        from test_lerobot import LeRobotClipWriter, full_clip
        writer = LeRobotClipWriter(sys.argv[1])
        writer.add(full_clip(1))
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        tmp_path / 'data',
    )
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / '.data.staging').exists()
    assert_same(next(read_clips(tmp_path / 'data')), full_clip(0))
    write(tmp_path / 'data', full_clip(2))
    assert [source['seed'] for source in read_sources(tmp_path / 'data')] == [0, 2]


def test_a_kill_between_the_two_renames_of_a_commit_loses_nothing(tmp_path):
    write(tmp_path / 'data', full_clip(0))
    (tmp_path / 'data').rename(tmp_path / '.data.old')
    LeRobotClipWriter(tmp_path / 'data')
    assert_same(next(read_clips(tmp_path / 'data')), full_clip(0))


NOISE_UNTIL_ERROR = """
    import resource, sys
    import numpy as np
    from test_lerobot import InteractionClip, write
    if len(sys.argv) > 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
    rng = np.random.default_rng(0)
    try:
        for written in range(50):
            frames = rng.integers(0, 255, (8, 240, 320, 3), dtype=np.uint8)
            write(sys.argv[1], InteractionClip(frames, np.zeros((8, 240, 320), np.uint8)))
    except OSError as error:
        print(written, error.errno)
"""


@pytest.fixture
def small_disk(tmp_path):
    path = tmp_path / 'disk'
    path.mkdir()
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=3M', 'tmpfs', path], capture_output=True)
    if mounted.returncode:
        pytest.skip('mounting a small disk needs root')
    yield path
    subprocess.run(['umount', '-l', path], check=True)


def test_a_full_disk_is_named_and_the_dataset_stays_readable(small_disk):
    result = run_python(NOISE_UNTIL_ERROR, small_disk / 'data')
    written, code = map(int, result.stdout.split())
    assert code == errno.ENOSPC
    assert 1 <= written < 50
    assert len(list(read_clips(small_disk / 'data'))) == written
    assert sorted(path.name for path in small_disk.iterdir()) == ['.data.lock', 'data']


def test_a_failed_write_is_an_os_error_and_the_dataset_stays_readable(tmp_path):
    clip = InteractionClip(np.zeros((8, 240, 320, 3), np.uint8), np.zeros((8, 240, 320), np.uint8))
    write(tmp_path / 'data', clip)
    result = run_python(NOISE_UNTIL_ERROR, tmp_path / 'data', 300_000)  # bytes a file: too few for the video
    assert result.stdout.split() == ['0', str(errno.EFBIG)], result.stderr
    assert len(list(read_clips(tmp_path / 'data'))) == 1


def test_masks_and_provenance_survive_lerobots_delete_and_merge(tmp_path):
    write(tmp_path / 'a', full_clip(0), full_clip(1))
    write(tmp_path / 'b', full_clip(2))
    a, b = (LeRobotDataset(name, root=tmp_path / name, video_backend='pyav') for name in 'ab')
    kept = delete_episodes(a, episode_indices=[0], output_dir=tmp_path / 'kept', repo_id='kept')
    merge_datasets([kept, b], output_repo_id='merged', output_dir=tmp_path / 'merged')
    for read, written in zip(read_clips(tmp_path / 'merged'), (full_clip(1), full_clip(2)), strict=True):
        assert_same(read, written)


def test_reading_names_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        next(read_clips(tmp_path / 'nothing'))
    (tmp_path / 'empty').mkdir()
    with pytest.raises(IncompatibleDataset, match='not a complete LeRobot v3 dataset'):
        next(read_clips(tmp_path / 'empty'))
    write(tmp_path / 'data', full_clip())
    with pytest.raises(ValueError, match="no masks of camera 'top'; there are \\['front'\\]"):
        next(read_clips(tmp_path / 'data', camera='top'))
    with pytest.raises(IndexError, match='episode 1 of 1'):
        next(read_clips(tmp_path / 'data', episodes=[1]))


def test_a_dataset_without_masks_is_named(tmp_path):
    features = {'observation.state': {'dtype': 'float32', 'shape': (2,), 'names': None}}
    dataset = LeRobotDataset.create('plain', fps=15, features=features, root=tmp_path / 'plain')
    dataset.add_frame({'observation.state': np.zeros(2, np.float32), 'task': 'wait'})
    dataset.save_episode()
    dataset.finalize()
    with pytest.raises(ValueError, match='no masks'):
        next(read_clips(tmp_path / 'plain'))


@pytest.mark.parametrize(
    'name',
    [
        '',
        '.',
        '..',
        '../x',
        '../../x',
        'a/b',
        '/etc',
        'a\\b',
        '.hidden',
        'a\0b',
        'a b',
        'x\n',
        'é',
        'x' * 101,
    ],
)
def test_a_dataset_name_cannot_leave_its_root(tmp_path, name):
    with pytest.raises(ValueError, match='dataset name'):
        resolve_dataset_dir(tmp_path, name)


def test_a_symbolic_link_cannot_lead_out_of_the_root(tmp_path):
    (tmp_path / 'root').mkdir()
    (tmp_path / 'root/link').symlink_to(tmp_path)
    with pytest.raises(ValueError, match='symbolic link'):
        resolve_dataset_dir(tmp_path / 'root', 'link')


def test_a_plain_name_is_a_folder_below_the_root(tmp_path):
    assert resolve_dataset_dir(tmp_path, 'demo_2.v-1') == tmp_path.resolve() / 'demo_2.v-1'
