"""Who makes the episodes of an augmentation: a worker in this process, or several on a Ray cluster.

An episode that takes its process with it, such as by too much memory or a fault in a codec, must not hold up
a job for ever. Ray restarts what died. Here the run after one that was killed before it had finished anything
works in a child: that a child died is the episode's doing, where the death of this process may have been its
user's.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import signal
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing.connection import Connection

from mask2iv_ros.augmentation.worker import Outcome, Worker, part_name
from mask2iv_ros.resources import end_with_parent

#: Times that an episode whose worker died is tried again.
RETRIES = 2

#: File in the folder of parts while episodes are made in this process, which only a killed one leaves there.
#: It holds the number of parts that were there before.
RUNNING = 'running'


def run_here(worker: Worker, tasks: dict[int, list[int]], *_) -> Iterator[Outcome | None]:
    """Outcomes; before them None, when all is loaded."""
    running, made = worker.parts / RUNNING, str(len(list(worker.parts.glob('episode_*'))))
    if running.exists():
        made_before = running.read_text()
        running.unlink()
        if made == made_before:
            yield from _run_in_child(worker, tasks)
            return
    worker.ready()
    yield
    running.write_text(made)
    try:
        for episode, variants in tasks.items():
            yield from worker.run(episode, variants)
    finally:
        running.unlink()


def _run_in_child(worker: Worker, tasks: dict[int, list[int]]) -> Iterator[Outcome | None]:
    """As `run_here`, in a child that is started anew when it dies."""
    child = _Child(worker)
    try:
        yield
        for episode, variants in tasks.items():
            for _ in range(RETRIES + 1):
                child = child or _Child(worker)
                try:
                    for outcome in child.run(episode, variants):
                        variants = [variant for variant in variants if variant != outcome.variant]
                        yield outcome
                    break
                except (EOFError, ConnectionError):
                    status, child = child.end(), None
            else:
                yield from _died(worker, episode, variants, f'exit status {status}')
    finally:
        if child is not None:
            child.end()


class _Child:
    """A worker in a process of its own, which ends with this one."""

    def __init__(self, worker: Worker):
        context = multiprocessing.get_context('spawn')  # forked, the threads of torch would be missing
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, worker.arguments), daemon=True)
        self._process.start()
        theirs.close()
        try:
            list(self._answers())
        except (EOFError, ConnectionError) as error:
            raise RuntimeError(f'a worker died while it was loaded, with exit status {self.end()}') from error

    def run(self, episode: int, variants: Iterable[int]) -> Iterator[Outcome]:
        """As `Worker.run`. EOFError or ConnectionError if the child dies."""
        self._pipe.send((episode, list(variants)))
        return self._answers()

    def _answers(self) -> Iterator[Outcome]:
        while (answer := self._pipe.recv()) is not None:
            if isinstance(answer, Exception):
                raise answer
            yield answer

    def end(self) -> int | None:
        """Returns the exit status; -N after signal N."""
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._process.join(1)
        self._process.kill()
        self._process.join()
        return self._process.exitcode


def _serve(pipe: Connection, arguments: tuple) -> None:
    """Do what comes through the pipe, until None; after the answers None, or the error that ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # is for the parent, which ends this process
    end_with_parent()
    try:
        worker = Worker(*arguments)
        worker.ready()
        pipe.send(None)
        for episode, variants in iter(pipe.recv, None):
            for outcome in worker.run(episode, variants):
                pipe.send(outcome)
            pipe.send(None)
    except Exception as error:
        pipe.send(error)


def _died(worker: Worker, episode: int, variants: Iterable[int], how: str) -> list[Outcome]:
    """The outcomes of an episode whose worker died too often."""
    told = f'its worker died {RETRIES + 1} times: {how}'
    return [
        worker.finished(episode, variant)
        or Outcome(episode, variant, 'failed', f'{part_name(episode, variant)}: {told}', 'worker')
        for variant in variants
    ]


def shares(resources: Mapping[str, float], workers: int | None, gpu: bool) -> tuple[int, float]:
    """How many workers there are on a cluster with `resources`, and the share of a GPU that each asks for.

    Args:
        workers: as was asked for; None for one a GPU, or where none is there or needed, one a CPU.
        gpu: whether a worker has work for a GPU.

    Raises:
        ValueError: more workers than CPUs, for which Ray would wait for ever.
    """
    gpus, cpus = int(resources.get('GPU', 0)) if gpu else 0, int(resources['CPU'])
    count = workers or min(gpus or cpus, cpus)
    if count > cpus:
        raise ValueError(f'workers: expected at most {cpus}, one for each CPU of the cluster, got {count}')
    return count, 1 / math.ceil(count / gpus) if gpus else 0


def run_on_ray(
    worker: Worker, tasks: dict[int, list[int]], workers: int | None, gpu: bool
) -> Iterator[Outcome | None]:
    """As `run_here`. Actors hold the model, episodes are tasks; Ray restarts and retries what died."""
    try:
        import ray
    except ImportError as error:
        raise ImportError("--executor ray needs Ray: pip install 'mask2iv-ros[ray]'") from error

    owned = not ray.is_initialized()
    if owned:
        ray.init(log_to_driver=False, logging_level='warning', include_dashboard=False)
    try:
        count, share = shares(ray.cluster_resources(), workers, gpu)
        actor = ray.remote(Worker).options(
            num_cpus=1, num_gpus=share, max_restarts=-1, max_task_retries=RETRIES
        )
        idle = [actor.remote(*worker.arguments) for _ in range(min(count, len(tasks)))]
        ray.get([each.ready.remote() for each in idle])
        yield
        waiting, running = list(tasks.items())[::-1], {}
        while waiting or running:
            while waiting and idle:
                episode, variants = waiting.pop()
                each = idle.pop()
                running[each.run_all.remote(episode, variants)] = each, episode, variants
            (reference,), _ = ray.wait(list(running), num_returns=1)
            each, episode, variants = running.pop(reference)
            try:
                outcomes = ray.get(reference)
            except ray.exceptions.RayTaskError:  # it lives, and says that no episode can be made
                raise
            except ray.exceptions.RayError as error:
                outcomes = _died(worker, episode, variants, str(error).strip().splitlines()[0])
            idle.append(each)
            yield from outcomes
    finally:
        if owned:
            ray.shutdown()


EXECUTORS = {'local': run_here, 'ray': run_on_ray}
