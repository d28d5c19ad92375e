"""Other texts for a clip: what people say instead, mistype, or say by mistake."""

from __future__ import annotations

import re

import numpy as np

from mask2iv_ros.data.metaworld_tasks import BENCHMARK_TASKS, TASKS

#: Words that do not tell which objects a text is about; any other word that two tasks share is held for one.
FUNCTION_WORDS = {
    'a',
    'at',
    'away',
    'back',
    'by',
    'down',
    'from',
    'in',
    'into',
    'it',
    'its',
    'of',
    'off',
    'on',
}
FUNCTION_WORDS |= {'and', 'open', 'out', 'over', 'pull', 'push', 'put', 'the', 'to', 'up', 'with'}
#: For clips of other datasets than the simulated one; no robot dataset here has such a thing.
UNKNOWN_OBJECT = 'open the umbrella'


def paraphrase(text: str, scene: str, rng: np.random.Generator) -> str | None:
    """Another of the benchmark's texts for the same task; None if `scene` is not a task of it."""
    if scene not in TASKS:
        return None
    others = [other for other in TASKS[scene].texts if other != text]
    return str(rng.choice(others)) if others else None


def misspell(text: str, rng: np.random.Generator, words: int = 2) -> str | None:
    """`text` with one letter lost or two neighbours swapped in `words` of its words of four letters and more.

    First letters stay, as they do in most slips. None if no word is long enough.
    """
    long = [match.span() for match in re.finditer(r'[^\W\d_]{4,}', text)]
    if not long:
        return None
    picks = rng.choice(len(long), min(words, len(long)), replace=False)
    for start, end in sorted((long[i] for i in picks), reverse=True):  # from the end: places stay
        word = text[start:end]
        i = int(rng.integers(1, len(word) - 1))
        swapped = word[:i] + word[i + 1] + word[i] + word[i + 2 :]
        if rng.random() < 0.5 or swapped == word:
            swapped = word[:i] + word[i + 1 :]
        text = text[:start] + swapped + text[end:]
    return text


def absent_object(scene: str, rng: np.random.Generator) -> str:
    """A text about an object that is not in the scene.

    For a simulated scene, the first text of a task none of whose texts shares a content word with this one's;
    for any other, `UNKNOWN_OBJECT`.
    """
    if scene not in TASKS:
        return UNKNOWN_OBJECT
    here = content_words(scene)
    others = [task for task in BENCHMARK_TASKS if not content_words(task) & here]
    return TASKS[str(rng.choice(others))].text


def content_words(scene: str) -> set[str]:
    """Words of all texts of a task that are not `FUNCTION_WORDS`."""
    return set(' '.join(TASKS[scene].texts).split()) - FUNCTION_WORDS
