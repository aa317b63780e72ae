"""An answer whose first steps are guided, word by word, and whose last is searched for with beams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from transllm.generation.engine import Generated, Sampling

Generate = Callable[[Sequence[Sequence[int]], Sampling], Sequence[Generated]]


def search_last_step(generate: Generate, prompts: Sequence[Sequence[int]], sampling: Sampling, *, opens: int, end_id: int,
                     beams: int) -> list[Generated]:
    """Continue prompts under the guide of ``sampling``, and search for what is said after the marker that opens the last step.

    A marker after it ends it, where the guide would have written an end.

    Args:
        generate: gives answers to prompts, in their order.
        opens: the marker. An answer without it stays as it was guided.
        end_id: what is written where a marker is not to be.
        beams: 1 is guided to the end.
    """
    if beams == 1:
        return list(generate(prompts, sampling))
    found = list(generate(prompts, replace(sampling, stop_ids=sampling.stop_ids | {opens})))
    room = sampling.max_new_tokens - max((len(one.ids) for one in found), default=0)
    opened = [place for place, one in enumerate(found) if one.ids[-1] == opens and room > 0]
    if not opened:
        return found
    searched = replace(sampling, max_new_tokens=room, guide=None, beams=beams, stop_ids=sampling.stop_ids | sampling.fresh_ids)
    for place, said in zip(opened, generate([[*prompts[place], *found[place].ids] for place in opened], searched), strict=True):
        steps, ids, overruled = found[place], said.ids, dict(found[place].overruled)
        if ids[-1] in sampling.fresh_ids:
            overruled[len(steps.ids) + len(ids) - 1] = ids[-1]
            ids = [*ids[:-1], end_id]
        found[place] = Generated(steps.index, [*steps.ids, *ids], said.finish, overruled)
    return found
