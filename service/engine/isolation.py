"""Runs steps so that a failure stays with whom it belongs to."""

from __future__ import annotations

import logging

from service.engine.batch import Batch
from service.engine.runner_protocol import Runner, SequenceResult
from service.errors import EngineError

logger = logging.getLogger(__name__)

NUM_FAILED_IN_A_ROW = 8  # requests; with nothing computed between them it is the runner that is broken, not they


class Isolation:
    """Around one runner. Used by one thread."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._failed_in_a_row: set[str] = set()

    def execute(self, batch: Batch) -> list[SequenceResult]:
        """What each sequence gets; who is at fault, an error alone. Raises EngineError where the runner fails whatever
        it is given.

        A draft may be why a sequence cannot go on, though its tokens might never have come: then there is none.
        """
        results = self._execute(batch)
        for i, (scheduled, result) in enumerate(zip(batch.scheduled, results, strict=True)):
            if result.error is not None and scheduled.draft_token_ids:
                [results[i]] = self._execute(Batch([scheduled.with_draft(())]))
        return results

    def _execute(self, batch: Batch) -> list[SequenceResult]:
        """Where the runner fails, each half is tried again. The others get the tokens that they would have got, for
        these do not depend on neighbours; the K and V of a step may be written twice."""
        scheduled = batch.scheduled
        if not scheduled:
            return []
        try:
            results = self._runner.execute(batch)
        except Exception as error:
            if batch.num_draft_tokens:
                logger.warning("a step with drafts failed, and is tried without", exc_info=True)
                return self._execute(Batch([each.with_draft(()) for each in scheduled]))
            if len(scheduled) == 1:
                logger.exception("a step failed by one sequence, of request %s", scheduled[0].sequence.request_id)
                self._failed_in_a_row.add(scheduled[0].sequence.request_id)
                if len(self._failed_in_a_row) >= NUM_FAILED_IN_A_ROW:
                    raise EngineError("The runner fails whatever it is given.") from error
                return [failure(error)]
        else:
            self._failed_in_a_row.clear()
            return results
        middle = len(scheduled) // 2
        return [*self._execute(Batch(scheduled[:middle])), *self._execute(Batch(scheduled[middle:]))]


def failure(error: Exception) -> SequenceResult:
    """What the client is told of it."""
    return SequenceResult(error=f"The engine failed while computing this request ({type(error).__name__}).")
