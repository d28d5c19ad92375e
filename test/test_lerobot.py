"""LeRobot v3 datasets: what is written is read back, by us and by LeRobot, and nothing written is lost."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

pytest.importorskip('lerobot')

from lerobot.configs import DepthEncoderConfig
from lerobot.datasets import LeRobotDataset, delete_episodes, merge_datasets
from lerobot.utils.feature_utils import dataset_to_policy_features

from mask2iv_ros.clip import Camera, InteractionClip
from mask2iv_ros.data.episodes import BadEpisode, Episode, UnknownLayout, open_dataset, read_clips
from mask2iv_ros.data.lerobot import (
    IncompatibleDataset,
    LeRobotClipWriter,
    clip_features,
    clip_rows,
    decode_masks,
    encode_masks,
    resolve_dataset_dir,
    writing_options,
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


def read_seeds(root):
    reader = open_dataset(root)
    return [reader.source(index)['seed'] for index in range(len(reader))]


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
        np.testing.assert_array_equal(decode_masks([encode_masks(labels)])[0], labels)


def test_a_clip_comes_back_with_all_that_is_known_about_it(tmp_path):
    clips = [full_clip(0), full_clip(1, length=9), full_clip(2)]
    write(tmp_path / 'data', *clips)
    for read, written in zip(read_clips(tmp_path / 'data'), clips, strict=True):
        assert_same(read, written)
    assert read_seeds(tmp_path / 'data') == [0, 1, 2]


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
    np.testing.assert_array_equal(decode_masks([item['annotation.masks.wrist']])[0], clip.labels[2])


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

    reader = open_dataset(tmp_path / 'data')
    reader.with_depth = False
    shutil.rmtree(tmp_path / 'data/videos/observation.images.front_depth')
    assert reader.read(0).depth is None


def test_appended_depth_is_coded_as_that_which_is_there(tmp_path):
    clip = make_clip()
    clip.depth = np.full(clip.labels.shape, 0.53, np.float32)
    encoder = DepthEncoderConfig(depth_min=0.2, depth_max=2.0, use_log=False)
    dataset = LeRobotDataset.create(
        'data',
        fps=round(clip.fps),
        features=clip_features({'front': clip}, depth=True),
        root=tmp_path / 'data',
        **{**writing_options(), 'depth_encoder': encoder},
    )
    for row in clip_rows({'front': clip}, depth=True):
        dataset.add_frame(row)
    dataset.save_episode()
    dataset.finalize()
    write(tmp_path / 'data', clip, depth=True)
    for read in read_clips(tmp_path / 'data'):
        np.testing.assert_allclose(read.depth, clip.depth, atol=1e-3)


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


@pytest.mark.parametrize('size', [(31, 64), (64, 16), (1, 1)])
def test_pictures_that_would_kill_the_encoder_are_refused(tmp_path, size):
    with pytest.raises(IncompatibleDataset, match=f'at least 32x32 pixels, got {size[1]}x{size[0]}'):
        write(tmp_path / 'data', make_clip(length=3, height=size[0], width=size[1]))
    write(tmp_path / 'data', make_clip(length=3, height=32, width=32))


@pytest.mark.parametrize('part', ['data', 'videos'])
def test_a_damaged_dataset_is_not_appended_to(tmp_path, part):
    write(tmp_path / 'data', full_clip(0))
    (path,) = (file for file in (tmp_path / 'data' / part).rglob('*') if file.is_file())
    path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(IncompatibleDataset, match=f'{path.name}: missing or damaged'):
        write(tmp_path / 'data', full_clip(1))


def test_a_link_to_a_dataset_stays_a_link(tmp_path):
    write(tmp_path / 'disk' / 'data', full_clip(0))
    (tmp_path / 'link').symlink_to(tmp_path / 'disk' / 'data')
    write(tmp_path / 'link', full_clip(1))
    assert (tmp_path / 'link').is_symlink()
    assert read_seeds(tmp_path / 'disk' / 'data') == [0, 1]


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
    assert len(read_seeds(tmp_path / 'data')) == 1


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
    assert read_seeds(tmp_path / 'data') == [0, 2]


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
    with pytest.raises(UnknownLayout, match=r'expected a LeRobot v3 dataset .* found nothing'):
        next(read_clips(tmp_path / 'empty'))
    write(tmp_path / 'data', full_clip())
    with pytest.raises(ValueError, match="no camera 'top'; there are \\('front',\\)"):
        next(read_clips(tmp_path / 'data', camera='top'))
    with pytest.raises(IndexError, match='episode 1 of 1'):
        next(read_clips(tmp_path / 'data', episodes=[1]))


def write_plain(root, features, rows):
    """A dataset as LeRobot's own recorder makes it."""
    dataset = LeRobotDataset.create('plain', fps=10, features=features, root=root, video_backend='pyav')
    for row in rows:
        dataset.add_frame({**row, 'task': 'wait'})
    dataset.save_episode()
    dataset.finalize()


