"""Robot demonstrations in HDF5 files: robomimic, LIBERO and ALOHA/ACT, told apart by their keys.

    robomimic   data/demo_0/{actions, obs/agentview_image, ...}, mask/<split>         one file
    LIBERO      data/demo_0/{actions, robot_states, obs/agentview_rgb, ...}           one file a task
    ALOHA/ACT   action, observations/{qpos, images/cam_high, ...}                     one file an episode

Layouts as in robomimic `scripts/dataset_states_to_obs.py`, LIBERO `scripts/create_dataset.py`, and the
`record_episodes.py` of tonyzhaozh/aloha, MarkFzp/mobile-aloha and Interbotix/aloha.

Actions are returned as they are stored, in each dataset's own convention:

* robosuite (robomimic, LIBERO): controller input in -1..1; the gripper value opens at -1 and closes at +1.
  Converters for vision-language-action models often turn its sign round; this one does not.
* Frame t shows the scene before action t, except in LIBERO's own files: there it was taken after action t.
  (OpenVLA's `regenerate_libero_dataset.py` renders before it.)
* ALOHA: joint targets in radians, 7 an arm, left arm first, gripper 0 closed to 1 open; on a mobile base two
  more (m/s, rad/s). ACT's training code pairs frame t of a real robot with action max(0, t - 1).

None of the layouts has masks; robosuite's segmentation images carry ids without a table of their meaning.
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from mask2iv_ros.clip import Camera, InteractionClip
from mask2iv_ros.data.episodes import BadEpisode, Episode, EpisodeReader, UnknownLayout, natural_order

#: How images lie in a file, and the (row, column) steps that put them right. 'opengl' has the bottom row
#: first, so it is a mirror image: turned by 180 degrees, as OpenVLA does, it is upright, but left and right
#: are swapped ('rotated'). Only the flip of rows makes the cameras' point clouds agree (openvla/openvla#295).
ORIENTATIONS = {'upright': (1, 1), 'opengl': (-1, 1), 'rotated': (1, -1)}

ROBOSUITE_FPS = 20.0  #: robosuite's `control_freq` where a file does not tell
ALOHA_FPS = 50.0  #: `DT = 0.02` in constants.py of act, aloha and mobile-aloha

KNOWN = (
    'robomimic (data/demo_0/actions), LIBERO (the same with data/demo_0/robot_states or the attribute '
    'problem_info), ALOHA/ACT (observations/images/<camera>, action)'
)


def open_hdf5(
    path: str | Path,
    split: str | None = None,
    orientation: str | None = None,
    standard_jpeg: bool = False,
) -> EpisodeReader:
    """Reader of a robomimic, LIBERO or ALOHA/ACT dataset.

    Episodes are in numeric order. A file that cannot be opened, among others that can, counts as one episode,
    and reading that raises BadEpisode.

    Args:
        path: a .hdf5 or .h5 file, or a folder with such files, also in subfolders.
        split: robomimic filter key: only the episodes that `mask/<split>` names.
        orientation: how images lie in the file, one of ORIENTATIONS; None for what the layout and the file's
            `macros_image_convention` tell. LIBERO files that were rendered again tell nothing and are taken
            for 'opengl', as OpenVLA's script writes them; any4lerobot's script writes 'rotated'.
        standard_jpeg: JPEG images of ALOHA files have right colours in any viewer, as openpi's converter
            expects. ACT's recorders give RGB to OpenCV's encoder, which takes it for BGR, so by default red
            and blue are taken for swapped.

    Raises:
        FileNotFoundError: no such path.
        UnknownLayout: no file of a known layout.
        BadEpisode: a damaged file, and no other to tell the layout from.
        ValueError: unknown orientation; no such split.
    """
    path = Path(path)
    if orientation not in (None, *ORIENTATIONS):
        raise ValueError(f'orientation: expected one of {tuple(ORIENTATIONS)}, got {orientation!r}')
    files = _find_files(path)
    kind = _recognise(path, files)
    if kind is AlohaReader:
        if split is not None:
            raise ValueError(f'{path}: split {split!r}: ALOHA/ACT files have no splits')
        return AlohaReader(path, files, orientation, standard_jpeg)
    if standard_jpeg:
        raise ValueError(f'{path}: standard_jpeg is for ALOHA/ACT files, whose images are JPEGs')
    return kind(path, files, orientation, split)


class _Hdf5Reader(EpisodeReader):
    """What the layouts share. A file is open only while an episode of it is listed or read."""

    layout: str

    def __init__(self, path: Path, episodes: list[tuple[Path, str]], orientation: str | None):
        self.path = path
        self._in_folder = path.is_dir()
        self._episodes = episodes  # file and group of each
        self._orientation = orientation

    def __len__(self) -> int:
        return len(self._episodes)

    def episode(self, index: int) -> Episode:
        with self._open(index) as group:
            images = self._images(group)
            if not images:
                raise BadEpisode(self._no_images(group))
            names = [*self._action_keys(group), *self._state_keys(group)]
            lengths = {name: len(group[name]) for name in names}
            lengths |= {dataset.name: len(dataset) for dataset in images.values()}
            if len(set(lengths.values())) != 1 or not all(lengths.values()):
                text = ', '.join(f'{name} {length}' for name, length in lengths.items())
                raise BadEpisode(f'expected equally many rows, at least one, in each dataset; got {text}')
            return Episode(
                name=self._name(index),
                length=len(next(iter(images.values()))),
                fps=self._fps(group),
                task=self._task(group, self._episodes[index][0]),
                cameras=tuple(sorted(images, key=_is_on_wrist)),
            )

    def _read(self, index: int, episode: Episode, frames: np.ndarray, camera: str) -> InteractionClip:
        with self._open(index) as group:
            orientation = self._orientation or self._stored_orientation(group)
            states = self._state_keys(group)
            depth = self._depth(group, camera) if self.with_depth else None
            return InteractionClip(
                frames=_upright(self._decode(self._images(group)[camera], frames), orientation),
                task=episode.task,
                actions=_join(group, self._action_keys(group), frames),
                states=_join(group, states, frames) if states else None,
                depth=None if depth is None else _upright(_read_depth(depth, frames), orientation),
                camera=self._calibration(group, camera),
                source={
                    'layout': self.layout,
                    'stored_orientation': orientation,
                    'state_keys': states,
                    **self._more_source(group),
                },
            )

    @contextlib.contextmanager
    def _open(self, index: int) -> Iterator:
        """The h5py group of an episode. Whatever is wrong in there names the file and the group."""
        import h5py

        file, group = self._episodes[index]
        where = f'{file}: {group}' if group else f'{file}'
        try:
            with h5py.File(file, 'r') as opened:
                yield opened[group] if group else opened
        except (ValueError, KeyError, TypeError) as error:
            raise BadEpisode(f'{where}: {"; ".join(map(str, error.args))}') from error
        except (OSError, RuntimeError) as error:
            raise BadEpisode(f'{where}: damaged or incomplete: {error}') from error

    def _name(self, index: int) -> str:
        file, group = self._episodes[index]
        demo = group.removeprefix('data').removeprefix('/')
        if not self._in_folder:
            return demo or file.stem
        return '/'.join(filter(None, (file.relative_to(self.path).with_suffix('').as_posix(), demo)))

    def _no_images(self, group) -> str:
        return f'no images; found {_describe(group)}'

    def _decode(self, images, frames: np.ndarray) -> np.ndarray:
        return _read_rows(images, frames)

    def _stored_orientation(self, group) -> str:
        return 'upright'

    def _depth(self, group, camera: str):
        return None

    def _calibration(self, group, camera: str) -> Camera | None:
        return None

    def _more_source(self, group) -> dict:
        return {}


class RobomimicReader(_Hdf5Reader):
    """robomimic files, and those of MimicGen and RoboCasa, which robomimic writes.

    Images are upright. Depth is in metres in files that also have `camera_info` (robomimic has written both
    since commit 50b03f5), elsewhere its unit is unknown. States are pose and opening of each robot's gripper.
    """

    layout = 'robomimic'

    def __init__(self, path: Path, files: list[Path], orientation: str | None, split: str | None):
        episodes = [(file, group) for file in files for group in _list_demos(file, split)]
        super().__init__(path, episodes, orientation)

    def _images(self, group) -> dict:
        return {name: item for name, item in _datasets(group, 'obs') if _is_image(item)}

    def _no_images(self, group) -> str:
        return (
            'no images (robomimic dataset_states_to_obs.py --camera_names can render simulator states); '
            f'found {_describe(group)}'
        )

    def _action_keys(self, group) -> list[str]:
        return ['actions']

    def _state_keys(self, group) -> list[str]:
        parts = ('eef_pos', 'eef_quat', 'gripper_qpos')
        matches = (re.fullmatch(rf'(robot\d+_|)({"|".join(parts)})', name) for name in group['obs'])
        found = sorted((match[1], parts.index(match[2])) for match in matches if match)
        return [f'obs/{robot}{parts[part]}' for robot, part in found]

    def _fps(self, group) -> float:
        options = _read_json(group.parent, 'env_args').get('env_kwargs') or {}
        return float(options.get('control_freq') or ROBOSUITE_FPS)

    def _task(self, group, file: Path) -> str:
        options = _read_json(group.parent, 'env_args').get('env_kwargs') or {}
        return _read_json(group, 'ep_meta').get('lang') or options.get('env_lang') or ''

    def _depth(self, group, camera: str):
        view = camera.removesuffix('_image')
        depth = group.get(f'obs/{view}_depth')
        is_metric = view in _read_json(group, 'camera_info') and depth is not None and depth.dtype.kind == 'f'
        return depth if is_metric else None

    def _calibration(self, group, camera: str) -> Camera | None:
        view = camera.removesuffix('_image')
        known = _read_json(group, 'camera_info').get(view)
        if not known:
            return None
        # A camera on the robot moves, but the file has one pose, and for a wrist it is not even in the world.
        on_robot = view.startswith('robot') or _is_on_wrist(view)
        pose = None if on_robot else np.array(known['extrinsics'], dtype=np.float64)
        return Camera(np.array(known['intrinsics'], dtype=np.float64), pose)

    def _more_source(self, group) -> dict:
        environment = _read_json(group.parent, 'env_args')
        is_robosuite = environment.get('type', environment.get('env_type')) == 1
        return {
            'environment': environment.get('env_name'),
            'gripper': '-1 opens, +1 closes' if is_robosuite else None,
        }


class LiberoReader(RobomimicReader):
    """LIBERO files. There is no depth in metres: theirs is OpenGL's 0..1, without the clipping planes."""

    layout = 'libero'

    def _stored_orientation(self, group) -> str:
        convention = group.parent.attrs.get('macros_image_convention', 'opengl')
        convention = convention.decode() if isinstance(convention, bytes) else convention
        try:
            return {'opengl': 'opengl', 'opencv': 'upright'}[convention]
        except KeyError:
            raise BadEpisode(
                f'macros_image_convention: expected opengl or opencv, got {convention!r}; give `orientation`'
            ) from None

    def _state_keys(self, group) -> list[str]:
        return [f'obs/{name}' for name in ('ee_states', 'gripper_states') if name in group['obs']]

    def _task(self, group, file: Path) -> str:
        """From `problem_info`, perhaps as a list and in quotation marks; else from the file's name."""
        text = _read_json(group.parent, 'problem_info').get('language_instruction') or ''
        if not isinstance(text, str):
            text = ('' if all(len(part) == 1 for part in text) else ' ').join(text)
        if not text.strip('" ') and file.stem.endswith('_demo'):
            text = re.sub(r'^[A-Z_]+_SCENE\d+_', '', file.stem.removesuffix('_demo')).replace('_', ' ')
        return text.strip('" ')

    def _more_source(self, group) -> dict:
        return {**super()._more_source(group), 'gripper': '-1 opens, +1 closes'}


