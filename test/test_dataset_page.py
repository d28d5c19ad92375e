"""`mask2iv show` and `import`: what a person looks at and what is copied is what is in the dataset."""

import html
import re
from pathlib import Path

import imageio.v3 as iio
import pytest
from test_lerobot import full_clip, make_clip, write

from mask2iv_ros.cli import main
from mask2iv_ros.data.dataset_page import mask_statistics
from mask2iv_ros.data.episodes import open_dataset


def test_statistics_of_known_masks():
    clip = make_clip(length=2, height=60, width=80)
    clip.labels[:] = 0
    clip.labels[0, 10:20, 10:20] = 1
    clip.labels[1, 10:20, 40:50] = 1
    clip.labels[1, 20:30, 40:50] = 2
    assert mask_statistics(clip) == pytest.approx(
        {'object area': 100 / 48, 'actor area': 100 / 96, 'object motion': 30.0, 'frames in contact': 50.0}
    )


def test_the_page_shows_the_dataset_and_all_its_files_exist(tmp_path):
    clips = [full_clip(seed) for seed in range(3)]
    clips[0].task = 'press <b>"now"</b>'
    write(tmp_path / 'data', *clips)
    assert main(['show', str(tmp_path / 'data'), '-o', str(tmp_path / 'page')]) == 0
    page = (tmp_path / 'page/index.html').read_text()
    files = re.findall(r'(?:src|poster)="([^"]+)"', page)
    assert len(files) == 2 + 2 * 3
    assert all((tmp_path / 'page' / file).stat().st_size > 0 for file in files)
    assert html.escape(clips[0].task, quote=False).split('"')[0] in page
    assert '<b>"now"' not in page
    assert 'front (masks): 3 episodes' in page
    video = iio.imread(tmp_path / 'page' / next(f for f in files if f.endswith('mp4')), plugin='pyav')
    assert len(video) == 6


def damage(root: Path) -> None:
    path = root / 'videos/observation.images.front/chunk-000/file-001.mp4'
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize('command', ['show', 'import'])
def test_damaged_episodes_stop_the_command_or_are_listed(tmp_path, capsys, command):
    write(tmp_path / 'data', full_clip(0))
    write(tmp_path / 'data', full_clip(1))
    damage(tmp_path / 'data')
    out = ['-o', str(tmp_path / 'out')] if command == 'show' else [str(tmp_path / 'out')]
    arguments = [command, str(tmp_path / 'data'), *out]
    assert main(arguments) == 1
    assert 'file-001.mp4: episode 1: frames 0 to 5' in capsys.readouterr().err
    assert main([*arguments, '--skip-bad']) == 0
    told = capsys.readouterr().err if command == 'import' else (tmp_path / 'out/index.html').read_text()
    assert 'file-001.mp4: episode 1: frames 0 to 5' in told
    if command == 'import':
        assert len(open_dataset(tmp_path / 'out')) == 1