def test_a_dataset_without_a_camera_is_named(tmp_path):
    features = {'observation.state': {'dtype': 'float32', 'shape': (2,), 'names': None}}
    write_plain(tmp_path / 'plain', features, [{'observation.state': np.zeros(2, np.float32)}])
    with pytest.raises(UnknownLayout, match=r'no camera; features are observation\.state'):
        next(read_clips(tmp_path / 'plain'))


def test_a_dataset_of_somebody_else_is_read_without_masks(tmp_path):
    frames = make_clip(length=5).frames
    visual = {'shape': (64, 96, 3), 'names': ['height', 'width', 'channels']}
    features = {
        'observation.images.top': {'dtype': 'video', **visual},
        'observation.image': {'dtype': 'image', **visual},
        'action': {'dtype': 'float32', 'shape': (2,), 'names': ['x', 'y']},
    }
    rows = [
        {'observation.images.top': f, 'observation.image': f, 'action': np.float32([t, 1])}
        for t, f in enumerate(frames)
    ]
    write_plain(tmp_path / 'plain', features, rows)
    reader = open_dataset(tmp_path / 'plain')
    assert reader.episode(0) == Episode('episode_000000', 5, 10.0, 'wait', ('top', 'observation.image'))
    clip = reader.read(0, camera='observation.image')
    np.testing.assert_array_equal(clip.frames, frames)
    assert clip.labels is None
    np.testing.assert_array_equal(clip.actions[:, 0], range(5))
    assert clip.source == {'dataset': 'plain', 'episode': 'episode_000000', 'camera': 'observation.image'}


def test_chosen_frames_come_in_the_order_asked_with_their_time(tmp_path):
    clip = full_clip(length=30)
    write(tmp_path / 'data', full_clip(1), clip)
    read = open_dataset(tmp_path / 'data').read(1, frames=[20, 3, 29, 3])
    np.testing.assert_array_equal(read.labels, clip.labels[[20, 3, 29, 3]])
    np.testing.assert_array_equal(read.states, clip.states[[20, 3, 29, 3]])
    assert np.abs(read.frames.astype(int) - clip.frames[[20, 3, 29, 3]]).mean() < 3
    assert read.source['frame_times'] == [clip.source['frame_times'][i] for i in (20, 3, 29, 3)]
    even = open_dataset(tmp_path / 'data').read(1, frames=range(0, 30, 3))
    assert even.fps == 5


def test_only_the_frames_asked_for_are_decoded(tmp_path, monkeypatch):
    from lerobot.datasets import video_utils

    write(tmp_path / 'data', make_clip(length=60))
    decoded = []
    original = video_utils.decode_video_frames

    def spy(path, times, *args, **options):
        decoded.append((max(times) - min(times)) * 15 + 1)
        return original(path, times, *args, **options)

    monkeypatch.setattr(video_utils, 'decode_video_frames', spy)
    open_dataset(tmp_path / 'data').read(0, frames=[0, 30, 59])
    assert sum(decoded) == pytest.approx(3)


def test_several_cameras_of_one_episode(tmp_path):
    views = {name: full_clip(seed) for seed, name in enumerate(('left', 'right'))}
    with LeRobotClipWriter(tmp_path / 'data') as writer:
        writer.add(views)
        with pytest.raises(ValueError, match=r"equally many frames, got \{'left': 6, 'right': 7\}"):
            writer.add({'left': full_clip(), 'right': full_clip(length=7)})
    reader = open_dataset(tmp_path / 'data')
    assert reader.episode(0).cameras == ('left', 'right')
    for name, written in views.items():
        read = reader.read(0, camera=name)
        np.testing.assert_array_equal(read.labels, written.labels)
        np.testing.assert_array_equal(read.goal, written.goal)
        np.testing.assert_array_equal(read.actions, views['left'].actions)


