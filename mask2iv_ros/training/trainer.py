"""The training loop that the VAE and both stages share: resume, time budget, logs, atomic checkpoints."""

from __future__ import annotations

import json
import math
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm


@dataclass
class Schedule:
    """How long and how fast to train: AdamW with linear warm-up, then a cosine to 2 % of `learning_rate`."""

    steps: int
    learning_rate: float
    warmup_steps: int = 100
    weight_decay: float = 0.01
    max_grad_norm: float = 0.5
    ema_decay: float = 0.999

    def learning_rate_at(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps))
        return self.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


class Trainer:
    """Trains one model into `folder`, and continues there after any kind of stop.

    Everything random in a step is drawn from `generator(step)`, which depends on seed and step alone. So a
    run that was killed and resumed takes the same steps as one that was not.

    Args:
        data: what the model is trained on, in a few words or a hash. A checkpoint of other data or of another
            seed is refused with ValueError instead of being continued.
    """

    def __init__(
        self, model: torch.nn.Module, folder: Path, schedule: Schedule, seed: int = 0, data: str = ''
    ):
        self.accelerator = Accelerator(mixed_precision='bf16')
        self.folder, self.schedule, self.seed, self.data = folder, schedule, seed, data
        folder.mkdir(parents=True, exist_ok=True)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=schedule.learning_rate, betas=(0.9, 0.99), weight_decay=schedule.weight_decay
        )
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.ema = EMAModel(parameters, decay=schedule.ema_decay, use_ema_warmup=True, power=0.75)
        self.ema.to(self.accelerator.device)
        self.step = 0
        self.accelerator.register_for_checkpointing(self.ema)
        self._recover()

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def log_path(self) -> Path:
        return self.folder / 'losses.jsonl'

    def generator(self, step: int) -> torch.Generator:
        """CPU generator of one step; equal for equal (seed, step, process)."""
        seed = (self.seed * 1_000_003 + step) * 64 + self.accelerator.process_index
        return torch.Generator().manual_seed(seed)

    def run(
        self,
        loss_at: Callable[[torch.Generator], dict[str, torch.Tensor]],
        max_minutes: float | None = None,
        sample: Callable[[int], None] | None = None,
        save_minutes: float = 5,
        sample_steps: int = 500,
    ) -> bool:
        """Train until the schedule ends, `max_minutes` pass, or SIGTERM or SIGINT arrives; then save.

        Args:
            loss_at: returns {'loss': scalar, ...more scalars to log} for one step's generator.
            sample: called with the step, with averaged weights in the model, to draw pictures.

        Returns:
            True if the schedule is complete.
        """
        stop = []
        previous = {
            s: signal.signal(s, lambda *_: stop.append(True)) for s in (signal.SIGTERM, signal.SIGINT)
        }
        start = saved = time.monotonic()
        running: dict[str, float] = {}
        progress = tqdm(
            total=self.schedule.steps, initial=self.step, desc=self.folder.name, unit='step', mininterval=5
        )
        try:
            while self.step < self.schedule.steps and not stop:
                if max_minutes is not None and time.monotonic() - start > max_minutes * 60:
                    break
                losses = self._train_step(loss_at)
                for key, value in losses.items():
                    running[key] = value if key not in running else 0.98 * running[key] + 0.02 * value
                progress.update()
                progress.set_postfix({key: f'{value:.4f}' for key, value in running.items()}, refresh=False)
                if self.step % 25 == 0 or self.step == self.schedule.steps:
                    self._log(running, time.monotonic() - start)
                if time.monotonic() - saved > save_minutes * 60:
                    self.save()
                    saved = time.monotonic()
                if sample and self.step % sample_steps == 0:
                    self._sample(sample)
            self.save()
            if sample:
                self._sample(sample)
        finally:
            progress.close()
            for number, handler in previous.items():
                signal.signal(number, handler)
        return self.step >= self.schedule.steps

    def averaged_model(self) -> torch.nn.Module:
        """The model with its averaged weights, in place: for export when training is over."""
        self.ema.copy_to(self.model.parameters())
        return self.accelerator.unwrap_model(self.model)

    def save(self) -> None:
        """Write a checkpoint so that a kill at any moment leaves a complete one."""
        fresh, kept, old = (self.folder / f'checkpoint{suffix}' for suffix in ('.new', '', '.old'))
        shutil.rmtree(fresh, ignore_errors=True)
        self.accelerator.save_state(fresh)
        record = {'step': self.step, 'seed': self.seed, 'data': self.data}
        (fresh / 'step.json').write_text(json.dumps(record))
        shutil.rmtree(old, ignore_errors=True)
        if kept.exists():
            kept.rename(old)
        fresh.rename(kept)
        shutil.rmtree(old, ignore_errors=True)

    def _recover(self) -> None:
        kept = self.folder / 'checkpoint'
        # Killed between the two renames of `save`: `.new` is complete, because its step.json comes last.
        for suffix in ('.new', '.old'):
            other = self.folder / f'checkpoint{suffix}'
            if not kept.exists() and (other / 'step.json').exists():
                other.rename(kept)
        if (kept / 'step.json').exists():
            record = json.loads((kept / 'step.json').read_text())
            if (record['seed'], record['data']) != (self.seed, self.data):
                raise ValueError(
                    f'{kept}: was trained with seed {record["seed"]} on {record["data"]}, now it is seed '
                    f'{self.seed} on {self.data}; remove {self.folder} to start anew'
                )
            self.accelerator.load_state(kept)
            self.step = record['step']
            self.accelerator.print(f'{self.folder}: resumed at step {self.step}')

    def _train_step(self, loss_at) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group['lr'] = self.schedule.learning_rate_at(self.step)
        self.model.train()
        # On a CPU the fused attention is slow to differentiate for the short sequences of temporal attention.
        attention = sdpa_kernel(SDPBackend.MATH) if self.device.type == 'cpu' else nullcontext()
        with attention:
            with self.accelerator.autocast():
                losses = loss_at(self.generator(self.step))
            self.accelerator.backward(losses['loss'])
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.schedule.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.model.parameters())
        self.step += 1
        return {key: value.detach().item() for key, value in losses.items()}

    def _sample(self, sample) -> None:
        self.model.eval()
        self.ema.store(self.model.parameters())
        self.ema.copy_to(self.model.parameters())
        try:
            with torch.no_grad():
                sample(self.step)
        finally:
            self.ema.restore(self.model.parameters())

    def _log(self, losses: dict[str, float], seconds: float) -> None:
        record = {'step': self.step, 'seconds': round(seconds, 1), **losses}
        with self.log_path.open('a') as file:
            file.write(json.dumps(record) + '\n')
