"""Recipes and baselines at equal training time: trains and evaluates the rows of one table.

    python benchmarks/recipes.py DATA OUT --row paper --minutes 30   # a row; a stopped run goes on
    python benchmarks/recipes.py --table OUT   # results/recipes.{json,md,png} of the rows in OUT

DATA is what `mask2iv simulate` makes. Rows: `one_stage` (image and text to video, no masks),
`controlnet_actor` and `masklatent_actor` (stage 2 sees the actor's masks alone, as the hand's in the paper's
ablation), `paper` and `paper_goal` (its recipe in text and in position mode, which take a checkpoint each),
`ours`, and `ours_text`, which knows texts alone, as `paper` does. The first frame repeated and stage 2 on
real masks come with every evaluation.

All rows have the same VAE, text encoder, sizes of networks, optimiser, batch size, data and held-out clips.
`--minutes` are those of training steps: half for each stage, all of it for a model of one stage. Before a
stage is trained, `TIMED_STEPS` tell how many steps fit, so that the learning rate falls to its end within the
time. What rows have in common is trained once: `controlnet_actor`, `masklatent_actor` and `paper` share their
stage 1, `paper` and `paper_goal` their stage 2, `ours` and `ours_text` theirs. Predicting the masks that a
stage 2 is trained on counts as its training time; encoding by the frozen VAE and scoring of held-out clips do
not. Rows of one OUT are made one after the other.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import yaml
from matplotlib.figure import Figure

from mask2iv_ros.cli import main as mask2iv
from mask2iv_ros.evaluation.evaluate import SPLITS
from mask2iv_ros.evaluation.journal import read_lines
from mask2iv_ros.evaluation.metrics import mean_and_interval
from mask2iv_ros.evaluation.report import ORACLE, STILL_MASKS, STILL_VIDEO, table
from mask2iv_ros.resources import config_path
from mask2iv_ros.training.recipe import Recipe
from mask2iv_ros.weights import DEFAULT_MODEL

#: Steps that are timed, after `WARM_STEPS` that are not.
WARM_STEPS, TIMED_STEPS = 5, 20
METRICS = (
    'object_iou', 'actor_iou', 'object_centroid_px', 'contact_frame_error',
    'psnr', 'psnr_moving_pixels', 'ssim', 'lpips', 'fvd', 'frechet_random3d',
)  # fmt: skip
FIGURE_METRICS = ('object_iou', 'actor_iou', 'psnr_moving_pixels', 'ssim')


@dataclass(frozen=True)
class Training:
    """One stage of a row: name in config/train/, stage, training it goes on from, share of the minutes, and
    options that are not those of the configuration."""

    config: str
    stage: str
    after: str | None = None
    share: float = 0.5
    options: dict = field(default_factory=dict)


#: Stage 1 is told the text of every clip and never a goal, as the paper's in text mode.
TEXT_ALONE = {
    'goal_channels': False,
    'goal_guidance': 1.0,
    'conditions': {
        'text_only': 1.0, 'goal_only': 0.0, 'goal_box': 0.0, 'goal_point': 0.0,
        'no_actor': 0.0, 'neither': 0.0, 'stopped': 0.0,
    },
}  # fmt: skip
TRAININGS = {
    'paper_trajectory': Training('metaworld_trajectory', 'trajectory'),
    'ours_trajectory': Training('mask2iv-sim', 'trajectory'),
    'one_stage': Training('metaworld_one_stage_video', 'video', share=1.0),
    'controlnet_actor': Training('metaworld_controlnet_actor_video', 'video', 'paper_trajectory'),
    'masklatent_actor': Training('metaworld_masklatent_actor_video', 'video', 'paper_trajectory'),
    'paper': Training('metaworld_video', 'video', 'paper_trajectory'),
    'paper_goal': Training('metaworld_goal_trajectory', 'trajectory', 'paper'),
    'ours': Training('mask2iv-sim', 'video', 'ours_trajectory'),
    'ours_text': Training('mask2iv-sim', 'trajectory', 'ours', options=TEXT_ALONE),
}
#: The control modes that each row, named by its last training, is trained for.
ROWS = {
    'one_stage': ('text',),
    'controlnet_actor': ('text',),
    'masklatent_actor': ('text',),
    'paper': ('text',),
    'paper_goal': ('goal',),
    'ours': ('text', 'goal', 'text+goal', 'text without actor'),
    'ours_text': ('text',),
}
#: What is compared clip by clip: (row, control mode) less (row, control mode).
PAIRS = (
    (('ours', 'text'), ('paper', 'text')),
    (('ours_text', 'text'), ('paper', 'text')),
    (('ours', 'goal'), ('paper_goal', 'goal')),
    (('ours', ORACLE), ('paper', ORACLE)),
    (('ours', 'text'), ('one_stage', 'text')),
    (('paper', ORACLE), ('paper', 'text')),
    (('ours', ORACLE), ('ours', 'text')),
)


def trainings_of(row: str) -> dict[str, str]:
    """{stage: training} whose weights the row has."""
    names, name = {}, row
    while name:
        names.setdefault(TRAININGS[name].stage, name)
        name = TRAININGS[name].after
    return names


class Benchmark:
    """Trains and evaluates rows in `out`: a folder for each training and row, `cache/` of decoded clips."""

    def __init__(self, data: Path, out: Path, minutes: float, init: str, networks: Path):
        self.data, self.out, self.minutes, self.init = data, out, minutes, init
        config = yaml.safe_load(networks.read_text())
        self.networks = {key: config[key] for key in ('unet', 'image_projector')}
        self.request = {
            'minutes': minutes, 'data': data.resolve().name, 'init': init, 'networks': self.networks,
        }  # fmt: skip

    def train(self, name: str) -> bool:
        """Train `name` and what it goes on from into `out`/`name`/model; False if it was stopped."""
        training, folder = TRAININGS[name], self.out / name
        if training.after and not self.train(training.after):
            return False
        config, facts = folder / 'config.yaml', folder / 'training.json'
        if facts.is_file():
            if (made := json.loads(facts.read_text())['request']) != self.request:
                raise ValueError(f'{folder} was made for {made}, not {self.request}; choose another folder')
        else:
            self._plan(name, config, facts)
        recipe = self._recipe(name, config, folder)
        if (folder / 'model').is_dir():
            return True
        if not recipe.train(training.stage):
            return False
        recipe.assemble()
        return True

    def _plan(self, name: str, config: Path, facts: Path) -> None:
        """Time some steps, and write the configuration whose steps fit the time."""
        training = TRAININGS[name]
        known = yaml.safe_load(config_path(f'train/{training.config}.yaml').read_text())
        section = known[training.stage]
        section['options'] = {**section['options'], **training.options}
        scratch = self.out / name / 'timing'
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)

        def write(path: Path, steps: int) -> None:
            warmup = min(section['schedule']['warmup_steps'], steps // 10)
            schedule = {**section['schedule'], 'steps': steps, 'warmup_steps': warmup}
            wanted = {
                'name': name,
                'sampling': known['sampling'],
                **self.networks,
                training.stage: {**section, 'schedule': schedule},
                'validation': {'every_steps': steps, 'clips': 4, 'export': 'last'},
            }
            path.write_text(yaml.safe_dump(wanted, sort_keys=False))

        write(scratch / 'config.yaml', WARM_STEPS)
        recipe = self._recipe(name, scratch / 'config.yaml', scratch)
        stage = recipe.stage_trainer(training.stage)
        seconds = []
        for steps in (WARM_STEPS, WARM_STEPS + TIMED_STEPS):
            stage.trainer.schedule.steps = steps
            if not stage.trainer.run(stage.loss_at):
                raise SystemExit(f'{name}: stopped; the same command goes on')
            seconds.append(stage.trainer.seconds)
        seconds = (seconds[1] - seconds[0]) / TIMED_STEPS
        budget = 60 * self.minutes * training.share - recipe.prediction_seconds
        write(config, max(1, round(budget / seconds)))
        model = stage.trainer.accelerator.unwrap_model(stage.trainer.model)
        written = {
            'request': self.request,
            'timed_seconds_per_step': seconds,
            'prediction_seconds': recipe.prediction_seconds,
            'parameters': sum(p.numel() for p in model.parameters()),
            'batch_size': stage.options.batch_size,
            'clips': len(stage.arrays),
            'machine': machine(),
        }
        facts.write_text(json.dumps(written, indent=1) + '\n')
        shutil.rmtree(scratch)

    def _recipe(self, name: str, config: Path, folder: Path) -> Recipe:
        after = TRAININGS[name].after
        init = self.out / after / 'model' if after else self.init
        return Recipe(config, self.data, folder, init, cache=self.out / 'cache')

    def evaluate(self, row: str, clips: int, device: str) -> None:
        """`mask2iv evaluate` of a row on all test splits, into `out`/`row`/evaluation."""
        folder = self.out / row
        command = ['evaluate', self.data, '-o', folder / 'evaluation', '--model', f'{row}={folder / "model"}']
        command += ['--clips', clips, '--text-clips', 0, '--device', device, '--dtype', 'bfloat16']
        command += ['--controls', *ROWS[row]]
        if status := mask2iv([str(argument) for argument in command]):
            raise SystemExit(status)


def machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f'{platform.machine()} CPU, {torch.get_num_threads()} threads'


def write_table(out: Path, results: Path) -> dict:
    """Write `results`.json, .md and .png of the rows that are in `out`.

    Raises:
        ValueError: there is none, or rows were evaluated on different clips.
    """
    rows = [row for row in ROWS if any((out / row / 'evaluation').glob('*.json'))]
    if not rows:
        raise ValueError(f'{out}: has no evaluated row')
    trainings = {row: {s: describe(out / name) for s, name in trainings_of(row).items()} for row in rows}
    splits = {}
    for split in SPLITS:
        paths = {row: out / row / 'evaluation' / f'{split}.json' for row in rows}
        reports = {row: json.loads(path.read_text()) for row, path in paths.items() if path.is_file()}
        digests = {row: report['test_digest'] for row, report in reports.items()}
        if len(set(digests.values())) > 1:
            raise ValueError(f'{split}: rows were evaluated on different clips: {digests}')
        if reports:
            splits[split] = compare_split(out, split, reports)
    report = {'trainings': trainings, 'splits': splits, 'differences': differences(out, list(splits), rows)}
    results.parent.mkdir(parents=True, exist_ok=True)
    results.with_suffix('.json').write_text(json.dumps(report, indent=1) + '\n')
    results.with_suffix('.md').write_text(markdown(report))
    draw(splits, results.with_suffix('.png'))
    return report


def describe(folder: Path) -> dict:
    """Steps and times of a training."""
    facts = json.loads((folder / 'training.json').read_text())
    stage = TRAININGS[folder.name].stage
    done = json.loads((folder / stage / 'checkpoint' / 'step.json').read_text())
    exported = json.loads((folder / stage / 'stage.json').read_text())['best']
    return {
        'training': folder.name,
        **facts,
        'steps': done['step'],
        'exported_step': exported['step'] if exported else done['step'],
        'seconds': done['seconds'],
        'seconds_per_step': done['seconds'] / done['step'],
    }


def compare_split(out: Path, split: str, reports: dict[str, dict]) -> dict:
    """Rows by name and control mode, and differences of ours clip by clip."""
    first = next(iter(reports.values()))
    still = first['summary']['all clips']
    rows = {'static': {**still[STILL_MASKS], **still[STILL_VIDEO]}}
    for row, report in reports.items():
        summary = report['summary']['all clips']
        for control in (*ROWS[row], ORACLE):
            scores = {**summary.get(control, {}), **summary.get(f'{control} masks', {})}
            if scores:
                rows[f'{row}, {control}'] = scores
    return {
        'clips': first['clips'],
        'moving_clips': first['moving_clips'],
        'size': first['size'],
        'test_digest': first['test_digest'],
        'sampling': {row: report['models'][row] for row, report in reports.items()},
        'rows': rows,
        'differences': differences(out, [split], list(reports)),
    }


def differences(out: Path, splits: list[str], rows: list[str]) -> dict:
    """{'row - row, control': {metric: mean and interval of the clips of `splits`, clip by clip}}.

    `test` and `test_camera` are the same episodes through different cameras, so that the mean of both counts
    once. Splits that a row was not evaluated on are left out.
    """
    found = {}
    for pair in PAIRS:
        (row, control), (other, its_control) = pair
        values: dict[str, dict[tuple[str, int], list[float]]] = {}
        for split in splits if {row, other} <= set(rows) else ():
            one, its = (clip_scores(out / name / 'evaluation', split, told) for name, told in pair)
            for clip in sorted(one.keys() & its.keys()):
                episode = 'test' if split == 'test_camera' else split, clip
                for metric in METRICS:
                    if metric in one[clip] and metric in its[clip]:
                        difference = one[clip][metric] - its[clip][metric]
                        values.setdefault(metric, {}).setdefault(episode, []).append(difference)
        if values:
            name = f'{row} - {other}, {control}' if row != other else f'{row}, {control} - {its_control}'
            found[name] = {
                metric: mean_and_interval(np.array([np.mean(clips) for clips in of.values()]))
                for metric, of in values.items()
            }
    return found


def clip_scores(folder: Path, split: str, control: str) -> dict[int, dict[str, float]]:
    """{clip: {metric: value}} of a control mode's masks and video, of the clips that are in the report."""
    report = folder / f'{split}.json'
    if not report.is_file():
        return {}
    facts, found = json.loads(report.read_text()), {}
    lines = read_lines(folder / f'{split}.clips.jsonl')[1:]
    for clip, result in enumerate(lines[: facts['clips'] + len(facts['skipped'])]):
        if rows := result.get('rows'):
            found[clip] = {**rows.get(control, {}), **rows.get(f'{control} masks', {})}
    return found


