"""Masks for clips without any: the rules that choose them, the two models, and masks from files.

The models are of the real classes and go through the real loader. They are tiny and have random weights, so
what they find means nothing, but it must be found, followed and labelled the right way.
"""

import gc

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('av')
pytest.importorskip('transformers')

import av
import torch
from transformers import (
    BertConfig,
    BertTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    Sam2ImageProcessor,
    Sam2VideoModel,
    Sam2VideoProcessor,
    Sam2VideoVideoProcessor,
    SwinConfig,
)
from transformers.models.sam2.configuration_sam2 import Sam2VisionConfig
from transformers.models.sam2_video.configuration_sam2_video import (
    Sam2VideoConfig,
    Sam2VideoMaskDecoderConfig,
    Sam2VideoPromptEncoderConfig,
)

from mask2iv_ros.clip import InteractionClip
from mask2iv_ros.data.segment import (
    Candidate,
    Detection,
    Detector,
    MissingModel,
    SegmentationResult,
    VideoSegmenter,
    choose_actor,
    choose_objects,
    mean_iou,
    object_prompts,
    read_mask_folder,
    read_mask_image,
    read_mask_video,
    review_rows,
    segment_clip,
)
from mask2iv_ros.labels import ACTOR, OBJECT, dilate
from mask2iv_ros.pictures import GAP, contact_sheet

SIZE = 48, 80


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    """Tiny tensors are slow on many threads, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='module')
def detector_folder(tmp_path_factory):
    """Tiny Grounding DINO. It knows '.', [CLS] and [SEP] by the ids of BERT's own vocabulary."""
    torch.manual_seed(0)
    words = ['black', 'robot', 'gripper', 'objects', 'cloth', 'cup', 'hand']
    names = dict(enumerate(['[PAD]', *words])) | {
        100: '[UNK]',
        101: '[CLS]',
        102: '[SEP]',
        103: '[MASK]',
        1012: '.',
    }
    vocabulary = {names.get(i, f'[unused{i}]'): i for i in range(1040)}
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            embed_dim=8,
            depths=[1] * 4,
            num_heads=[1] * 4,
            window_size=2,
            image_size=64,
            out_indices=[2, 3, 4],
        ),
        text_config=BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=16,
        ),
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=8,
        disable_custom_kernels=True,
    )
    folder = tmp_path_factory.mktemp('detector')
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    images = GroundingDinoImageProcessor(size={'shortest_edge': 48, 'longest_edge': 80})
    GroundingDinoProcessor(images, BertTokenizer(vocabulary)).save_pretrained(folder)
    return folder


