"""The README keeps its word: its commands parse, its tables are those of the code, its pictures exist."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from mask2iv_ros.cli import build_parser
from mask2iv_ros.data.episodes import open_dataset
from mask2iv_ros.data.metaworld_tasks import GOAL_TASKS

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()
PROSE = ' '.join(README.split())  #: so that a sentence is found wherever its lines break
BLOCKS = re.findall(r'```(\w+)\n(.*?)```', README, re.DOTALL)


def commands(program: str) -> list[str]:
    texts = (text.replace('\\\n', ' ') for kind, text in BLOCKS if kind == 'bash')
    lines = [line.split('  #')[0].strip() for text in texts for line in text.splitlines()]
    return [line for line in lines if line.startswith(program + ' ')]


@pytest.mark.parametrize('command', commands('mask2iv'))
def test_every_mask2iv_command_parses(command):
    args = build_parser().parse_args(shlex.split(command)[1:])
    assert callable(args.function)


@pytest.mark.parametrize('command', commands('mask2iv generate doc/examples/drawer.png'))
def test_the_examples_run_with_the_embedded_model(command, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    args = build_parser().parse_args(shlex.split(command)[1:])
    args.out = tmp_path / args.out
    args.export = args.export and tmp_path / args.export
    args.function(args)
    assert (args.out / 'plan_0/contact_sheet.png').is_file()
    if args.export:
        assert open_dataset(args.export).episode(0).length == 16


@pytest.mark.parametrize('command', commands('make'))
def test_every_make_target_exists(command):
    targets = re.findall(r'^([\w ]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE)
    assert command.split()[1] in ' '.join(targets).split()


@pytest.mark.parametrize('code', [text for kind, text in BLOCKS if kind == 'python'])
def test_python_examples_compile(code):
    compile(code, 'README.md', 'exec')


def test_error_codes_are_those_of_the_interface():
    interface = (ROOT / 'srv' / 'GenerateInteraction.srv').read_text()
    defined = {
        (int(value), name) for name, value in re.findall(r'^uint16 (\w+)=(\d+)', interface, re.MULTILINE)
    }
    told = {(int(value), name) for value, name in re.findall(r'(\d+) `([A-Z_]+)`', README)}
    assert told == defined - {(0, 'NONE')}


def test_action_and_service_have_the_same_codes():
    codes = [
        re.findall(r'^uint16 (\w+)=(\d+)', (ROOT / path).read_text(), re.MULTILINE)
        for path in ('srv/GenerateInteraction.srv', 'action/GenerateInteraction.action')
    ]
    assert codes[0] == codes[1]


def test_parameters_are_those_of_the_file():
    parameters = yaml.safe_load((ROOT / 'config' / 'mask2iv.yaml').read_text())['/**']['ros__parameters']
    table = README.split('| parameter | default |')[1].split('\n\n')[0]
    told = set()
    for row in table.splitlines()[2:]:
        told.update(re.findall(r'`([\w.]+)`', row.split('|')[1]))
    assert told == set(parameters)


def test_pictures_and_links_exist():
    links = re.findall(r'\]\((?!http)([^)#]+)\)', README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def table(header: str) -> dict[str, list[float]]:
    """Rows of the README's table that begins with `header`: {first cell: the numbers of the others}."""
    rows = README.split(f'| {header} |')[1].split('\n\n')[0].splitlines()[2:]
    cells = ([cell.strip() for cell in row.strip('|').split('|')] for row in rows)
    return {row[0]: [float(re.match(r'-?[\d.]+', cell)[0]) for cell in row[1:]] for row in cells}


def read_result(name: str) -> dict:
    """A result file of a benchmark."""
    return json.loads((ROOT / 'benchmarks/results' / f'{name}.json').read_text())


def cells(header: str, name: str) -> list[str]:
    """The other cells of the row that begins with `name`, in the README's table that begins with `header`."""
    section = README.split(f'| {header} |')[1].split('\n\n')[0]
    (line,) = [line for line in section.splitlines() if line.startswith(f'| {name} |')]
    return line.split('|')[2:-1]