def markdown(report: dict) -> str:
    lines = ['# Recipes and baselines at equal training time', '', 'Made by `benchmarks/recipes.py`.', '']
    lines += ['| row | minutes asked | stage | clips | parameters | seconds a step | steps | weights of step '
              '| minutes of steps | minutes of predicting masks | machine |', '|---' * 11 + '|']  # fmt: skip
    for row, stages in report['trainings'].items():
        for stage, facts in sorted(stages.items()):
            cells = [row, facts['request']['minutes'], stage, facts['clips'], f'{facts["parameters"]:,}']
            cells += [f'{facts["seconds_per_step"]:.3f}', facts['steps'], facts['exported_step']]
            cells += [f'{facts[name] / 60:.1f}' for name in ('seconds', 'prediction_seconds')]
            lines.append('| ' + ' | '.join(map(str, (*cells, facts['machine']))) + ' |')
    for split, found in report['splits'].items():
        height, width = found['size']
        lines += ['', f'## {split}: {found["clips"]} clips, {found["moving_clips"]} of them moving']
        lines += ['', f'Scored at {height}x{width} pixels; mean over clips and its 95 % interval.']
        steps = ', '.join(f'{row} {model["num_inference_steps"]}' for row, model in found['sampling'].items())
        lines += [f'Denoising steps: {steps}.']
        lines += table('row, control', found['rows'], METRICS)
        if found['differences']:
            lines += table('difference a clip', found['differences'], METRICS)
    if report['differences']:
        lines += ['', '## Differences over all splits']
        lines += ['', 'Of an episode that is seen through two cameras the mean of both counts once.']
        lines += table('difference a clip', report['differences'], METRICS)
    return '\n'.join(lines) + '\n'


