"""The line between the policy in Serve's controller and the brain in an actor of its own."""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from service.errors import UnavailableError
from service.fleet.brain import Brain
from service.fleet.observation import Answer, Observation

logger = logging.getLogger("ray.serve")

ACTOR_NAME = "headcount-brain"
NAMESPACE = "serve"
ANSWER_TIMEOUT_S = 10.0
ASK_TIMEOUT_S = 5.0


class BrainLink:
    """Hands the brain the latest observation and keeps its last answer, on a thread of its own.

    The brain lives as long as its link: Ray ends an actor that nobody holds. It is started again when it has died.
    """

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.answer: Answer | None = None
        self._box = _Mailbox()
        # The thread holds the box and a weak reference: it must not keep its own link alive.
        weakref.finalize(self, self._box.close)
        thread = threading.Thread(
            target=_talk, args=(weakref.ref(self), self._box, dict(variables)), name="brain-link", daemon=True
        )
        thread.start()

    def tell(self, observation: Observation) -> None:
        self._box.put(observation)


def find_brain() -> Any:
    """The actor's handle. Raises ValueError while there is none."""
    return ray.get_actor(ACTOR_NAME, namespace=NAMESPACE)


async def ask_brain(method: str, *arguments: object) -> Any:
    """The answer of one of its methods. Raises UnavailableError while it has none."""
    try:
        brain = await asyncio.to_thread(find_brain)
        return await asyncio.wait_for(getattr(brain, method).remote(*arguments), ASK_TIMEOUT_S)
    except (ValueError, RayError, TimeoutError):
        raise UnavailableError("The autoscaler does not answer at the moment. Please retry later.") from None


def _talk(link: weakref.ref[BrainLink], box: _Mailbox, variables: dict[str, str]) -> None:
    brain: Any = None
    while (observation := box.take()) is not None:
        try:
            brain = brain or _start(variables)
            answer = ray.get(brain.observe.remote(observation), timeout=ANSWER_TIMEOUT_S)
        except Exception:
            logger.exception("the autoscaler's brain does not answer; it is looked for again")
            brain = None
            continue
        holder = link()
        if holder is None:
            return
        holder.answer = answer


def _start(variables: dict[str, str]) -> Any:
    """The brain, on this node: what it has learned is on this node's disk. One that is there already, from before a
    change of settings, takes the new ones."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    brain: Any = (
        ray.remote(Brain)
        .options(
            name=ACTOR_NAME,
            namespace=NAMESPACE,
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            scheduling_strategy=here,
        )
        .remote(variables)
    )
    brain.configure.remote(variables)
    return brain


class _Mailbox:
    """The latest of what was put in, for one reader on another thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._content: Observation | None = None
        self._is_closed = False

    def put(self, content: Observation) -> None:
        with self._changed:
            self._content = content
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def take(self) -> Observation | None:
        """Wait for something new; None once it is closed."""
        with self._changed:
            while self._content is None and not self._is_closed:
                self._changed.wait()
            content, self._content = self._content, None
            return None if self._is_closed else content
