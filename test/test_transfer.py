"""`mask2iv import`: what any reader reads is what the LeRobot copy holds."""

import numpy as np
from dataset_fixtures import write_trajectory
from test_hdf5 import write_aloha, write_robomimic
from test_lerobot import full_clip, write

from mask2iv_ros.cli import main
from mask2iv_ros.data.episodes import files_id, open_dataset


def test_hdf5_to_lerobot_and_back_is_exact(tmp_path):
    source = write_robomimic(tmp_path / 'image.hdf5', {'demo_0': 4, 'demo_1': 6})
    assert main(['import', str(source), str(tmp_path / 'copy'), '--task', 'lift the cube']) == 0
    before, after = open_dataset(source), open_dataset(tmp_path / 'copy')
    assert len(after) == 2
    for index in range(2):
        for camera in before.episode(index).cameras:
            old, new = before.read(index, camera=camera), after.read(index, camera=camera)
            np.testing.assert_array_equal(new.actions, old.actions)
            np.testing.assert_array_equal(new.states, old.states)
            assert (new.fps, new.task, new.labels) == (25.0, old.task or 'lift the cube', None)
            assert new.frames.shape == old.frames.shape


def test_an_hdf5_option_reaches_the_reader(tmp_path, capsys):
    write_aloha(tmp_path / 'aloha/episode_0.hdf5', 3, compress=True)
    arguments = ['import', str(tmp_path / 'aloha'), str(tmp_path / 'copy'), '--cameras', 'cam_high']
    assert main([*arguments, '--split', 'train']) == 1
    assert 'split' in capsys.readouterr().err
    assert main([*arguments, '--standard-jpeg', '--task', 'wave']) == 0
    assert open_dataset(tmp_path / 'copy').episode(0).cameras == ('cam_high',)
    write(tmp_path / 'data', full_clip())
    assert main(['import', str(tmp_path / 'data'), str(tmp_path / 'copy2'), '--standard-jpeg']) == 1
    assert 'there is no standard_jpeg for a dataset of its kind' in capsys.readouterr().err


def test_a_prepared_benchmark_becomes_a_training_set(tmp_path, capsys):
    root = tmp_path / 'bridge'
    for number, images in enumerate((20, 33)):
        write_trajectory(root, f'traj{number}', images=images, masks=True)
    assert main(['prepare', 'bridge', str(root), str(tmp_path / 'benchmark')]) == 0
    assert 'clips {' in capsys.readouterr().out
    command = ['import', str(tmp_path / 'benchmark'), str(tmp_path / 'train')]
    assert main(command) == 1
    assert 'say which split' in capsys.readouterr().err
    assert main([*command, '--split', 'train']) == 0
    source, copy = open_dataset(tmp_path / 'benchmark', split='train'), open_dataset(tmp_path / 'train')
    assert len(copy) == len(source) > 0
    for i in range(len(copy)):
        np.testing.assert_array_equal(copy.read(i).labels, source.read(i).labels)
        assert copy.read(i).task == source.read(i).task
        np.testing.assert_allclose(copy.read(i).source['frame_times'], source.read(i).source['frame_times'])


def test_a_stopped_import_is_continued(tmp_path, capsys):
    clips = [full_clip(seed) for seed in range(3)]
    write(tmp_path / 'data', *clips[:2])
    command = ['import', str(tmp_path / 'data'), str(tmp_path / 'copy')]
    assert main(command) == 0
    write(tmp_path / 'data', clips[2])
    assert main(command) == 0
    copy = open_dataset(tmp_path / 'copy')
    assert len(copy) == 3
    for i, clip in enumerate(clips):
        np.testing.assert_array_equal(copy.read(i).labels, clip.labels)
        np.testing.assert_array_equal(copy.read(i).actions, clip.actions)
        assert copy.source(i)['seed'] == i
    capsys.readouterr()
    assert main([*command, '--task', 'another']) == 1
    assert "made with other options, {'task': None}, not {'task': 'another'}" in capsys.readouterr().err
    write(tmp_path / 'other', full_clip(5))
    assert main(['import', str(tmp_path / 'other'), str(tmp_path / 'copy')]) == 1
    assert len(open_dataset(tmp_path / 'copy')) == 3


def test_an_import_does_not_go_on_where_episodes_came_before_its_last(tmp_path, capsys):
    root, out = tmp_path / 'bridge', tmp_path / 'copy'
    for name in ('traj1', 'traj3'):
        write_trajectory(root, name, images=4)
    command = ['import', str(root), str(out), '--task', 'wipe']
    assert main(command) == 0
    write_trajectory(root, 'traj2', images=4)
    assert main(command) == 1
    told = capsys.readouterr().err
    assert all(part in told for part in ("traj3', episode 1 of", "traj2'", 'Write elsewhere'))
    assert len(open_dataset(out)) == 2


def test_an_empty_folder_is_as_good_as_none(tmp_path):
    write(tmp_path / 'data', full_clip(0))
    (tmp_path / 'copy').mkdir()
    assert main(['import', str(tmp_path / 'data'), str(tmp_path / 'copy')]) == 0
    assert len(open_dataset(tmp_path / 'copy')) == 1


def test_a_continued_import_keeps_the_cameras_of_its_first_episode(tmp_path):
    root = tmp_path / 'bridge'
    write_trajectory(root, 'traj0', images=4)
    command = ['import', str(root), str(tmp_path / 'copy'), '--task', 'wipe']
    assert main(command) == 0
    write_trajectory(root, 'traj1', images=4, cameras=2)
    assert main(command) == 0
    copy = open_dataset(tmp_path / 'copy')
    assert [copy.episode(i).cameras for i in range(len(copy))] == [('images0',)] * 2


def test_files_of_a_dataset_are_told_apart(tmp_path):
    for name in ('a/one', 'a/run/two', 'b'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('x')
    asked = (tmp_path / 'a', []), (tmp_path / 'a', [tmp_path / 'a/run']), (tmp_path / 'b', [])
    before = [files_id(path, without) for path, without in asked]
    (tmp_path / 'a/run/two').write_text('other')
    (tmp_path / 'b').write_text('other')
    after = [files_id(path, without) for path, without in asked]
    assert [x == y for x, y in zip(before, after, strict=True)] == [False, True, False]