@pytest.fixture(scope='module')
def segmenter_folder(tmp_path_factory):
    """Tiny SAM 2 whose masks depend strongly on image and memory, and that never says the object is gone."""
    torch.manual_seed(12)  # masks of a fifth of the image that flicker with noise
    side, width = 64, 128  # SAM 2's memory has 64 channels, and the model must be wider
    config = Sam2VideoConfig(
        vision_config=Sam2VisionConfig(
            backbone_config={
                'hidden_size': 8,
                'image_size': [side, side],
                'blocks_per_stage': [1, 1, 2, 1],
                'embed_dim_per_stage': [8, 16, 32, 64],
                'num_attention_heads_per_stage': [1, 1, 1, 1],
                'window_size_per_stage': [4, 4, 4, 4],
                'global_attention_blocks': [3],
                'window_positional_embedding_background_size': [4, 4],
            },
            backbone_channel_list=[64, 32, 16, 8],
            backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
            fpn_hidden_size=width,
        ),
        prompt_encoder_config=Sam2VideoPromptEncoderConfig(
            hidden_size=width, image_size=side, patch_size=16, mask_input_channels=4
        ),
        mask_decoder_config=Sam2VideoMaskDecoderConfig(
            hidden_size=width, mlp_dim=16, num_attention_heads=2, iou_head_hidden_dim=16
        ),
        image_size=side,
        num_maskmem=3,
        max_object_pointers_in_encoder=4,
        memory_attention_hidden_size=width,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=16,
        memory_attention_rope_feat_sizes=[4, 4],
        memory_encoder_hidden_size=width,
        mask_downsampler_embed_dim=width,
        memory_fuser_embed_dim=width,
        memory_fuser_intermediate_dim=16,
        memory_fuser_num_layers=1,
    )
    model = Sam2VideoModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(
                part in name for part in ('memory', 'pointer', 'temporal', 'neck', 'conv_s', 'patch_embed')
            ):
                parameter.normal_(std=0.2)
        list(model.mask_decoder.pred_obj_score_head.parameters())[-1].fill_(10)
    folder = tmp_path_factory.mktemp('segmenter')
    model.save_pretrained(folder)
    size = {'height': side, 'width': side}
    images = Sam2ImageProcessor(size=size, mask_size={'height': side // 4, 'width': side // 4})
    Sam2VideoProcessor(images, Sam2VideoVideoProcessor(size=size)).save_pretrained(folder)
    return folder


@pytest.fixture(scope='module')
def detector(detector_folder):
    return Detector(detector_folder, 'cpu')


@pytest.fixture(scope='module')
def segmenter(segmenter_folder):
    return VideoSegmenter(segmenter_folder, 'cpu')


def make_clip(length=12, task='put the cup down', seed=0):
    frames = np.random.default_rng(seed).integers(0, 255, (length, *SIZE, 3), dtype=np.uint8)
    return InteractionClip(frames, task=task)


def make_square(x, y=20, side=10):
    mask = np.zeros(SIZE, bool)
    mask[y : y + side, x : x + side] = True
    return mask


def make_track(*positions, y=20):
    return np.stack([make_square(x, y) for x in positions])


def candidate(phrase='objects', score=0.5, mean=0.4, end=0.0, first=None, last=None):
    first, last = (make_square(40) if first is None else first), (make_square(60) if last is None else last)
    return Candidate(phrase, score, mean, end, first, last)


NOTHING = np.zeros(SIZE, bool)


class TestRules:
    @pytest.mark.parametrize(
        ('task', 'prompts'),
        [
            ('', ('objects',)),
            ('Put the spoon on the cloth', ('objects',)),
            ('put the folder away', ('objects',)),
            ('Fold the towel in half', ('cloth',)),
            ('unfolding the napkin', ('cloth',)),
            ('moved cloth to the left', ('cloth',)),
            ('Open the drawer', ('drawer', 'drawer handle')),
            ('put the carrot into the drawer', ('objects',)),
        ],
    )
    def test_the_task_says_what_to_look_for(self, task, prompts):
        assert object_prompts(task) == prompts

    def test_mean_iou_is_over_every_tenth_of_the_clip(self):
        still = np.repeat(make_square(0)[None], 40, axis=0)
        jumps = still.copy()
        jumps[4:] = make_square(30)  # one of the nine steps of 4 frames
        assert mean_iou(still) == 1
        assert mean_iou(jumps) == pytest.approx(8 / 9)
        jumps[5:8] = NOTHING  # between sampled frames
        assert mean_iou(jumps) == pytest.approx(8 / 9)

    def test_mean_iou_of_a_known_shift(self):
        assert mean_iou(make_track(0, 5, 10)) == pytest.approx(1 / 3)  # half of each square is shared

    @pytest.mark.parametrize(
        'masks',
        [
            make_track(0),
            np.zeros((30, *SIZE), bool),
            np.random.default_rng(0).random((30, *SIZE)) < 0.6,  # flickers over more than half of the image
        ],
        ids=['one frame', 'never seen', 'over half of the image'],
    )
    def test_what_says_nothing_about_motion_is_static(self, masks):
        assert mean_iou(masks) == 1

    def test_a_candidate_compares_its_very_first_and_last_mask(self):
        found = Candidate.of(Detection('cup', 0.7, (0, 0, 1, 1)), make_track(*range(0, 24), 5))
        assert (found.phrase, found.score) == ('cup', 0.7)
        assert found.end_iou == pytest.approx(1 / 3)
        assert found.mean_iou == pytest.approx(np.mean([80 / 120] * 11 + [0]))
        np.testing.assert_array_equal(found.last, make_square(5))

    def test_the_actor_is_the_moving_one_with_the_highest_score(self):
        candidates = [candidate('gripper', *row) for row in ((0.9, 0.65), (0.4, 0.1), (0.6, 0.64))]
        chosen, reasons = choose_actor(candidates)
        assert chosen == [2]
        assert reasons == [
            'gripper (0.90): does not move (mean IoU 0.65, not < 0.65)',
            'gripper (0.40): another actor scores higher',
        ]
        assert choose_actor(candidates[:1])[0] == []

    def test_the_object_is_the_one_that_moves_most(self):
        candidates = [candidate(mean=mean) for mean in (0.75, 0.3, 0.5)]
        chosen, reasons = choose_objects(candidates, NOTHING, NOTHING)
        assert chosen == [1]
        assert reasons == ['objects (0.50): another object moves more'] * 2

    @pytest.mark.parametrize(
        ('fields', 'reason'),
        [
            ({'mean': 0.76}, 'does not move (mean IoU 0.76 > 0.75)'),
            ({'end': 0.91}, 'ends where it began (IoU 0.91 > 0.9)'),
            ({'first': make_square(10)}, 'touches the actor in the first frame'),
            ({'last': make_square(10)}, 'touches the actor in the last frame'),
            ({'first': NOTHING}, 'has no mask in the first frame'),
        ],
    )
    def test_what_is_not_handled_is_dropped_with_the_reason(self, fields, reason):
        actor = make_square(0)  # next to make_square(10): they touch after a dilation of one pixel
        chosen, reasons = choose_objects([candidate(**fields)], actor, actor)
        assert chosen == []
        assert reasons == [f'objects (0.50): {reason}']

    def test_a_gap_of_a_pixel_to_the_actor_is_enough_and_each_frame_has_its_own_actor(self):
        actor = make_square(0)
        assert choose_objects([candidate(first=make_square(11))], actor, NOTHING)[0] == [0]
        assert choose_objects([candidate(last=make_square(10))], actor, make_square(70))[0] == [0]

    @pytest.mark.parametrize(
        ('phrase', 'limit'), [('cloth', 0.90), ('drawer', 0.90), ('drawer handle', 0.75), ('objects', 0.75)]
    )
    def test_each_kind_of_object_has_its_limit(self, phrase, limit):
        assert choose_objects([candidate(phrase, mean=limit)], NOTHING, NOTHING)[0] == [0]
        assert choose_objects([candidate(phrase, mean=limit + 0.01)], NOTHING, NOTHING)[0] == []

    def test_cloth_and_drawers_are_kept_whole_also_under_the_gripper_and_in_place(self):
        candidates = [
            candidate('drawer', mean=0.85, end=0.95),
            candidate('drawer handle', first=make_square(0)),
        ]
        assert choose_objects(candidates, make_square(0), make_square(60)) == ([0, 1], [])


class TestDetector:
    def test_boxes_lie_in_the_image_and_are_named_by_the_prompt(self, detector):
        found = detector.detect(make_clip().frames[0], ['Black robot gripper', 'objects.'])
        assert {d.phrase for d in found} == {'black robot gripper', 'objects'}
        assert [d.score for d in found] == sorted((d.score for d in found), reverse=True)
        boxes = np.array([d.box for d in found])
        assert (boxes[:, :2] <= boxes[:, 2:]).all()
        assert boxes.min() >= 0
        assert (boxes.max(axis=0) <= (80, 48, 80, 48)).all()

    def test_a_phrase_is_recognised_by_its_noun_and_both_thresholds_hold(self, detector):
        image, prompt = make_clip().frames[0], ['black robot gripper', 'objects']
        inputs = detector.processor(
            images=Image.fromarray(image), text='black robot gripper. objects. ', return_tensors='pt'
        )
        assert inputs.input_ids.tolist() == [[101, 1, 2, 3, 1012, 4, 1012, 102]]
        with torch.inference_mode():
            tokens = detector.model(**inputs).logits[0].sigmoid().numpy()
        want = []
        for row in tokens:
            noun = max((row[3], 'black robot gripper'), (row[5], 'objects'))
            if row.max() > 0.25 and noun[0] > 0.3:
                want.append((noun[1], pytest.approx(float(row.max()))))
        assert 0 < len(want) < len(tokens)
        found = detector.detect(image, prompt)
        assert sorted((d.phrase, d.score) for d in found) == sorted(
            want, key=lambda row: (row[0], row[1].expected)
        )

    def test_boxes_that_reach_out_of_the_image_are_cut(self, detector_folder):
        detector = Detector(detector_folder, 'cpu')
        with torch.no_grad():
            detector.model.bbox_embed[-1].layers[-1].bias[2:] = 20  # as wide and high as the image
        boxes = np.array([d.box for d in detector.detect(make_clip().frames[0], ['cup'])])
        assert boxes.min() == 0
        assert (boxes.max(axis=0) == (*boxes[:, :2].max(axis=0), 80, 48)).all()

    def test_it_finds_the_same_again(self, detector, detector_folder):
        image = make_clip().frames[0]
        assert (
            detector.detect(image, ['cup']) == Detector(detector_folder, 'cpu').detect(image, ['cup']) != []
        )

    @pytest.mark.parametrize('phrases', [[], [' . '], ['cup'] * 200])
    def test_a_prompt_that_says_nothing_or_too_much_is_refused(self, detector, phrases):
        with pytest.raises(ValueError, match='prompt: expected phrases of up to 256 tokens'):
            detector.detect(make_clip().frames[0], phrases)


BOXES = [(5, 5, 30, 30), (40, 10, 70, 40)]


class TestVideoSegmenter:
    def track(self, segmenter, clip, *prompts):
        return np.stack(list(segmenter.track(clip.frames, *prompts)))

    def test_masks_are_those_of_a_plain_sam_2_session(self, segmenter):
        """Frames on demand and a memory that forgets change nothing; the clip is longer than the memory."""
        clip = make_clip(12)
        model, processor = segmenter.model, segmenter.processor
        session = processor.init_video_session(video=clip.frames)
        processor.add_inputs_to_inference_session(
            session, 0, [1, 2], input_boxes=[[list(map(float, b)) for b in BOXES]]
        )
        want = [
            processor.post_process_masks([output.pred_masks], [SIZE])[0][:, 0].numpy()
            for output in model.propagate_in_video_iterator(session, start_frame_idx=0)
        ]
        found = self.track(segmenter, clip, BOXES)
        assert found.shape == (12, 2, *SIZE)
        assert found.dtype == bool
        assert 0.01 < found.mean() < 0.99
        np.testing.assert_array_equal(found, want)

    def test_boxes_and_masks_together_are_followed_as_each_alone(self, segmenter):
        clip, mask = make_clip(6), make_square(40)
        both = self.track(segmenter, clip, BOXES[:1], [mask])
        np.testing.assert_array_equal(both[:, :1], self.track(segmenter, clip, BOXES[:1]))
        np.testing.assert_array_equal(both[:, 1:], self.track(segmenter, clip, (), [mask]))
        assert (both[:, 0] != both[:, 1]).any(axis=(1, 2)).all()

    def test_a_mask_of_the_first_frame_comes_back_to_the_pixel(self, segmenter):
        speckled = np.random.default_rng(0).random(SIZE) < 0.5
        assert (self.track(segmenter, make_clip(2), (), [speckled])[0, 0] == speckled).all()

    def test_the_consumer_of_a_track_is_not_in_inference_mode(self, segmenter):
        for _ in segmenter.track(make_clip(2).frames, BOXES):
            assert not torch.is_inference_mode_enabled()

    def test_memory_does_not_grow_with_the_video(self, segmenter):
        """What the session holds (counted in tensors) is the same after 10 and after 20 frames."""
        held = []
        for i, _ in enumerate(segmenter.track(make_clip(21).frames, BOXES)):
            if i in (10, 20):
                held.append(sum(type(thing) is torch.Tensor for thing in gc.get_objects()))
        assert held[0] == held[1]


class TestMissingModels:
    def test_an_absent_model_is_named_with_the_way_to_get_it(self, tmp_path):
        with pytest.raises(
            MissingModel,
            match=r'segmenter no-one/sam2: .*`hf download no-one/sam2 --local-dir FOLDER`, '
            'then pass --segmenter FOLDER',
        ):
            VideoSegmenter('no-one/sam2', 'cpu')
        with pytest.raises(
            MissingModel, match=r'hf download IDEA-Research/grounding-dino-base .* --detector'
        ):
            Detector(tmp_path / 'none', 'cpu')

    def test_a_folder_without_weights_or_with_others_is_refused(
        self, tmp_path, detector_folder, segmenter_folder
    ):
        with pytest.raises(MissingModel, match=str(tmp_path)):
            Detector(tmp_path, 'cpu')
        with pytest.raises(MissingModel):
            VideoSegmenter(detector_folder, 'cpu')
        with pytest.raises(MissingModel):
            Detector(segmenter_folder, 'cpu')

    def test_weights_that_lack_a_layer_are_not_made_up(self, tmp_path, segmenter_folder):
        from safetensors.torch import load_file, save_file

        for path in segmenter_folder.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        weights = load_file(tmp_path / 'model.safetensors')
        weights.pop('no_object_pointer')
        save_file(weights, tmp_path / 'model.safetensors', metadata={'format': 'pt'})
        with pytest.raises(MissingModel, match='1 weights are not in the file'):
            VideoSegmenter(tmp_path, 'cpu')

    @pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
    def test_a_gpu_that_is_not_there_is_named(self, segmenter_folder):
        with pytest.raises(ValueError, match='no CUDA GPU'):
            VideoSegmenter(segmenter_folder, 'cuda')


class TestSegmentClip:
    def test_a_cloth_and_the_gripper_are_found_followed_and_labelled(self, detector, segmenter):
        clip = make_clip(task='fold the cloth')
        result = segment_clip(clip, segmenter, detector)
        found = detector.detect(clip.frames[0], ['black robot gripper', 'cloth'])
        tracks = np.stack(list(segmenter.track(clip.frames, [d.box for d in found])), axis=1)
        candidates = [Candidate.of(d, masks) for d, masks in zip(found, tracks, strict=True)]
        actors = [i for i, c in enumerate(candidates) if c.phrase != 'cloth' and c.mean_iou < 0.65]
        actor = max(actors, key=lambda i: found[i].score)
        cloths = [i for i, c in enumerate(candidates) if c.phrase == 'cloth' and c.mean_iou <= 0.9]
        assert len(actors) > 1
        want = np.where(tracks[cloths].any(axis=0), OBJECT, 0)
        want[tracks[actor]] = ACTOR
        assert result.labels.dtype == np.uint8
        assert set(np.unique(result.labels)) == {0, OBJECT, ACTOR}
        np.testing.assert_array_equal(result.labels, want)
        assert result.scores['actor_box'] == pytest.approx(found[actor].score)
        assert result.scores['object_mean_iou'] == pytest.approx(
            np.mean([candidates[i].mean_iou for i in cloths])
        )
        assert any('another actor scores higher' in reason for reason in result.reasons)

    def test_it_gives_the_same_again(self, detector, segmenter):
        results = [segment_clip(make_clip(task='fold it'), segmenter, detector) for _ in range(2)]
        np.testing.assert_array_equal(results[0].labels, results[1].labels)
        assert results[0].scores == results[1].scores

    def test_the_first_frame_is_followed_without_a_detector_and_kept_to_the_pixel(self, segmenter):
        first = np.where(make_square(20), OBJECT, 0).astype(np.uint8)
        first[make_square(50)] = ACTOR
        first[make_square(20, 35, 5)] = 3
        clip = make_clip()
        result = segment_clip(clip, segmenter, first=first)
        np.testing.assert_array_equal(result.labels[0], first)
        tracks = segmenter.track(clip.frames, (), [first == OBJECT, first == ACTOR, first == 3])
        *_, (_, actor, part) = tracks
        np.testing.assert_array_equal(result.labels[-1] == ACTOR, actor)
        np.testing.assert_array_equal(result.labels[-1] == 3, part & ~actor)

    def test_a_known_actor_stays_and_only_the_object_is_looked_for(self, detector, segmenter):
        clip = make_clip(task='fold the cloth')
        known = np.where(make_track(*range(12)), ACTOR, 0).astype(np.uint8)
        result = segment_clip(clip, segmenter, detector, known=known)
        np.testing.assert_array_equal(result.labels == ACTOR, known == ACTOR)
        assert (result.labels == OBJECT).any()
        assert 'actor_box' not in result.scores

    def test_a_known_object_and_an_actor_of_the_first_frame_meet(self, segmenter):
        known = np.where(make_track(*range(12)), OBJECT, 0).astype(np.uint8)
        first = np.where(make_square(50), ACTOR, 0).astype(np.uint8)
        labels = segment_clip(make_clip(), segmenter, first=first, known=known).labels
        np.testing.assert_array_equal(labels[0], np.maximum(known[0], first))
        np.testing.assert_array_equal(labels == OBJECT, (known == OBJECT) & (labels != ACTOR))

    def test_labels_that_are_all_known_need_no_model(self):
        known = np.where(make_track(*range(12)), OBJECT, 0).astype(np.uint8)
        known[:, :5] = ACTOR
        np.testing.assert_array_equal(segment_clip(make_clip(), known=known).labels, known)

    def test_an_object_that_overlaps_the_actor_rejects_the_clip(self, detector, segmenter):
        everywhere = np.full((12, *SIZE), ACTOR, np.uint8)
        result = segment_clip(make_clip(), segmenter, detector, known=everywhere)
        assert result.labels is None
        assert result.reasons[0] == 'no object that moves'
        assert len(result.reasons) > 1

    def test_still_frames_have_no_actor_that_moves(self, detector, segmenter):
        clip = make_clip()
        clip.frames[:] = clip.frames[:1]
        result = segment_clip(clip, segmenter, detector)
        assert result.labels is None
        assert result.reasons[0] == 'no actor that moves'
        assert all('does not move' in reason for reason in result.reasons[1:])

    def test_what_the_detector_does_not_see_is_named(self, detector, segmenter, monkeypatch):
        monkeypatch.setattr('mask2iv_ros.data.segment.TEXT_THRESHOLD', 1.0)
        result = segment_clip(make_clip(), segmenter, detector, actor='hand')
        assert (result.labels, result.reasons) == (None, ('no actor: nothing looks like "hand"',))
        known = np.full((12, *SIZE), ACTOR, np.uint8)
        result = segment_clip(make_clip(), segmenter, detector, objects=['cup', 'cloth'], known=known)
        assert result.reasons == ('no object: nothing looks like "cup. cloth"',)

    def test_a_model_that_is_needed_and_not_given_is_named(self, segmenter):
        first = np.where(make_square(20), OBJECT, 0).astype(np.uint8)
        with pytest.raises(ValueError, match='detector: expected one, because there are no masks of actor'):
            segment_clip(make_clip(), segmenter, first=first)
        first[0] = ACTOR
        with pytest.raises(ValueError, match=r'segmenter: expected one, because .* of object and actor'):
            segment_clip(make_clip(), first=first)

    def test_labels_of_another_size_are_refused(self):
        with pytest.raises(ValueError, match=r'first: expected \(48, 80\), as the clip has, got \(4, 4\)'):
            segment_clip(make_clip(), first=np.zeros((4, 4), np.uint8))
        with pytest.raises(ValueError, match=r'known: expected \(12, 48, 80\), as the clip has, got \(11'):
            segment_clip(make_clip(), known=np.zeros((11, *SIZE), np.uint8))
        with pytest.raises(ValueError, match='at least one frame'):
            segment_clip(make_clip(0))


def write_pngs(folder, images, mode=None):
    """One PNG a frame, named as Mask2IV's script does: mask_0.png, not padded."""
    folder.mkdir()
    for i, image in enumerate(images):
        picture = Image.fromarray(image)
        if mode == 'P':
            picture = Image.fromarray(image, 'L').convert('P')
            picture = Image.frombytes('P', picture.size, image.tobytes())
            picture.putpalette([0, 0, 0, 255, 255, 255, 128, 64, 0, 9, 9, 9])
        elif mode:
            picture = picture.convert(mode)
        picture.save(folder / f'mask_{i}.png')
    return folder


def make_labels(length=12):
    labels = np.where(make_track(*range(10, 10 + length)), OBJECT, 0).astype(np.uint8)
    labels[:, :10, 40:60] = ACTOR
    return labels


class TestMaskFiles:
    @pytest.mark.parametrize('form', ['ids', 'palette', 'greys', 'grey RGB', 'colours', 'RGBA'])
    def test_a_folder_of_label_pictures_is_read_in_the_order_of_its_numbers(self, tmp_path, form):
        labels = make_labels()
        images, mode = labels, None
        if form in ('greys', 'grey RGB'):
            images, mode = np.array([0, 255, 128], np.uint8)[labels], 'RGB' if form == 'grey RGB' else None
        elif form in ('colours', 'RGBA'):
            images = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0)], np.uint8)[labels]
            mode = 'RGBA' if form == 'RGBA' else None
        elif form == 'palette':
            mode = 'P'
        folder = write_pngs(tmp_path / 'masks', images, mode)
        np.testing.assert_array_equal(read_mask_folder(folder, 12, SIZE), labels)

    @pytest.mark.parametrize(('value', 'mode'), [(255, None), (1, None), (255, '1'), (200, 'LA')])
    def test_binary_masks_are_what_the_caller_says(self, tmp_path, value, mode):
        square = make_track(*range(12))
        folder = write_pngs(tmp_path / 'masks', np.where(square, value, 0).astype(np.uint8), mode)
        np.testing.assert_array_equal(read_mask_folder(folder, 12, SIZE, ACTOR), np.where(square, ACTOR, 0))

    def test_a_soft_mask_that_is_nearly_black_in_one_frame_is_empty_there(self, tmp_path):
        soft = np.zeros((2, *SIZE), np.uint8)
        soft[0, :9] = 3
        soft[1, :9], soft[1, 9] = 255, 120
        labels = read_mask_folder(write_pngs(tmp_path / 'masks', soft), 2, SIZE, OBJECT)
        assert (labels[0].any(), labels[1].sum()) == (False, 9 * 80)

    def test_masks_of_another_resolution_are_scaled(self, tmp_path):
        large = make_labels().repeat(2, axis=1).repeat(2, axis=2)
        folder = write_pngs(tmp_path / 'masks', large)
        np.testing.assert_array_equal(read_mask_folder(folder, 12, SIZE), make_labels())

    def test_one_picture_is_the_first_frame(self, tmp_path):
        folder = write_pngs(tmp_path / 'masks', make_labels(1))
        np.testing.assert_array_equal(read_mask_image(folder / 'mask_0.png', SIZE), make_labels(1)[0])

    def test_pictures_that_are_no_masks_of_the_clip_are_refused(self, tmp_path):
        folder = write_pngs(tmp_path / 'masks', make_labels())
        with pytest.raises(ValueError, match='expected 13 PNG masks, one a frame, got 12'):
            read_mask_folder(folder, 13, SIZE)
        with pytest.raises(ValueError, match=r'mask_0\.png: expected the shape of 80x60, got 80x48'):
            read_mask_folder(folder, 12, (60, 80))
        folder = write_pngs(tmp_path / 'photos', np.full((1, *SIZE), 77, np.uint8))
        with pytest.raises(ValueError, match=r'mask_0\.png: expected label ids .* got values \[77\]'):
            read_mask_folder(folder, 1, SIZE)
        folder = write_pngs(tmp_path / 'black', np.zeros((2, *SIZE), np.uint8))
        with pytest.raises(ValueError, match='black: no pixel of any mask is set'):
            read_mask_folder(folder, 2, SIZE, ACTOR)
        folder = write_pngs(tmp_path / 'deep', np.ones((1, *SIZE), np.uint16))
        with pytest.raises(ValueError, match=r'mask_0\.png: expected 8 bits a channel'):
            read_mask_folder(folder, 1, SIZE)

    @pytest.mark.parametrize('colour', [(255, 255, 255), (0, 0, 255), (255, 0, 0)])
    def test_a_video_of_a_rendered_robot_comes_back_through_a_lossy_codec(self, tmp_path, colour):
        masks = make_track(*range(10, 22))
        write_video(tmp_path / 'robot.mp4', masks[..., None] * np.array(colour, np.uint8))
        labels = read_mask_video(tmp_path / 'robot.mp4', 12, SIZE)
        assert set(np.unique(labels)) == {0, ACTOR}
        reach = 3 if colour == (255, 255, 255) else 5
        assert not ((labels == ACTOR) & ~dilate(masks, reach)).any()
        assert not (masks & ~dilate(labels == ACTOR, reach)).any()

    def test_a_video_that_is_no_mask_of_the_clip_is_refused(self, tmp_path):
        masks = make_track(*range(10, 22))[..., None] * np.full(3, 255, np.uint8)
        write_video(tmp_path / 'robot.mp4', masks)
        for length in (11, 13):
            with pytest.raises(
                ValueError, match=f'robot.mp4: expected {length} frames, as the clip has, got 12'
            ):
                read_mask_video(tmp_path / 'robot.mp4', length, SIZE)
        with pytest.raises(ValueError, match='expected the shape of 48x48, got 80x48'):
            read_mask_video(tmp_path / 'robot.mp4', 12, (48, 48))
        write_video(tmp_path / 'camera.mp4', masks // 4)
        with pytest.raises(ValueError, match='no pixel of any mask'):
            read_mask_video(tmp_path / 'camera.mp4', 12, SIZE)
        write_video(tmp_path / 'camera.mp4', np.full_like(masks, 100))
        with pytest.raises(ValueError, match='100% of the pixels are neither dark nor bright'):
            read_mask_video(tmp_path / 'camera.mp4', 12, SIZE)
        (tmp_path / 'text.mp4').write_text('no video')
        with pytest.raises(ValueError, match=r'text\.mp4: no readable video'):
            read_mask_video(tmp_path / 'text.mp4', 12, SIZE)
        (tmp_path / 'text.mp4').write_bytes((tmp_path / 'robot.mp4').read_bytes()[:-200])
        with pytest.raises(ValueError, match=r'text\.mp4: expected 12 frames, as the clip has, got 0'):
            read_mask_video(tmp_path / 'text.mp4', 12, SIZE)
        with pytest.raises(FileNotFoundError, match=r'none\.mp4'):
            read_mask_video(tmp_path / 'none.mp4', 12, SIZE)


def write_video(path, frames):
    with av.open(str(path), 'w') as video:
        stream = video.add_stream('libx264', rate=15)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = 'yuv420p'
        for frame in frames:
            video.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        video.mux(stream.encode())


def test_the_review_sheet_shows_masks_and_marks_what_was_rejected():
    clip = make_clip()
    clip.frames[:] = 120
    labels = np.full((12, *SIZE), OBJECT, np.uint8)
    rows = [
        ('demo_0', clip, SegmentationResult(labels, {'object_box': 0.5})),
        ('demo_1', clip, SegmentationResult(None, reasons=('no actor that moves',))),
    ]
    review = review_rows(iter(rows), columns=4, width=640)
    assert list(review) == ['demo_0, object_box 0.50', 'demo_1: REJECTED, no actor that moves']
    sheet = contact_sheet(review, 640, 4)
    accepted, rejected = np.split(sheet, 2)
    second = slice(28, -GAP), slice(2 * GAP + 155, 2 * GAP + 2 * 155)  # column of the sheet
    assert (accepted[second][..., 0] > accepted[second][..., 1]).all()  # red over grey
    assert (rejected[second][46, 80] == 40).all()
    for edge in (rejected[second][[0, -1]], rejected[second][:, [0, -1]]):
        assert (edge == (255, 0, 0)).all()  # each frame on its own
