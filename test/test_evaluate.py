"""`mask2iv evaluate`: every row and split is reported, a stopped run goes on, names of metrics are honest."""

import json
import shutil

import numpy as np
import pytest
import torch
from dataset_fixtures import write_trajectory
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from mask2iv_ros import labels as lb
from mask2iv_ros.cli import main
from mask2iv_ros.clip import InteractionClip
from mask2iv_ros.data.episodes import open_dataset
from mask2iv_ros.data.lerobot import LeRobotClipWriter
from mask2iv_ros.data.metaworld_tasks import TASKS
from mask2iv_ros.data.paper_benchmarks import prepare_bridge
from mask2iv_ros.evaluation import texts
from mask2iv_ros.evaluation.evaluate import CONTROLS, Evaluation, Settings, open_splits
from mask2iv_ros.evaluation.extractors import I3D_FILE, LPIPS_FILE, Extractors
from mask2iv_ros.evaluation.report import cell
from tiny_model import build_tiny_pipeline

CPU = torch.device('cpu')
SIZE = 32, 48
SCENES = 'drawer-open', 'faucet-close'


def moving_clip(index: int, size: tuple[int, int] = SIZE) -> InteractionClip:
    """A square that an actor pushes to the right, at one of two scenes' names."""
    labels = np.zeros((8, *size), np.uint8)
    for t in range(8):
        labels[t, 10:20, 6 + 3 * t : 16 + 3 * t] = lb.OBJECT
        labels[t, 12:16, 2 + 3 * t : 6 + 3 * t] = lb.ACTOR
    frames = lb.labels_to_rgb(labels) // 2 + np.uint8(40 + index)
    scene = SCENES[index % 2]
    return InteractionClip(frames, labels, task=TASKS[scene].text, source={'task': scene, 'seed': index})


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    for split, count in (('test', 2), ('test_tasks', 1)):
        with LeRobotClipWriter(folder / split) as writer:
            for index in range(count):
                writer.add(moving_clip(index + 10 * (split == 'test_tasks')))
    return folder


@pytest.fixture(scope='module')
def extractors():
    return Extractors(None, '/no/such/model', CPU)


@pytest.fixture(scope='module')
def model():
    return build_tiny_pipeline()


def evaluation(model, extractors, out, **options) -> Evaluation:
    models = model if isinstance(model, dict) else {'tiny': model}
    return Evaluation(models, out, Settings(SIZE, **options), extractors)


@pytest.fixture(scope='module')
def evaluated(data, model, extractors, tmp_path_factory):
    out = tmp_path_factory.mktemp('evaluated')
    work = evaluation(model, extractors, out, text_clips=1)
    return out, {split: work.run(reader, split) for split, reader in open_splits(data).items()}