def test_quality_tables_are_those_of_the_result_file():
    summary = read_result('simulated_quality/test')['summary']
    means = {row: {name: value['mean'] for name, value in values.items()}
             for row, values in summary['all clips'].items()}  # fmt: skip
    rows = {
        'static (first mask repeated)': 'static',
        'text': 'text',
        'goal': 'goal',
        'text and goal': 'text+goal',
    }
    for told, (iou, robot, centroid) in table('stage 1: predicted masks').items():
        measured = means[rows[told]]
        assert iou == pytest.approx(measured['object_iou'], abs=0.0051)
        assert robot == pytest.approx(measured['actor_iou'], abs=0.0051)
        assert centroid == pytest.approx(measured['object_centroid_px'], abs=0.051)
    rows = {
        'first frame repeated': 'first frame repeated',
        'from real masks': 'oracle masks',
        'from predicted masks': 'text+goal masks',
    }
    for told, (psnr, moving, ssim) in table('stage 2: video').items():
        measured = means[rows[told]]
        assert psnr == pytest.approx(measured['psnr'], abs=0.051)
        assert moving == pytest.approx(measured['psnr_moving_pixels'], abs=0.051)
        assert ssim == pytest.approx(measured['ssim'], abs=0.0051)


def test_the_benchmark_table_is_that_of_the_result_files():
    splits = ('test', 'test_camera', 'test_tasks')
    found = [read_result(f'simulated_quality/benchmark_{split}')['summary']['all clips'] for split in splits]
    told = table('masks, IoU of object and robot')
    rows = {'static (first mask repeated)': 'static', 'told the text': 'text', 'told the goal': 'goal'}
    assert set(told) == set(rows)
    for name, values in told.items():
        measured = [
            split[rows[name]][value]['mean'] for split in found for value in ('object_iou', 'actor_iou')
        ]
        assert values == pytest.approx(measured, abs=0.0051)


def test_goals_are_followed_as_in_the_result_file():
    rows = read_result('goal_following')['rows']
    told, untold = (rows[row]['distance']['mean'] for row in ('mask', 'text'))
    assert (
        f'takes it to {told:.1f} of 128x160 pixels from a goal that it is told, and to {untold:.1f} when'
        in PROSE
    )
    ious = [read_result('goal_following_scenes')['rows'][row]['IoU']['mean'] for row in ('text', 'mask')]
    assert "a goal takes the last mask's IoU from {:.2f} to {:.2f}".format(*ious) in PROSE
    moved, on_the_way = (100 * rows[f'mask, {row}']['followed']['mean'] for row in ('moved', 'on the way'))
    assert (
        f'the object goes {moved:.0f} % of the way; where it shall stop on its way, {on_the_way:.0f} %'
        in PROSE
    )


def test_export_codes_are_those_of_the_interface():
    interface = (ROOT / 'srv' / 'ExportDemonstration.srv').read_text()
    defined = set(re.findall(r'^uint16 (\w+)=(\d+)', interface, re.MULTILINE)) - {('NONE', '0')}
    assert set(re.findall(r'`([A-Z_]+)` \((\d+)\)', README)) == defined


def test_set_up_time_is_that_of_the_result_file():
    result = read_result('clean_clone')
    told = re.search(r'set-up took (\d+) s, downloaded (\d+) GB and takes (\d+) GB', PROSE)
    measured = result['seconds']['set-up'], result['downloaded_gb'], result['installed_gb']
    assert [int(value) for value in told.groups()] == [round(value) for value in measured]


def test_numbers_of_paths_are_those_of_the_result_file():
    result = read_result('path_accuracy')
    measured = result['true masks as the node sees them']
    told = re.search(
        r'that path is (\d+) mm off on average, against (\d+) mm at constant depth; the contact frame is '
        r'([\d.]+) frames off, the 3-D contact point (\d+) mm',
        PROSE,
    )
    path, constant, contact, point = map(float, told.groups())
    assert path == round(measured['3-D']['auto']['point mean'])
    assert constant == round(measured['3-D']['constant_depth']['point mean'])
    assert contact == round(measured['contact']['touch that moves']['mean frames off'], 1)
    assert point == round(measured['contact point']['auto']['median mm'])


