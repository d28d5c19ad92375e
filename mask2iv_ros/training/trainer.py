"""The training loop that the VAE and both stages share: resume, time budget, scores, atomic checkpoints."""

from __future__ import annotations

import json
import math
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, ProjectConfiguration
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

#: Steps between two lines of the log.
LOG_STEPS = 25
#: Written last into a folder, so that one which has it is complete.
RECORD = 'step.json'
#: Keys of objectives that checkpoints from before they were there go without.
ADDED = (
    'scheduler', 'networks', 'started_from', 'kl_weight', 'keep_latents', 'looks_version', 'options',
)  # fmt: skip


class Checked:
    """Options from a configuration file. A subclass calls `check` once its own conversions are done."""

    #: Smallest value of each number; all others are at least 0.
    MINIMA: ClassVar[dict[str, float]] = {}

    def check(self) -> None:
        """Raise ValueError for a field that is not of its type, or a number too small."""
        kinds = {
            'int': (int, 'a whole number'),
            'float': ((int, float), 'a number'),
            'bool': (bool, 'a bool'),
        }
        for option in fields(self):
            kind, *optional = option.type.split(' | ')
            value = getattr(self, option.name)
            if kind not in kinds or (optional and value is None):
                continue
            types, words = kinds[kind]
            fits = isinstance(value, types) and (kind == 'bool' or not isinstance(value, bool))
            minimum = self.MINIMA.get(option.name, 0)
            if not fits or (kind != 'bool' and not minimum <= value < math.inf):
                least = '' if kind == 'bool' else f' of at least {minimum}'
                raise ValueError(f'{option.name}: expected {words}{least}, got {value!r}')


@dataclass
class Schedule(Checked):
    """How a model is optimised: AdamW with linear warm-up, then at a falling or constant rate.

    Attributes:
        steps: optimiser steps.
        learning_rate: after the warm-up.
        decay: 'cosine' falls to 2 % of `learning_rate` at the end; 'constant' stays, as in Mask2IV.
        warmup_steps: steps of the warm-up; 0 for none.
        ema_decay: of the averaged weights that are scored and exported; None to use the trained ones.
        gradient_accumulation_steps: batches a step, on each process.
        mixed_precision: 'bf16', 'fp16' or 'no'.
    """

    steps: int
    learning_rate: float
    decay: str = 'cosine'
    warmup_steps: int = 100
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    max_grad_norm: float = 0.5
    ema_decay: float | None = 0.999
    gradient_accumulation_steps: int = 1
    mixed_precision: str = 'bf16'

    MINIMA = {'steps': 1, 'gradient_accumulation_steps': 1}  # noqa: RUF012

    def __post_init__(self):
        for name in ('learning_rate', 'weight_decay', 'max_grad_norm'):
            setattr(self, name, number(getattr(self, name)))
        self.check()
        if self.decay not in ('cosine', 'constant'):
            raise ValueError(f"decay: expected 'cosine' or 'constant', got {self.decay!r}")
        if self.mixed_precision not in ('bf16', 'fp16', 'no'):
            raise ValueError(
                f"mixed_precision: expected 'bf16', 'fp16' or 'no', got {self.mixed_precision!r}"
            )

    def learning_rate_at(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.decay == 'constant':
            return self.learning_rate
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps))
        return self.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