class TestReport:
    def test_every_control_mode_is_a_row_of_masks_and_of_video(self, evaluated):
        rows = evaluated[1]['test']['summary']['all clips']
        assert {'static', *CONTROLS} <= {row for row in rows if 'object_iou' in rows[row]}
        videos = {'first frame repeated', 'oracle masks', *(f'{control} masks' for control in CONTROLS)}
        assert videos == {row for row in rows if 'psnr' in rows[row]}
        assert rows['text']['object_iou'].keys() == {'mean', 'low', 'high', 'clips'}
        assert rows['text']['object_iou']['clips'] == 2

    def test_splits_are_reported_separately(self, evaluated):
        out, reports = evaluated
        assert {split: report['clips'] for split, report in reports.items()} == {'test': 2, 'test_tasks': 1}
        assert json.loads((out / 'test_tasks.json').read_text()) == reports['test_tasks']

    def test_tasks_are_reported_separately(self, evaluated):
        tasks = evaluated[1]['test']['tasks']
        assert {task: rows['static']['object_iou']['clips'] for task, rows in tasks.items()} == {
            'drawer-open': 1,
            'faucet-close': 1,
        }

    def test_the_static_row_is_what_its_name_says(self, evaluated):
        truth = moving_clip(0).labels
        expected = np.mean([lb.iou(truth[0] == lb.OBJECT, t == lb.OBJECT) for t in truth[1:]])
        rows = evaluated[1]['test']['summary']['all clips']
        assert rows['static']['object_iou']['mean'] == pytest.approx(expected, abs=1e-6)
        assert rows['first frame repeated']['flicker']['mean'] == 0
        assert evaluated[1]['test']['moving_clips'] == 2

    def test_other_texts_are_compared_with_truth_and_with_the_own_text(self, evaluated):
        kinds = evaluated[1]['test']['texts']['tiny']
        assert set(kinds) == {
            'own text', 'own text, other seed', 'paraphrase', 'misspelt', 'object not there', 'no text',
        }  # fmt: skip
        for scores in kinds.values():
            assert scores['object_iou']['clips'] == 1
        assert kinds['own text']['object_same']['mean'] == 1
        assert kinds['own text, other seed']['object_same']['mean'] < 1

    def test_a_metric_without_weights_is_left_out_and_named(self, evaluated):
        out, reports = evaluated
        assert set(reports['test']['left_out']) == {'FVD', 'LPIPS', 'CLIP', 'ViCLIP', 'EgoVLP'}
        row = reports['test']['summary']['all clips']['text masks']
        assert not {'fvd', 'lpips', 'clip_text'} & set(row)
        assert f'FVD: needs {I3D_FILE}' in (out / 'test.md').read_text()

    def test_markdown_has_every_row(self, evaluated):
        text = (evaluated[0] / 'test.md').read_text()
        for row in ('static', 'text without actor masks', 'oracle masks', 'misspelt', 'faucet-close'):
            assert f'| {row} |' in text

    def test_pictures_for_people(self, evaluated):
        out = evaluated[0]
        assert Image.open(out / 'test.png').size[0] > 1000
        sheets = sorted(path.name for path in (out / 'sheets').iterdir())
        assert sheets == ['test_drawer-open.jpg', 'test_faucet-close.jpg', 'test_tasks_drawer-open.jpg']

    def test_a_table_says_how_few_clips_there_were(self):
        value = {'mean': 0.5, 'low': 0.4, 'high': 0.6, 'clips': 3}
        assert cell(value) == '0.500 (3 clips)'
        assert cell({**value, 'clips': 30}) == '0.500 (0.400 to 0.600)'


class TestResume:
    def run(self, data, model, extractors, out, clips, **options):
        work = evaluation(model, extractors, out, trajectory_only=True, text_clips=0, **options)
        return work.run(open_splits(data, ['test'])['test'], 'test', clips)

    def test_a_stopped_evaluation_goes_on_after_the_last_whole_clip(self, data, model, extractors, tmp_path):
        whole = self.run(data, model, extractors, tmp_path, 2)
        journal = tmp_path / 'test.clips.jsonl'
        first = journal.read_text().splitlines()[1]
        journal.write_text(journal.read_text()[:-20])  # killed while it wrote the second clip
        report = self.run(data, model, extractors, tmp_path, 2)
        assert journal.read_text().splitlines()[1] == first
        assert len(journal.read_text().splitlines()) == 3
        assert report['summary'] == whole['summary']

    def test_results_of_other_settings_or_weights_are_not_mixed(self, data, model, extractors, tmp_path):
        self.run(data, model, extractors, tmp_path, 1)
        with pytest.raises(ValueError, match='was made with other seed; choose another folder'):
            self.run(data, model, extractors, tmp_path, 1, seed=1)
        with pytest.raises(ValueError, match='was made with other models'):
            self.run(data, build_tiny_pipeline(seed=1), extractors, tmp_path, 1)
        shutil.copytree(data / 'test_tasks', tmp_path / 'other' / 'test')
        with pytest.raises(ValueError, match='was made with other data'):
            self.run(tmp_path / 'other', model, extractors, tmp_path, 1)


def test_models_are_compared_at_one_size(data, model, extractors, tmp_path):
    larger = build_tiny_pipeline(seed=1)
    larger.register_to_config(sample_size=(64, 96))
    work = evaluation({'small': model, 'large': larger}, extractors, tmp_path, text_clips=1, samples=2)
    report = work.run(open_splits(data)['test'], 'test', 1)
    rows = report['summary']['all clips']
    for row in ('small text', 'large text', 'small oracle masks', 'large text+goal masks'):
        assert row in rows
    assert rows['large text']['object_iou_best_sample']['mean'] >= rows['large text']['object_iou']['mean']
    assert set(report['texts']) == {'small', 'large'}


