"""The embedded model: found without an option, packed small, unpacked once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mask2iv_ros.pipelines.loading import load_pipeline
from mask2iv_ros.weights import default_model_path, pack, unpack
from tiny_model import build_tiny_pipeline

ROOT = Path(__file__).parents[1]


@pytest.fixture
def packed(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    build_tiny_pipeline().to(torch.float16).save_pretrained(tmp_path / 'plain')
    pack(tmp_path / 'plain', tmp_path / 'packed')
    return tmp_path / 'packed'


def test_packed_weights_are_nearly_the_same_and_work(packed):
    assert not list(packed.rglob('*.safetensors'))
    loaded, original = load_pipeline(packed, 'cpu', torch.float32), build_tiny_pipeline()
    for name, value in original.trajectory_unet.state_dict().items():
        torch.testing.assert_close(
            loaded.trajectory_unet.state_dict()[name], value, rtol=2**-7, atol=1e-6, msg=name
        )


def test_unpacking_happens_once(packed):
    folder = unpack(packed)
    before = (folder / 'model_index.json').stat().st_mtime_ns
    assert unpack(packed) == folder
    assert (folder / 'model_index.json').stat().st_mtime_ns == before
    assert unpack(folder) == folder
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_corrupt_packed_file_is_named(packed):
    victim = next((packed / 'vae').glob('*.xz'))
    victim.write_bytes(victim.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r'vae.*corrupt'):
        unpack(packed)


@pytest.mark.parametrize(
    ('dtype', 'name'), [(torch.float32, 'F32'), (torch.bfloat16, 'BF16'), (torch.int64, 'I64')]
)
def test_only_float16_is_packed(tmp_path, dtype, name):
    (tmp_path / 'plain').mkdir()
    tensors = {'a': torch.ones(4, dtype=torch.float16), 'F16': torch.ones(4, dtype=dtype)}
    save_file(tensors, tmp_path / 'plain' / 'model.safetensors', metadata={'format': 'pt'})
    with pytest.raises(ValueError, match=rf'model.safetensors: expected float16 .*got {name}'):
        pack(tmp_path / 'plain', tmp_path / 'packed')


def test_the_embedded_model_loads_from_anywhere(tmp_path):
    program = 'from mask2iv_ros.pipelines.loading import load_pipeline as l; print(l("", "cpu").config.name)'
    done = subprocess.run(
        [sys.executable, '-c', program],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': f'{ROOT}:{os.environ.get("PYTHONPATH", "")}'},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip().endswith('mask2iv-sim'), done.stderr


def test_tracked_sizes_fit():
    files = [path for path in default_model_path().rglob('*') if path.is_file()]
    assert all(path.stat().st_size < 20e6 for path in (ROOT / 'weights').rglob('*') if path.is_file())
    assert len([path for path in files if path.suffix == '.safetensors']) == 5