class AlohaReader(_Hdf5Reader):
    """ALOHA/ACT files, simulated and real, with raw or JPEG images. States are `qpos`.

    `compress_len` is not used: its rows are in the recorder's own order of cameras, which the file does not
    keep. The end mark of a JPEG tells its length too.
    """

    layout = 'aloha'

    def __init__(self, path: Path, files: list[Path], orientation: str | None, standard_jpeg: bool):
        super().__init__(path, [(file, '') for file in files], orientation)
        self._standard_jpeg = standard_jpeg

    def _images(self, group) -> dict:
        return {
            name: item
            for name, item in _datasets(group, 'observations/images')
            if 'depth' not in name and (_is_image(item) or _is_encoded(item))
        }

    def _action_keys(self, group) -> list[str]:
        return ['action', *(['base_action'] if 'base_action' in group else [])]

    def _state_keys(self, group) -> list[str]:
        return ['observations/qpos'] if 'observations/qpos' in group else []

    def _fps(self, group) -> float:
        return ALOHA_FPS

    def _task(self, group, file: Path) -> str:
        """ACT has no language; files made for TinyVLA and DexVLA have `language_raw`, () or (1,)."""
        if 'language_raw' not in group:
            return ''
        text = np.ravel(group['language_raw'][()])[0]
        return text.decode() if isinstance(text, bytes) else str(text)

    def _decode(self, images, frames: np.ndarray) -> np.ndarray:
        if images.ndim == 4:
            return _read_rows(images, frames)
        decoded = np.stack([_decode_image(images, int(frame)) for frame in frames])
        return decoded[..., ::-1] if self._standard_jpeg else decoded

    def _more_source(self, group) -> dict:
        # Early recorders wrote no `sim`; act-plus-plus takes that for a real robot
        return {'gripper': '0 closed, 1 open', 'sim': bool(group.attrs.get('sim', False))}


