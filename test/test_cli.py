"""The command line: once as a user runs it, in a process of its own without network, then in this one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask2iv_ros.cli import build_parser, main, read_image, read_mask
from mask2iv_ros.data.episodes import read_clips
from mask2iv_ros.labels import centroid
from tiny_model import build_tiny_model

EXAMPLES = Path(__file__).parents[1] / 'doc' / 'examples'
IMAGE, MASK, ACTOR = (EXAMPLES / f'drawer{part}.png' for part in ('', '_mask', '_actor'))


def separate_process(*arguments) -> subprocess.CompletedProcess:
    # A proxy that does not exist makes every look at the network an error.
    offline = dict.fromkeys(('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY'), 'http://127.0.0.1:9')
    return subprocess.run(
        [sys.executable, '-m', 'mask2iv_ros.cli', *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **offline},
        timeout=300,
    )


def mask2iv(*arguments) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp('model'))


@pytest.fixture(scope='module')
def generated(model, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp('generated')
    done = separate_process(
        'generate', IMAGE, MASK, '--actor-mask', ACTOR,
        '--task', 'open the drawer', '--model', model, '--samples', 2, '-o', out, '--export', out / 'dataset',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


def test_generate_writes_everything_a_person_looks_at(generated):
    for plan in ('plan_0', 'plan_1'):
        folder = generated / plan
        for name in ('contact_sheet.png', 'video.gif', 'video.mp4', 'mask_overlay.mp4', 'plan.json'):
            assert (folder / name).stat().st_size > 0
    assert {json.loads((generated / p / 'plan.json').read_text())['seed'] for p in ('plan_0', 'plan_1')} == {
        0,
        1,
    }


def test_a_plans_file_tells_its_motion_and_what_it_was_held_against(generated):
    facts = json.loads((generated / 'plan_0' / 'plan.json').read_text())
    assert len(facts['motion']) == 8
    x, y = facts['motion'][0]['position']
    mask = np.asarray(Image.open(MASK))
    assert np.hypot(x - np.nonzero(mask)[1].mean(), y - np.nonzero(mask)[0].mean()) < 5
    assert facts['motion'][0]['position_spread'] == 0  # two samples
    assert {check['name'] for check in facts['checks']} > {'contact', 'agreement in the image'}
    assert facts['checks_passed'] == all(check['passed'] for check in facts['checks'])


def test_generated_labels_are_of_the_pictures_size_and_start_with_the_masks(generated):
    files = sorted((generated / 'plan_0' / 'labels').glob('*.png'))
    assert len(files) == 8
    first = np.asarray(Image.open(files[0]))
    mask = np.asarray(Image.open(MASK))
    np.testing.assert_array_equal(first == 1, mask > 0)


def test_generated_videos_decode_to_all_frames(generated):
    import imageio.v3 as iio

    video = iio.imread(generated / 'plan_0' / 'video.mp4', plugin='pyav')
    assert video.shape == (8, 240, 320, 3)
    original = np.asarray(Image.open(IMAGE))
    assert np.abs(video[0].astype(int) - original).mean() < 6


def test_export_is_a_lerobot_dataset_without_invented_actions(generated):
    clips = list(read_clips(generated / 'dataset'))
    assert len(clips) == 2
    assert clips[0].task == 'open the drawer'
    assert clips[0].actions is None
    assert clips[0].states is None
    labels = [np.asarray(Image.open(f)) for f in sorted((generated / 'plan_0' / 'labels').glob('*.png'))]
    np.testing.assert_array_equal(clips[0].labels, labels)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['no_such.png', MASK, '--task', 'x'], 'no_such.png'),
        ([IMAGE, MASK], 'task text and goal are both empty'),
        ([IMAGE, MASK, '--task', 'x', '--model', '/nowhere'], '/nowhere'),
        ([IMAGE, MASK, '--goal-pixel', '999', '1'], 'outside the 320x240'),
    ],
)
def test_mistakes_get_one_clear_line(model, tmp_path, capsys, arguments, message):
    if '--model' not in arguments:
        arguments = [*arguments, '--model', model]
    assert mask2iv('generate', *arguments, '-o', tmp_path) == 1
    *progress, line = capsys.readouterr().err.splitlines()
    assert line.startswith('mask2iv: ')
    assert message in line
    assert 'Traceback' not in ''.join(progress)


def test_the_goal_of_a_plan_is_exported(model, tmp_path):
    goal = ['--goal-pixel', 100, 150, '--model', model, '-o', tmp_path / 'out']
    assert mask2iv('generate', IMAGE, MASK, *goal, '--export', tmp_path / 'dataset') == 0
    (clip,) = read_clips(tmp_path / 'dataset')
    x, y = centroid(clip.goal == 1)
    assert (round(x), round(y)) == (100, 150)
    assert clip.source['generated_by'] == 'mask2iv_ros'


def test_a_second_run_leaves_nothing_of_the_first_and_nothing_of_others(model, tmp_path):
    arguments = [IMAGE, MASK, '--task', 'x', '--model', model, '-o', tmp_path]
    (tmp_path / 'plan_b').mkdir()
    assert mask2iv('generate', *arguments, '--samples', 2) == 0
    assert mask2iv('generate', *arguments, '--trajectory-only') == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ['plan_0', 'plan_b']
    assert not (tmp_path / 'plan_0/video.mp4').exists()


class TestPictures:
    def test_16_bits_are_refused(self, tmp_path):
        Image.fromarray(np.full((4, 4), 300, np.uint16)).save(tmp_path / 'deep.png')
        with pytest.raises(ValueError, match='expected 8 bits a channel'):
            read_image(tmp_path / 'deep.png')

    def test_transparent_pixels_are_not_mask(self, tmp_path):
        pixels = np.full((4, 4, 4), 255, np.uint8)
        pixels[:, 2:, 3] = 0
        Image.fromarray(pixels).save(tmp_path / 'mask.png')
        assert read_mask(tmp_path / 'mask.png').sum() == 8

    def test_a_mask_without_background_is_refused(self, tmp_path):
        Image.fromarray(np.full((4, 4), 10, np.uint8)).save(tmp_path / 'mask.png')
        with pytest.raises(ValueError, match='every pixel is object'):
            read_mask(tmp_path / 'mask.png')

    def test_a_picture_that_is_too_large_is_named(self, tmp_path, monkeypatch):
        Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / 'huge.png')
        monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 4)
        with pytest.raises(ValueError, match=r'huge\.png: Image size'):
            read_image(tmp_path / 'huge.png')


def test_every_command_explains_every_argument():
    parser = build_parser()
    commands = next(a.choices for a in parser._actions if a.choices and 'generate' in a.choices)
    names = {'simulate', 'train', 'generate', 'demo', 'convert', 'show', 'import', 'segment', 'prepare'}
    names |= {'evaluate', 'augment', 'train inverse-dynamics', 'train segmenter'}
    assert set(commands) == names
    for command in commands.values():
        assert command.description
        assert all(action.help for action in command._actions)


def test_converting_something_else_is_an_error_that_names_the_file(tmp_path, capsys):
    (tmp_path / 'x.ckpt').write_bytes(b'not a checkpoint')
    assert mask2iv('convert', tmp_path / 'x.ckpt', tmp_path / 'out') == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert 'x.ckpt' in line