class Trainer:
    """Trains one model into `folder`, and continues there after any kind of stop.

    Everything random in a step is drawn from `generator(step)` or follows torch's seed, which `generator`'s
    sets: both depend on seed, step and process alone. So a run that was killed and resumed takes the same
    steps as one that was not. Under `accelerate launch` each process draws its own batches, and the first one
    alone writes. `folder` holds `checkpoint/` (what was trained, optimiser, averages), `best/` (averaged
    weights of the best score), `losses.jsonl` and TensorBoard's `tensorboard/`. Its `seconds` are those of
    all steps so far, before and after a stop, without scoring and saving.

    Args:
        model: parameters that need no gradient are neither trained nor stored.
        data: what the model is trained on, in a few words or a hash.
        objective: what else decides what is learned, as JSON has it. A checkpoint of other data, of another
            seed or of another objective is refused with ValueError instead of being continued; of the keys
            in `ADDED` those that it has are compared.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        folder: Path,
        schedule: Schedule,
        seed: int = 0,
        data: str = '',
        objective: dict | None = None,
    ):
        self.folder, self.schedule, self.seed, self.data = folder, schedule, seed, data
        self.objective = json.loads(json.dumps(objective or {}))  # as it is read again
        AcceleratorState._reset_state()  # each part of a run has its own precision
        self.accelerator = Accelerator(
            mixed_precision=schedule.mixed_precision,
            gradient_accumulation_steps=schedule.gradient_accumulation_steps,
            log_with='tensorboard',
            project_config=ProjectConfiguration(str(folder), logging_dir=str(folder)),
        )
        self.is_sharded = self.accelerator.distributed_type == DistributedType.FSDP
        if self.is_sharded and schedule.ema_decay is not None:
            raise ValueError('ema_decay: expected null with FSDP, whose sharded weights cannot be averaged')
        folder.mkdir(parents=True, exist_ok=True)
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad],
            lr=schedule.learning_rate,
            betas=tuple(schedule.betas),
            weight_decay=schedule.weight_decay,
        )
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.ema = None
        if schedule.ema_decay is not None:
            from diffusers.training_utils import EMAModel  # takes seconds: it imports all models of diffusers

            self.ema = EMAModel(
                self._trained().values(), decay=schedule.ema_decay, use_ema_warmup=True, power=0.75
            )
            self.ema.to(self.accelerator.device)
            self.accelerator.register_for_checkpointing(self.ema)
        if not self.is_sharded:
            self.accelerator.register_save_state_pre_hook(self._save_trained)
            self.accelerator.register_load_state_pre_hook(self._load_trained)
        self.step, self.seconds = 0, 0.0
        self._running: dict[str, float] = {}
        self._recover()

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def log_path(self) -> Path:
        return self.folder / 'losses.jsonl'

    @property
    def best(self) -> dict[str, float]:
        """Scores of the best weights and their `step`; empty before the first."""
        return {key: value for key, value in self._best_record().items() if key not in ('run', 'scored')}

    def _best_record(self) -> dict:
        path = self.folder / 'best' / RECORD
        return json.loads(path.read_text()) if path.is_file() else {}

    def generator(self, step: int, batch: int = 0) -> torch.Generator:
        """CPU generator of one batch of a step; equal for equal (seed, step, batch, process)."""
        entropy = (self.seed, step, batch, self.accelerator.process_index)
        seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))
        return torch.Generator().manual_seed(seed)

    def run(
        self,
        loss_at: Callable[[torch.Generator], dict[str, torch.Tensor]],
        max_minutes: float | None = None,
        evaluate: Callable[[int], dict[str, float]] | None = None,
        save_minutes: float = 5,
        evaluate_steps: int = 500,
        scored: dict | None = None,
    ) -> bool:
        """Train until the schedule ends, `max_minutes` pass, or SIGTERM or SIGINT arrives; then save.

        Args:
            loss_at: returns {'loss': scalar, ...more scalars to log} for one batch's generator.
            evaluate: called with the step every `evaluate_steps` and at the schedule's end, on the first
                process, with averaged weights in the model. It may draw pictures; what it returns is logged,
                and the weights with the highest 'score' are kept in `best/`.
            scored: what else a score depends on, as JSON has it; scores of another one are not compared.

        Returns:
            True if the schedule is complete.
        """
        stop = []
        previous = {
            s: signal.signal(s, lambda *_: stop.append(True)) for s in (signal.SIGTERM, signal.SIGINT)
        }
        self._scored = json.loads(json.dumps(scored))
        self.accelerator.init_trackers('tensorboard')
        start = saved = time.monotonic()
        progress = tqdm(
            total=self.schedule.steps,
            initial=self.step,
            desc=self.folder.name,
            unit='step',
            mininterval=5,
            disable=not self.accelerator.is_main_process,
        )

        def due(since: float, minutes: float) -> bool:
            return time.monotonic() - since > minutes * 60

        try:
            while self.step < self.schedule.steps:
                if self._any(bool(stop) or (max_minutes is not None and due(start, max_minutes))):
                    break
                before_step = time.monotonic()
                losses = self._train_step(loss_at)
                self.seconds += time.monotonic() - before_step
                for key, value in losses.items():
                    before = self._running.get(key, value)
                    self._running[key] = 0.98 * before + 0.02 * value
                progress.update()
                postfix = {key: f'{value:.4f}' for key, value in self._running.items()}
                progress.set_postfix(postfix, refresh=False)
                if self.step % LOG_STEPS == 0 or self.step == self.schedule.steps:
                    self._log(self._running)
                if evaluate and (self.step % evaluate_steps == 0 or self.step == self.schedule.steps):
                    self._evaluate(evaluate)
                if self._any(due(saved, save_minutes)):
                    self.save()
                    saved = time.monotonic()
            self.save()
        finally:
            progress.close()
            for tracker in self.accelerator.trackers:
                tracker.finish()
            for number, handler in previous.items():
                signal.signal(number, handler)
        return self.step >= self.schedule.steps

    def final_state(self, best: bool = False) -> dict[str, torch.Tensor]:
        """All weights of the model: averaged ones, or those of the best score if there are."""
        state = self.accelerator.get_state_dict(self.model)
        if best and self.best:
            return state | load_file(self.folder / 'best' / 'weights.safetensors')
        if self.ema is None:
            return state
        return state | dict(zip(self._trained(), self.ema.shadow_params, strict=True))

    def save(self) -> None:
        """Write a checkpoint so that a kill at any moment leaves a complete one."""
        fresh = self.folder / 'checkpoint.new'
        if self.accelerator.is_main_process:
            shutil.rmtree(fresh, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(fresh)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            facts = {'step': self.step, 'seconds': self.seconds, 'running': self._running}
            _complete(self.folder / 'checkpoint', {**facts, **self._identity})
        self.accelerator.wait_for_everyone()

    @property
    def _identity(self) -> dict:
        return {'seed': self.seed, 'data': self.data, 'objective': self.objective}

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        model = self.accelerator.unwrap_model(self.model)
        return {name: p for name, p in model.named_parameters() if p.requires_grad}

    def _save_trained(self, models: list, weights: list, folder: str) -> None:
        if self.accelerator.is_main_process:
            trained = {name: p.detach().contiguous() for name, p in self._trained().items()}
            save_file(trained, Path(folder) / 'trained.safetensors')
        weights.clear()

    def _load_trained(self, models: list, folder: str) -> None:
        saved, trained = load_file(Path(folder) / 'trained.safetensors'), self._trained()
        if saved.keys() != trained.keys():
            different = sorted(saved.keys() ^ trained.keys())
            raise ValueError(
                f'{folder}: holds other weights than are trained now, such as {different[0]}; '
                f'remove {self.folder} to start anew'
            )
        self.accelerator.unwrap_model(self.model).load_state_dict(saved, strict=False)
        models.clear()

    def _recover(self) -> None:
        kept = self.folder / 'checkpoint'
        if self.accelerator.is_main_process:
            for name in ('checkpoint', 'best'):
                _recover_folder(self.folder / name)
            best = self.folder / 'best'
            if best.exists() and not ((kept / RECORD).exists() and self._is_ours(best)):
                shutil.rmtree(best)  # of a run that is not continued
        self.accelerator.wait_for_everyone()
        if (kept / RECORD).exists():
            record = json.loads((kept / RECORD).read_text())
            if (record['seed'], record['data']) != (self.seed, self.data):
                raise ValueError(
                    f'{kept}: was trained with seed {record["seed"]} on {record["data"]}, now it is seed '
                    f'{self.seed} on {self.data}; remove {self.folder} to start anew'
                )
            before = record.get('objective', self.objective)
            if changed := self._changed(before):
                were, are = ({key: facts.get(key) for key in changed} for facts in (before, self.objective))
                raise ValueError(
                    f'{kept}: was trained with {were}, now it is {are}; remove {self.folder} to start anew'
                )
            self.accelerator.load_state(kept)
            self.accelerator.step = 0  # of batches, by which it accumulates; a step begins with none
            for group in self.optimizer.param_groups:  # the schedule may have changed
                group |= {'betas': tuple(self.schedule.betas), 'weight_decay': self.schedule.weight_decay}
            if self.ema is not None:  # accelerate loads what is registered onto the CPU
                self.ema.to(self.device)
                self.ema.decay = self.schedule.ema_decay
            self.step, self._running = record['step'], record['running']
            self.seconds = record.get('seconds', 0.0)
            self._cut_log()
            self.accelerator.print(f'{self.folder}: resumed at step {self.step}')
        elif self.accelerator.is_main_process:
            self.log_path.unlink(missing_ok=True)  # of a run that was killed before its first checkpoint

    def _changed(self, before: dict) -> list[str]:
        """Keys of the objective `before` that are another one's."""
        keys = sorted(before.keys() | self.objective.keys())
        needed = [key for key in keys if key in before or key not in ADDED]
        return [key for key in needed if before.get(key) != self.objective.get(key)]

    def _is_ours(self, best: Path) -> bool:
        run = json.loads((best / RECORD).read_text()).get('run', self._identity)
        return (run['seed'], run['data']) == (self.seed, self.data) and not self._changed(run['objective'])

    def _cut_log(self) -> None:
        if self.accelerator.is_main_process and self.log_path.is_file():
            lines = [line for line in self.log_path.read_text().splitlines() if line.endswith('}')]
            kept = [line for line in lines if json.loads(line)['step'] <= self.step]
            self.log_path.write_text(''.join(f'{line}\n' for line in kept))

    def _train_step(self, loss_at) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group['lr'] = self.schedule.learning_rate_at(self.step)
        self.model.train()
        total: dict[str, float] = {}
        batches = self.schedule.gradient_accumulation_steps
        for batch in range(batches):
            generator = self.generator(self.step, batch)
            torch.manual_seed(generator.initial_seed())  # dropout
            # On a CPU the fused attention is slow to differentiate for temporal attention's short sequences.
            attention = sdpa_kernel(SDPBackend.MATH) if self.device.type == 'cpu' else nullcontext()
            with attention, self.accelerator.accumulate(self.model):
                with self.accelerator.autocast():
                    losses = loss_at(generator)
                self.accelerator.backward(losses['loss'])
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(
                        [p for p in self.model.parameters() if p.requires_grad], self.schedule.max_grad_norm
                    )
                self.optimizer.step()
                self.optimizer.zero_grad()
            for key, value in losses.items():
                total[key] = total.get(key, 0.0) + value.detach().item() / batches
        if self.ema is not None:
            self.ema.step(self._trained().values())
        self.step += 1
        return total

    def _any(self, flag: bool) -> bool:
        """Whether the flag is set on any process, so that all leave the loop, or save, at one step."""
        if self.accelerator.num_processes == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.device)).item())

    def _evaluate(self, evaluate) -> None:
        if self.is_sharded:  # the networks cannot run outside of the training step
            return
        if self.accelerator.is_main_process:
            self.model.eval()
            if self.ema is not None:
                self.ema.store(self._trained().values())
                self.ema.copy_to(self._trained().values())
            try:
                with torch.no_grad(), self.accelerator.autocast():
                    scores = evaluate(self.step)
                if scores:
                    self._write({'step': self.step, **scores})
                if scores.get('score', -math.inf) > self._score_to_beat():
                    self._keep_best(scores)
            finally:
                if self.ema is not None:
                    self.ema.restore(self._trained().values())
        self.accelerator.wait_for_everyone()

    def _score_to_beat(self) -> float:
        record = self._best_record()
        comparable = record.get('scored', self._scored) == self._scored
        return record.get('score', -math.inf) if comparable else -math.inf

    def _keep_best(self, scores: dict[str, float]) -> None:
        fresh = self.folder / 'best.new'
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        trained = {name: p.detach().contiguous() for name, p in self._trained().items()}
        save_file(trained, fresh / 'weights.safetensors')
        facts = {'run': self._identity, 'scored': self._scored}
        _complete(self.folder / 'best', {'step': self.step, **scores, **facts})

    def _log(self, losses: dict[str, float]) -> None:
        if self.accelerator.num_processes > 1:
            values = torch.tensor(list(losses.values()), device=self.device)
            losses = dict(zip(losses, self.accelerator.reduce(values, 'mean').tolist(), strict=True))
        self._write({'step': self.step, 'seconds': round(self.seconds, 1), **losses})

    def _write(self, record: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            with self.log_path.open('a') as file:
                file.write(json.dumps(record) + '\n')
            for tracker in self.accelerator.trackers:
                tracker.log({k: v for k, v in record.items() if k not in ('step', 'seconds')}, step=self.step)


def number(value):
    """A float of a text such as 1e-5, which YAML does not read as a number; all else as it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _complete(kept: Path, record: dict) -> None:
    """Put `record` into the folder `kept`.new and the folder in the place of `kept`."""
    fresh, old = (kept.with_name(kept.name + suffix) for suffix in ('.new', '.old'))
    (fresh / RECORD).write_text(json.dumps(record))
    shutil.rmtree(old, ignore_errors=True)
    if kept.exists():
        kept.rename(old)
    fresh.rename(kept)
    shutil.rmtree(old, ignore_errors=True)


def _recover_folder(kept: Path) -> None:
    """Finish what a kill between the two renames of `_complete` left."""
    for suffix in ('.new', '.old'):
        other = kept.with_name(kept.name + suffix)
        if not kept.exists() and (other / RECORD).exists():
            other.rename(kept)