def test_executed_plans_are_those_of_the_result_file():
    rows = read_result('execute_metaworld')['rows']
    told = table('plans from')
    names = {
        'true masks of the scripted expert': 'oracle',
        'the same, the hand told 5 cm beside where they show it': 'oracle_off',
        'the embedded model, the best of six plans': 'trajectory',
        'a model of one stage that draws no masks, by the optical flow of its video': 'one_stage',
        'none: the object taken to a random place': 'random',
    }
    assert set(told) == set(names)
    for name, (solved, episodes) in told.items():
        assert solved == round(rows[names[name]]['mean'])
        assert episodes == rows[names[name]]['all']['episodes']


def test_recipes_are_compared_as_in_the_result_file():
    found = read_result('recipes')['differences']
    names = {
        "the paper's recipe, told the text": 'ours - paper, text',
        'the same, ours trained on texts alone': 'ours_text - paper, text',
        "the paper's recipe, told the goal": 'ours - paper_goal, goal',
        "the paper's stage 2, shown the true masks": 'ours - paper, oracle masks',
    }
    for name, key in names.items():
        told = [[float(x) for x in re.findall(r'[+-]?\d+\.\d', cell)] for cell in cells('ours against', name)]
        metrics = (('object_iou', 100), ('actor_iou', 100), ('psnr', 1))
        for numbers, (metric, factor) in zip(told, metrics, strict=True):
            value = found[key].get(metric)
            expected = [] if value is None else [value[part] * factor for part in ('mean', 'low', 'high')]
            assert numbers == pytest.approx(expected, abs=0.051)
    gaps = [found[f'{row}, oracle masks - text']['psnr']['mean'] for row in ('ours', 'paper')]
    told = re.search(r'distance between the two shrinks by (\d+) %', PROSE)[1]
    assert int(told) == round(100 * (1 - gaps[0] / gaps[1]))
    before = read_result('recipes_20min')['differences']['ours - paper, text']['object_iou']['mean']
    assert float(re.search(r'training it was ahead by ([\d.]+) points', PROSE)[1]) == round(100 * before, 1)
    rows = read_result('recipes')['splits']['test']['rows']
    told = re.search(r'repeated \(([\d.]+) on new placements; ([\d.]+) ours, ([\d.]+) the paper', PROSE)
    for number, row in zip(told.groups(), ('static', 'ours, text', 'paper, text'), strict=True):
        assert float(number) == round(rows[row]['object_iou']['mean'], 2)


def test_training_memory_is_that_of_the_result_file():
    recipes = read_result('training_cost')['recipes']
    told = re.search(r'takes ([\d.]+) GiB by LoRA and ([\d.]+) GiB', PROSE).groups()
    measured = (recipes[name]['peak memory GiB'] for name in ('lora_video', 'hoi4d_video'))
    assert [float(value) for value in told] == [round(value, 1) for value in measured]


def test_replayed_actions_are_those_of_the_result_file():
    tasks = read_result('new_motion_replay')['by task']

    def over(row, name, taken):
        found = [rows[row] for task, rows in tasks.items() if (task in GOAL_TASKS) == taken]
        episodes = sum(one['episodes'] for one in found)
        if name == 'solved':
            return episodes, round(sum(one['solved'][0] * one['episodes'] for one in found) / 100)
        return round(sum(one[name] * one['episodes'] for one in found) / episodes, 1)

    told = re.search(
        r'inferred for (\d+) episodes that push, press or pull solve (\d+) with the recorded motion, (\d+) '
        r'with another seed and (\d+) with another goal; the hand is ([\d.]+) cm, ([\d.]+) cm and '
        r'([\d.]+) cm',
        PROSE,
    )
    count, *numbers = map(float, told.groups())
    rows = 'same motion, inferred', 'new seed', 'new goal'
    assert [over(row, 'solved', False) for row in rows] == [(count, number) for number in numbers[:3]]
    assert numbers[3:] == [over(row, 'hand off', False) for row in rows]
    told = re.search(
        r'of (\d+) episodes in which a thing is taken .*? solve (\d+) with the recorded motion and (\d+) ',
        PROSE,
    )
    count, *numbers = map(int, told.groups())
    assert [over(row, 'solved', True) for row in rows[:2]] == [(count, number) for number in numbers]


