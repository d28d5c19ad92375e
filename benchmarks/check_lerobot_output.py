"""What do LeRobot's own tools and public checkers say of an output of `mask2iv augment`? Writes JSON.

    mask2iv augment DATA OUT --segmenter FOLDER --variants 2 --include-source --hold-out 0.2
    python -m venv /tmp/checkers && /tmp/checkers/bin/pip install lerobot-doctor lerobot-lint
    python benchmarks/check_lerobot_output.py OUT DATA --checkers /tmp/checkers/bin

LeRobot must read every frame back, merge OUT with its source, delete and split (by `grouped_split`) its
episodes and train on it. The checkers look at both datasets, as columns that are the source's verbatim earn
what they earn there. What lelint says of an episode of OUT and not, of that joint, of the episode it was made
from is listed as `new`. A checker that is not there is reported as missing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import numpy as np
from lerobot.datasets import LeRobotDataset, delete_episodes, merge_datasets

from mask2iv_ros.augmentation.output import SIDECAR, grouped_split

#: Of ACT, as small as LeRobot lets it be.
POLICY = {
    **{'type': 'act', 'device': 'cpu', 'push_to_hub': 'false', 'pretrained_backbone_weights': 'null'},
    **{'dim_model': 8, 'n_heads': 1, 'dim_feedforward': 8, 'n_encoder_layers': 1, 'use_vae': 'false'},
    **{'chunk_size': 4, 'n_action_steps': 4},
}


def opened(root: Path) -> LeRobotDataset:
    return LeRobotDataset(root.name, root=root, video_backend='pyav')


def lerobot(script: str, *options: str) -> str:
    """What a command of LeRobot prints."""
    command = [sys.executable, '-m', f'lerobot.scripts.lerobot_{script}', *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f'lerobot-{script.replace("_", "-")}: {done.stderr[-2000:]}')
    return done.stdout + done.stderr


def train_act(root: Path, run: Path, eval_split: float, steps: int, batch_size: int) -> str:
    """What lerobot-train prints, which evaluates at the end; `run` is a new folder."""
    data = {'repo_id': 'out', 'root': root, 'video_backend': 'pyav', 'eval_split': eval_split}
    return lerobot(
        'train',
        *(f'--policy.{key}={value}' for key, value in POLICY.items()),
        *(f'--dataset.{key}={value}' for key, value in data.items()),
        *(f'--steps={steps}', '--log_freq=1', f'--eval_steps={steps}', f'--batch_size={batch_size}'),
        *('--num_workers=0', '--save_checkpoint=false', f'--output_dir={run}'),
    )


def use_lerobot(out: Path, source: Path, work: Path) -> dict:
    """Counts of episodes and frames after each operation; raises what LeRobot raises."""
    data, told = opened(out), {'version': version('lerobot')}
    told['read'] = {'episodes': data.meta.total_episodes, 'frames': sum(1 for _ in data)}
    merged = merge_datasets([opened(source), data], 'merged', work / 'merged')
    told['merge_datasets with the source'] = {'episodes': merged.meta.total_episodes}
    rest = delete_episodes(data, [0], output_dir=work / 'rest', repo_id='rest')
    told['delete_episodes [0]'] = {'episodes': rest.meta.total_episodes}
    splits = json.dumps(grouped_split(out, 0.2))
    split = ['--operation.type=split', f'--operation.splits={splits}']
    lerobot('edit_dataset', '--repo_id=out', f'--root={out}', f'--new_root={work / "split"}', *split)
    sides = {side: opened(work / 'split' / side).meta.total_episodes for side in json.loads(splits)}
    told['lerobot-edit-dataset split'] = {'episodes': sides}
    fraction = json.loads((out / SIDECAR).read_text())['safe_eval_split'] or 0.0
    log = train_act(out, work / 'run', fraction, steps=4, batch_size=4)
    losses = [float(loss) for loss in re.findall(r'step:\d+ .* loss:([\d.naif]+)', log)]
    evaluated = re.findall(r'eval_loss=([\d.naif]+)', log)
    told['lerobot-train, ACT'] = {'losses': losses, 'eval_losses': [float(loss) for loss in evaluated]}
    if len(losses) != 4 or not np.isfinite([*losses, *map(float, evaluated)]).all():
        raise RuntimeError(f'lerobot-train: expected 4 finite losses, got {losses}, {evaluated}')
    return told


def ask(tool: Path, *options: str | Path) -> str:
    """What a checker prints; it says by its exit status that there are complaints, so that is no error."""
    done = subprocess.run([tool, *map(str, options)], capture_output=True, text=True)
    return done.stdout or done.stderr


def ask_doctor(tool: Path, out: Path, source: Path) -> dict:
    told = {'version': ask(tool, '--version').split()[-1]}
    for name, root in (('output', out), ('source', source)):
        report = json.loads(ask(tool, 'check', root, '--json'))
        complaints = [
            f'{message["severity"]} {check["name"]}: {message["message"]}'
            for check in report['checks']
            for message in check['messages']
            if message['severity'] != 'PASS'
        ]
        gate = json.loads(ask(tool, 'gate', root, '--policy', 'act', '--json'))
        told[name] = {'summary': report['summary'], 'complaints': complaints, 'gate act': gate}
    told['merge-check'] = ask(tool, 'merge-check', source, out).splitlines()
    return told


def ask_lelint(tool: Path, out: Path, source: Path, work: Path) -> dict:
    told, findings = {'version': ask(tool, 'version').strip()}, {}
    for name, root in (('output', out), ('source', source)):
        said = ask(tool, 'check', root, '--json', work / f'{name}.json')
        if not (work / f'{name}.json').is_file():
            return {**told, 'crashed': said}
        report = json.loads((work / f'{name}.json').read_text())
        findings[name] = report['findings']
        kinds = Counter(f'{each["severity"]} {each["check"]}' for each in report['findings'])
        told[name] = {'summary': report['summary'], 'findings': dict(sorted(kinds.items()))}
    records = json.loads((out / SIDECAR).read_text())['episodes']
    made_from = {each['episode_index']: each['source_episode'] for each in records}
    known = {(each['check'], each['joint'], each['episode']) for each in findings['source']}
    told['new'] = [
        {key: each[key] for key in ('severity', 'check', 'joint', 'episode', 'message')}
        for each in findings['output']
        if (each['check'], each['joint'], made_from.get(each['episode'])) not in known
    ]
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('output', type=Path)
    parser.add_argument('source', type=Path)
    parser.add_argument('--checkers', default=os.environ['PATH'], help='folder of the programs; else PATH')
    results = Path(__file__).parent / 'results' / 'check_lerobot_output.json'
    parser.add_argument('-o', '--out', type=Path, default=results)
    args = parser.parse_args()
    out, source = args.output.resolve(), args.source.resolve()
    with tempfile.TemporaryDirectory() as folder:
        result = {'lerobot': use_lerobot(out, source, Path(folder))}
        for name, check in (('lerobot-doctor', ask_doctor), ('lelint', ask_lelint)):
            tool = shutil.which(name, path=args.checkers)
            more = [Path(folder)] if check is ask_lelint else []
            result[name] = check(Path(tool), out, source, *more) if tool else 'missing'
    text = json.dumps(result, indent=1).replace(str(out), 'OUTPUT').replace(str(source), 'SOURCE')
    args.out.write_text(text + '\n')
    print(text)


if __name__ == '__main__':
    main()