def test_one_dataset_is_tested_on_what_training_leaves_out(tmp_path):
    with LeRobotClipWriter(tmp_path / 'data') as writer:
        for i in range(12):
            writer.add(moving_clip(i))
    ((name, test),) = open_splits(tmp_path / 'data').items()
    assert name == 'test'
    assert [test.episode(i).name for i in range(len(test))] == ['episode_000000', 'episode_000010']
    np.testing.assert_array_equal(test.read(1).labels, open_dataset(tmp_path / 'data').read(10).labels)
    assert len(open_splits(tmp_path / 'data', ['all'])['all']) == 12
    with pytest.raises(ValueError, match='no split val; it has test and all'):
        open_splits(tmp_path / 'data', ['val'])


def test_a_clip_without_object_is_skipped_and_listed(model, extractors, tmp_path):
    clips = [moving_clip(0), moving_clip(1)]
    clips[0].labels[0][clips[0].labels[0] == lb.OBJECT] = lb.BACKGROUND
    with LeRobotClipWriter(tmp_path / 'data') as writer:
        for clip in clips:
            writer.add(clip)
    work = evaluation(model, extractors, tmp_path / 'out', trajectory_only=True, text_clips=0)
    report = work.run(open_splits(tmp_path / 'data', ['all'])['all'], 'all')
    assert report['clips'] == 1
    assert report['skipped'] == ['clip 0: no object in the first frame']


def test_the_command_compares_named_models(data, model, tmp_path, capsys):
    model.save_pretrained(tmp_path / 'model')
    arguments = ['evaluate', data, '-o', tmp_path / 'out', '--split', 'test_tasks', '--clips', 1]
    arguments += ['--model', f'ours={tmp_path / "model"}', f'other={tmp_path / "model"}', '--trajectory-only']
    assert main([str(argument) for argument in arguments]) == 0
    printed = capsys.readouterr()
    assert '| other text+goal |' in printed.out
    assert 'left out: LPIPS: needs' in printed.err
    arguments[-2] = str(tmp_path / 'model')
    arguments[-3] = str(tmp_path / 'model')
    assert main([str(argument) for argument in arguments]) == 1
    assert "two models are called 'tiny'" in capsys.readouterr().err


def test_steps_and_dtype_can_be_asked_for(data, model, tmp_path):
    model.save_pretrained(tmp_path / 'model')
    arguments = ['evaluate', data, '-o', tmp_path / 'out', '--split', 'test_tasks', '--clips', 1]
    arguments += ['--model', tmp_path / 'model', '--trajectory-only', '--steps', 3, '--dtype', 'bfloat16']
    assert main([str(argument) for argument in arguments]) == 0
    (used,) = json.loads((tmp_path / 'out' / 'test_tasks.json').read_text())['models'].values()
    assert (used['num_inference_steps'], used['dtype']) == (3, 'torch.bfloat16')


class TestTexts:
    def test_misspelt_texts_differ_by_letters_and_repeat_with_the_seed(self):
        for seed in range(20):
            slips = [texts.misspell('turn off the tap', np.random.default_rng(seed)) for _ in range(2)]
            assert slips[0] == slips[1]
            assert slips[0] != 'turn off the tap'
            assert [word[0] for word in slips[0].split()] == ['t', 'o', 't', 't']
        assert texts.misspell('do it', np.random.default_rng(0)) is None

    def test_paraphrases_are_the_benchmarks_own(self):
        rng = np.random.default_rng(0)
        drawn = {texts.paraphrase('open the drawer', 'drawer-open', rng) for _ in range(40)}
        assert drawn == set(TASKS['drawer-open'].texts) - {'open the drawer'}
        assert texts.paraphrase('pick up the pot', 'a scene of another dataset', rng) is None

    @pytest.mark.parametrize('scene', TASKS)
    def test_an_absent_object_is_named_in_no_text_of_the_scene(self, scene):
        text = texts.absent_object(scene, np.random.default_rng(0))
        named = set(text.split()) - texts.FUNCTION_WORDS
        assert named
        assert not named & texts.content_words(scene)


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    from torchvision.models import alexnet

    folder = tmp_path_factory.mktemp('weights')
    torch.manual_seed(0)
    torch.save(alexnet().state_dict(), folder / LPIPS_FILE)

    class I3D(torch.nn.Module):
        def forward(self, x, rescale: bool = True, resize: bool = True, return_features: bool = False):
            assert not rescale
            assert not resize
            assert return_features
            return torch.cat([x.amin((2, 3, 4)), x.amax((2, 3, 4)), torch.tensor([x.shape[2:]])], 1)

    torch.jit.script(I3D()).save(folder / I3D_FILE)
    return folder