def draw(splits: dict[str, dict], path: Path) -> None:
    """A line of panels for each split: one bar a row and control mode, with its interval."""
    figure = Figure(figsize=(15, 4 * len(splits)), layout='constrained')
    grid = figure.subplots(len(splits), len(FIGURE_METRICS), squeeze=False)
    for line, (split, found) in zip(grid, splits.items(), strict=True):
        names = list(found['rows'])
        for axes, metric in zip(line, FIGURE_METRICS, strict=True):
            for place, name in enumerate(names):
                if value := found['rows'][name].get(metric):
                    errors = [[max(0, value['mean'] - value['low'])], [max(0, value['high'] - value['mean'])]]
                    colour = (
                        '#d1803a' if name.startswith('ours') else '#9a9a9a' if name == 'static' else '#4878a8'
                    )
                    axes.barh(place, value['mean'], xerr=errors, color=colour, capsize=2)
            axes.set_yticks(range(len(names)), names if axes is line[0] else [])
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.set_title(f'{split}: {metric}', loc='left', fontsize=10)
            axes.spines[['top', 'right']].set_visible(False)
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('data', type=Path, nargs='?', help='folder with datasets train, test, ...')
    parser.add_argument('out', type=Path, nargs='?', help='folder for all rows')
    parser.add_argument('--row', nargs='+', choices=ROWS, help='rows to train and evaluate')
    parser.add_argument('--minutes', type=float, default=30, help='of training steps, both stages together')
    parser.add_argument('--init', default=DEFAULT_MODEL, help='model whose VAE and text encoder are taken')
    parser.add_argument(
        '--networks',
        type=Path,
        default=config_path('train/mask2iv-sim.yaml'),
        help='configuration whose unet and image_projector all rows have',
    )
    parser.add_argument('--clips', type=int, default=0, help='first clips of each test split; 0: all')
    parser.add_argument(
        '--device', default='auto', help='for the evaluation; training takes a GPU if there is one'
    )
    parser.add_argument('--table', type=Path, metavar='OUT', help='write the table of what is in OUT')
    parser.add_argument(
        '--results', type=Path, default=Path(__file__).parent / 'results' / 'recipes', help='without suffix'
    )
    options = parser.parse_args(arguments)
    if options.table:
        write_table(options.table, options.results)
        print(options.results.with_suffix('.md').read_text())
        return
    if not options.out or not options.row:
        parser.error('expected DATA, OUT and --row, or --table OUT')
    benchmark = Benchmark(options.data, options.out, options.minutes, options.init, options.networks)
    for row in options.row:
        if not benchmark.train(row):
            print(f'{row}: stopped; the same command goes on')
            return
        benchmark.evaluate(row, options.clips, options.device)


if __name__ == '__main__':
    main()