def test_refused_episodes_are_those_of_the_result_file():
    result = read_result('gate_calibration')
    refused = result['good from 15 dB']['default']['refused']['all']
    told = re.search(
        r'the gates refuse (\d+) of (\d+) deliberately damaged variants, '
        r'(\d+) of (\d+) repainted copies .*?'
        r'(\d+) of (\d+) good ones that the model drew',
        PROSE,
    )
    drawn = re.compile('drawn|background kept')

    def total(wanted):
        return [sum(x) for x in zip(*(v for k, v in refused.items() if wanted(k)), strict=True)]

    assert [int(x) for x in told.groups()] == [
        *total(lambda kind: kind.startswith('bad') and not drawn.search(kind)),
        *total(lambda kind: kind.startswith('good') and not drawn.search(kind)),
        *total(lambda kind: kind.startswith('good') and drawn.search(kind)),
    ]


def test_policies_are_those_of_the_result_file():
    rows = read_result('policy_gain')['rows']
    names = {
        '12 demonstrations': 'real',
        "the same 12, with LeRobot's image transforms": 'ordinary',
        'the 12 and 20 repainted copies of each': 'every_frame',
        'the 12 and 20 repainted copies of each, half of each batch recorded': 'half_real',
        'the 12 and 10 copies of each that the embedded model drew (`--keep background`)': 'same_motion',
        '48 demonstrations': 'real_4n',
    }
    for name, key in names.items():
        *found_cells, each = cells('trained on', name)
        told = [[int(x) for x in re.findall(r'\d+', cell)] for cell in found_cells]
        for numbers, look in zip(told, ('training', 'changed'), strict=True):
            found = rows[key]['looks'][look]
            assert numbers == [round(found[part]) for part in ('success', 'low', 'high')]
        policies = rows[key]['looks']['changed']['policies'].values()
        assert each.strip() == ', '.join(f'{value:.0f}' for value in policies)


def test_speed_is_that_of_the_result_files():
    latency = read_result('latency_cpu')
    kinds = {
        'masks and video': 'whole call',
        'masks and video, with a goal': 'with a goal',
        'masks only': 'trajectory only',
    }
    for row, kind in kinds.items():
        found = latency['calls']['640x480'][kind]['median']
        stage_1, _, outside, total = cells('seconds', row)
        assert float(stage_1) == round(found['trajectory'], 2)
        assert float(outside) == round(found['outside the model'], 2)
        assert float(total) == round(found['total'], 1)
    amx = read_result('latency_cpu_amx')['calls']['640x480']
    told = re.search(r'with AMX took ([\d.]+) s for masks and video and ([\d.]+) s for masks', PROSE).groups()
    assert [float(x) for x in told] == [
        round(amx[kind]['median']['total'], 1) for kind in ('whole call', 'trajectory only')
    ]
    ready = re.search(r'ready (\d+) s after its start \((\d+) s the first', PROSE).groups()
    measured = [latency['start-up'][kind]['median'] for kind in ('warm', 'cold')]
    assert list(map(int, ready)) == [round(value) for value in measured]
    speed = read_result('speed_cpu')
    seconds, times = re.search(r'a plan takes ([\d.]+) s, ([\d.]+) times less', PROSE).groups()
    assert float(seconds) == round(speed['rows']['ours']['parts']['total']['median'], 2)
    assert float(times) == round(speed['faster']['ours']['median'], 1)
    rows = read_result('denoising_steps')['rows']
    losses = [
        value['loss']['high'] for value in rows['4'].values() if isinstance(value, dict) and 'loss' in value
    ]
    assert len(losses) == 8
    assert max(losses) < 0
    told = re.search(r'in Fréchet distance \(([\d.]+) against ([\d.]+);', PROSE).groups()
    name = 'Fréchet distance, random 3-D network'
    assert [float(x) for x in told] == [round(rows[steps][name]['mean'], 2) for steps in ('4', '50')]