def test_contact_and_goal_point_come_back(tmp_path):
    clip = full_clip()
    clip.contact, clip.goal_point = np.arange(6) > 2, np.array((0.1, 0.2, 1 / 3))
    write(tmp_path / 'data', clip, full_clip(1))
    known, unknown = read_clips(tmp_path / 'data')
    np.testing.assert_array_equal(known.contact, clip.contact)
    np.testing.assert_array_equal(known.goal_point, clip.goal_point)
    assert unknown.contact is None
    assert unknown.goal_point is None


class TestDamage:
    """Each names file, episode and frame; other episodes stay readable; `skipped` lists what was left out."""

    def damaged(self, root, match, others=1):
        reader = open_dataset(root)
        with pytest.raises(BadEpisode, match=match):
            list(read_clips(reader))
        skipped = []
        assert len(list(read_clips(reader, skipped=skipped))) == others
        assert len(skipped) == 2 - others

    def rewrite(self, root, change):
        """Change the rows of episode 1 as somebody with pandas would."""
        import pandas as pd

        (path,) = root.glob('data/**/*.parquet')
        table = pd.read_parquet(path)
        change(table, table.index[table['episode_index'] == 1])
        table.to_parquet(path)

    @pytest.fixture
    def data(self, tmp_path):
        write(tmp_path / 'data', full_clip(0))
        write(tmp_path / 'data', full_clip(1))  # a second file of each kind
        return tmp_path / 'data'

    @pytest.fixture
    def one_file(self, tmp_path):
        write(tmp_path / 'data', full_clip(0), full_clip(1))
        return tmp_path / 'data'

    def test_truncated_video(self, data):
        path = data / 'videos/observation.images.front/chunk-000/file-001.mp4'
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        self.damaged(data, r'front/chunk-000/file-001.mp4: episode 1: frames 0 to 5')

    def test_missing_video(self, data):
        (data / 'videos/observation.images.front/chunk-000/file-001.mp4').unlink()
        self.damaged(data, r'front/chunk-000/file-001.mp4: episode 1: .*No such file')

    def test_missing_table(self, data):
        (data / 'data/chunk-000/file-001.parquet').unlink()
        self.damaged(data, r'data/chunk-000/file-001.parquet: episode 1: .*No such file')

    def test_truncated_table(self, data):
        path = data / 'data/chunk-000/file-001.parquet'
        path.write_bytes(path.read_bytes()[:1000])
        self.damaged(data, r'data/chunk-000/file-001.parquet: episode 1')

    def test_masks_of_another_size(self, one_file):
        def change(table, rows):
            table.loc[rows[2], 'annotation.masks.front'] = encode_masks(np.zeros((5, 7), np.uint8))

        self.rewrite(one_file, change)
        self.damaged(one_file, r'episode 1: frame 2: .*expected frame size \(64, 96\), got \(5, 7\)')

    def test_masks_that_are_no_code(self, one_file):
        self.rewrite(one_file, lambda t, rows: t.__setitem__('annotation.masks.front', 'nothing'))
        self.damaged(one_file, 'episode 0: frame 0: .*not a mask code', others=0)

    def test_actions_that_are_not_numbers(self, one_file):
        def change(table, rows):
            table.at[rows[3], 'action'] = np.float32([0, np.nan, 0, 0])

        self.rewrite(one_file, change)
        self.damaged(one_file, 'episode_000001: frame 3: actions are not finite')

    def test_missing_rows(self, one_file):
        self.rewrite(one_file, lambda t, rows: t.drop(index=rows[4], inplace=True))
        self.damaged(one_file, 'episode 1: expected 6 rows, got 5')

    def test_half_written_dataset(self, tmp_path):
        writer = LeRobotClipWriter(tmp_path / 'data')
        writer.add(full_clip())
        (tmp_path / '.data.staging').rename(tmp_path / 'half')
        with pytest.raises(IncompatibleDataset, match=r'half: not a complete LeRobot v3 dataset'):
            open_dataset(tmp_path / 'half')

    def test_an_older_version_gets_the_command_that_converts_it(self, data):
        info = json.loads((data / 'meta/info.json').read_text())
        (data / 'meta/info.json').write_text(json.dumps({**info, 'codebase_version': 'v2.1'}))
        with pytest.raises(IncompatibleDataset, match=r'v2.1, expected v3.0; .*v21_to_v30 --repo-id=data'):
            open_dataset(data)

    def test_info_that_is_no_json(self, data):
        (data / 'meta/info.json').write_text('{')
        with pytest.raises(IncompatibleDataset, match=r'info\.json: damaged'):
            open_dataset(data)


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