def write_tiny_clip(folder):
    """A CLIP of random weights whose tokens are single letters."""
    letters = [chr(i) for i in range(ord('a'), ord('z') + 1)]
    tokens = [*letters, *(letter + '</w>' for letter in letters), '<|startoftext|>', '<|endoftext|>']
    (folder / 'vocab.json').write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / 'merges.txt').write_text('#version: 0.2\n')
    tokenizer = CLIPTokenizer(str(folder / 'vocab.json'), str(folder / 'merges.txt'))
    layers = {'hidden_size': 16, 'intermediate_size': 16, 'num_hidden_layers': 1, 'num_attention_heads': 2}
    ends = {'bos_token_id': len(tokens) - 2, 'eos_token_id': len(tokens) - 1}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**layers, **ends, 'vocab_size': len(tokens)},
        vision_config={**layers, 'image_size': 32, 'patch_size': 8},
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    images = CLIPImageProcessor(size={'shortest_edge': 32}, crop_size=32)
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope='module')
def video():
    return np.random.default_rng(0).integers(0, 256, (4, 64, 96, 3), dtype=np.uint8)


class TestExtractors:
    def test_lpips_and_i3d_are_used_where_their_files_are(self, weights, video):
        extractors = Extractors(weights, '/no/such/model', CPU)
        assert set(extractors.left_out) == {'CLIP', 'ViCLIP', 'EgoVLP'}
        (lpips,) = extractors.scores
        assert lpips(video, video, '')['lpips'] == pytest.approx(0, abs=1e-6)
        assert lpips(video, video[::-1], '')['lpips'] > 0.01
        features = extractors.features[1](video)
        assert extractors.features[1].name == 'fvd'
        assert features[6:].tolist() == [4, 224, 224]
        assert features[:6].min() >= -1
        assert features[:6].max() <= 1

    def test_the_stand_in_is_the_same_on_every_machine_and_sees_motion(self, video, extractors):
        (random,) = extractors.features
        assert random.name == 'frechet_random3d'
        np.testing.assert_array_equal(random(video), random(video))
        still = np.repeat(video[:1], 4, axis=0)
        assert np.abs(random(still) - random(video)).max() > 0.01

    def test_clip_similarity_is_that_of_the_embeddings(self, tmp_path, video):
        scorer = Extractors(None, str(write_tiny_clip(tmp_path)), CPU).scores[0]
        same = scorer(video, video, 'open the drawer')
        assert same['clip_truth'] == pytest.approx(1, abs=1e-5)
        assert -1 <= same['clip_text'] <= 1
        other = scorer(video[::-1], video, '')
        assert other.keys() == {'clip_truth', 'clip_consistency'}
        assert other['clip_truth'] < 0.9999


class TestPaperProtocol:
    def test_the_crop_of_hoi4d_is_the_middle_of_the_scaled_picture(self):
        framing = Settings((320, 512), short_side=384).framing((1080, 1920))
        assert framing.region == (90, 240, 900, 1440)
        assert framing.inner == (320, 512)

    def test_the_crop_of_bridge_shows_all_and_pads_the_sides(self):
        framing = Settings((320, 512), short_side=320).framing((480, 640))
        assert framing.region == (0, 0, 480, 640)
        assert framing.inner == (320, 427)

    def test_a_prepared_benchmark_is_evaluated_by_split(self, model, extractors, tmp_path):
        write_trajectory(tmp_path / 'raw', masks=True)
        prepare_bridge(tmp_path / 'raw', tmp_path / 'benchmark')
        readers = open_splits(tmp_path / 'benchmark', ['train', 'test'])
        assert list(open_splits(tmp_path / 'benchmark')) == ['test']
        work = evaluation(model, extractors, tmp_path / 'out', trajectory_only=True, text_clips=1)
        report = work.run(readers['train'], 'train')
        assert list(report['tasks']) == ['a robot gripper put the silver pot on the stove']
        assert 'paraphrase' not in report['texts']['tiny']
        with pytest.raises(ValueError, match='there is no episode to evaluate'):
            work.run(readers['test'], 'test')