def _find_files(path: Path) -> list[Path]:
    """HDF5 files in natural order: episode_2 before episode_10."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(errno.ENOENT, 'no such file or folder', str(path))
    names = (file.relative_to(path) for file in path.rglob('*') if file.suffix in ('.hdf5', '.h5'))
    # macOS leaves ._<name>.hdf5 beside copied files
    visible = [name for name in names if not any(part.startswith('.') for part in name.parts)]
    if not visible:
        found = ', '.join(sorted(item.name for item in path.iterdir())[:10]) or 'nothing'
        raise UnknownLayout(f'{path}: expected .hdf5 or .h5 files, found {found}')
    return [path / name for name in sorted(visible, key=lambda name: natural_order(name.as_posix()))]


def _recognise(path: Path, files: list[Path]) -> type[_Hdf5Reader]:
    """Class for the first file that has a known layout."""
    import h5py

    unknown = damaged = None
    for file in files:
        try:
            with h5py.File(file, 'r') as opened:
                if kind := _layout(opened):
                    return kind
                unknown = unknown or UnknownLayout(f'{file}: found {_describe(opened)}; known: {KNOWN}')
        except (OSError, RuntimeError, KeyError) as error:
            damaged = damaged or BadEpisode(f'{file}: damaged or incomplete, or no HDF5 file: {error}')
    raise unknown or damaged


def _layout(file) -> type[_Hdf5Reader] | None:
    if 'observations/images' in file:
        return AlohaReader
    data = file.get('data')
    if not hasattr(data, 'keys'):
        return None
    demo = next((data[name] for name in _demo_names(data)), {})
    if {'problem_info', 'macros_image_convention'} & set(data.attrs) or 'robot_states' in demo:
        return LiberoReader
    return RobomimicReader if 'env_args' in data.attrs or 'actions' in demo else None


def _list_demos(file: Path, split: str | None) -> list[str]:
    """Groups of the demonstrations of a file in numeric order; ['data'] if they cannot be listed."""
    import h5py

    try:
        with h5py.File(file, 'r') as opened:
            if split is None:
                names = _demo_names(opened['data'])
            elif f'mask/{split}' in opened:
                names = [name.decode() for name in opened[f'mask/{split}'][()].astype('S')]
            else:
                raise ValueError(f'{file}: no split {split!r}; there are {list(opened.get("mask", ()))}')
    except (OSError, RuntimeError, KeyError, AttributeError):
        return ['data']  # opening this as an episode raises what is wrong
    return [f'data/{name}' for name in sorted(names, key=natural_order)]


def _demo_names(data) -> list[str]:
    import h5py

    return sorted((name for name in data if data.get(name, getclass=True) is h5py.Group), key=natural_order)


def _datasets(group, path: str) -> list[tuple]:
    import h5py

    inside = group[path].items() if path in group else ()
    return [(name, item) for name, item in inside if isinstance(item, h5py.Dataset)]


def _is_image(dataset) -> bool:
    return dataset.ndim == 4 and dataset.shape[-1] == 3 and dataset.dtype == np.uint8


def _is_encoded(dataset) -> bool:
    """JPEG data in rows padded with zeros, or in rows of their own lengths."""
    return (dataset.ndim == 2 and dataset.dtype == np.uint8) or (
        dataset.ndim == 1 and dataset.dtype.kind in 'OS'
    )


def _is_on_wrist(camera: str) -> bool:
    return any(word in camera for word in ('wrist', 'hand', 'gripper'))


def _read_json(group, attribute: str) -> dict:
    """A JSON attribute; {} if there is none."""
    text = group.attrs.get(attribute, '{}')
    try:
        value = json.loads(text)
    except (TypeError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise BadEpisode(f'attribute {attribute} of {group.name}: expected a JSON object, got {text!r:.60}')
    return value


def _read_rows(dataset, frames: np.ndarray) -> np.ndarray:
    """Rows in any order, also repeated. h5py takes increasing indices only, and is quick with slices only."""
    rows, places = np.unique(frames, return_inverse=True)
    step = int(rows[1] - rows[0]) if len(rows) > 1 else 1
    is_even = (np.diff(rows) == step).all()
    selection = slice(int(rows[0]), int(rows[-1]) + 1, step) if is_even else rows
    try:
        values = dataset[selection]
    except OSError as error:
        for row in rows:
            try:
                dataset[int(row)]
            except OSError:
                raise BadEpisode(f'{dataset.name}: frame {row} is damaged: {error}') from error
        raise
    return values if np.array_equal(rows, frames) else values[places]


def _join(group, keys: list[str], frames: np.ndarray) -> np.ndarray:
    """(N, A) float32 of (T, ...) datasets side by side."""
    parts = [_read_rows(group[key], frames).reshape(len(frames), -1) for key in keys]
    return np.concatenate(parts, axis=1).astype(np.float32)


def _read_depth(dataset, frames: np.ndarray) -> np.ndarray:
    depth = _read_rows(dataset, frames).astype(np.float32).reshape(len(frames), *dataset.shape[1:3])
    return np.where(np.isfinite(depth), depth, 0)


def _upright(images: np.ndarray, orientation: str) -> np.ndarray:
    rows, columns = ORIENTATIONS[orientation]
    return np.ascontiguousarray(images[:, ::rows, ::columns])


def _decode_image(dataset, frame: int) -> np.ndarray:
    """(H, W, 3) uint8 in the channel order that OpenCV's encoder was given."""
    row = dataset[frame]
    data = row if isinstance(row, bytes) else np.asarray(row, dtype=np.uint8).tobytes()
    # Where a JPEG is cut, OpenCV may take the padding for picture, without a word
    is_cut = data.startswith(b'\xff\xd8') and not data.rstrip(b'\0').endswith(b'\xff\xd9')
    image = None if is_cut or not data else cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise BadEpisode(f'{dataset.name}: frame {frame} is no complete JPEG image')
    return image


def _describe(group) -> str:
    """Names of the first two levels of an HDF5 group and of its attributes, a screenful at most."""
    lines = []
    for name, item in group.items():
        if hasattr(item, 'keys'):
            lines.append(
                f'{name}/ ({", ".join(list(item)[:8]) or "empty"}{", ..." if len(item) > 8 else ""})'
            )
        else:
            lines.append(f'{name} {getattr(item, "shape", "")}')
    if group.attrs:
        lines.append(f'attributes {", ".join(group.attrs)}')
    return ', '.join(lines[:20]) or 'nothing'