def test_the_second_task_is_that_of_its_result_file():
    rows = read_result('policy_gain_drawer')['rows']
    told = re.search(
        r'12 demonstrations solve (\d+) %, with image transforms (\d+) %, with the copies (\d+) %, '
        r'and (\d+) % if half of each batch is recorded; '
        r'\*\*under the look of the training copies cost something here: (\d+), (\d+), (\d+) and (\d+) %',
        PROSE,
    )
    looks = ('changed',) * 4 + ('training',) * 4
    found = zip(('real', 'ordinary', 'every_frame', 'half_real') * 2, looks, strict=True)
    assert [int(x) for x in told.groups()] == [round(rows[r]['looks'][look]['success']) for r, look in found]
    told = re.search(r'after 8,000 steps .*? solves (\d+) % under that look and (\d+) % under others', PROSE)
    longer = read_result('policy_gain_drawer_8000')['rows']['half_real']
    assert longer['settings']['steps'] == 8000
    found = [round(longer['looks'][look]['success']) for look in ('training', 'changed')]
    assert [int(x) for x in told.groups()] == found
    rows = read_result('policy_gain')['rows']
    kept = re.search(r'a camera that was moved \((\d+) and (\d+) %; drawn alike (\d+) and (\d+)\)', PROSE)
    measured = (
        rows[row]['looks'][look]['success']
        for row in ('half_real', 'every_frame')
        for look in ('training', 'camera')
    )
    assert [int(x) for x in kept.groups()] == [round(x) for x in measured]
    moved = re.search(r'taught little about looks, (\d+) %; beside the copies (\d+) %', PROSE).groups()
    measured = (rows[row]['looks']['changed']['success'] for row in ('new_motion', 'both'))
    assert [int(x) for x in moved] == [round(x) for x in measured]


def test_throughput_is_that_of_the_result_file():
    report = read_result('augment_scale')
    hourly = {name: row['episodes_per_hour'] for name, row in report['rows'].items()}
    told = re.search(
        r'repaints ([\d,]+) episodes an hour \((\d+) frames of (\w+); ([\d,]+) with gates, ([\d,]+) if the',
        PROSE,
    )
    plain, frames, size, gated, drawn = told.groups()
    for number, kind in ((plain, 'repainted'), (gated, 'repainted, gated'), (drawn, 'drawn by the model')):
        assert int(number.replace(',', '')) == round(hourly[f'{kind}, local'], -2), kind
    assert int(frames) == round(report['frames'] / report['episodes'])
    assert [size] == report['sizes']
    told = re.search(
        r'two cores make ([\d.]+) times as many as that one process, with gates ([\d.]+) times '
        r'\(([\d.]+) and ([\d.]+) times one Ray worker\)',
        PROSE,
    )
    times, kinds = map(float, told.groups()), ('repainted', 'repainted, gated')
    against = [(kind, one) for one in ('local', '1') for kind in kinds]
    for number, (kind, one) in zip(times, against, strict=True):
        assert number == round(hourly[f'{kind}, 2'] / hourly[f'{kind}, {one}'], 1)
    memory = report['memory']['megabytes']
    assert report['memory']['episodes'] >= 1000
    assert memory[-1] < 1.1 * memory[len(memory) // 10]


def test_the_wait_for_a_new_plan_is_that_of_the_result_file():
    report = read_result('replan_cpu')
    one, six = (report[f'{count} samples']['median'] for count in (1, 6))
    told = re.search(
        r'waits ([\d.]+) s: ([\d.]+) s for images, ([\d.]+) s for the model, ([\d.]+) s for messages and '
        r'rules. With six plans to choose from it is ([\d.]+) s',
        PROSE,
    )
    measured = one['total'], one['images'], one['model'], one['service'] + one['rules'], six['total']
    assert [float(x) for x in told.groups()] == [round(x, 1) for x in measured]
