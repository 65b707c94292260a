"""The engine that a benchmark measures, and what its model must at least do for a token."""

from __future__ import annotations

from dataclasses import dataclass

from service.assembly import Engine, load_engine
from service.config import Settings
from service.engine.runner import ModelRunner
from service.errors import ConfigError
from service.model.transformer import Transformer


@dataclass(frozen=True, slots=True)
class Subject:
    """`engine` runs `model`."""

    engine: Engine
    model: Transformer

    @property
    def weight_bytes(self) -> int:
        """What a step reads of the linear layers, the output layer among them."""
        return sum(linear.num_bytes for linear in self.model.linears)

    @property
    def flops_per_token(self) -> int:
        """Multiplications and additions of the matrix products."""
        return 2 * sum(linear.num_weights for linear in self.model.linears)


PATIENCE_S = 3600.0


def load_subject(settings: Settings) -> Subject:
    """Without prefix cache and speculation, so that every step computes what it is asked, and nothing of it is given up
    because it waits. Raises ConfigError.
    """
    if settings.runner != "model":
        raise ConfigError("bench measures the real model: the synthetic runner costs what it is told to.")
    changes = {"prefix_caching": False, "speculation": "off", "queue_timeout_s": PATIENCE_S}
    engine = load_engine(settings.model_copy(update=changes))
    if not isinstance(engine.model.runner, ModelRunner):
        raise ConfigError("bench measures generation: this model only gives embeddings.")
    return Subject(engine, engine.model.runner.model)
