"""The contenders of this environment: `headcount` by its settings (HEADCOUNT_*), or `transformers` with a model."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from service.bench.contender import Contender, serve
from service.bench.contenders import Headcount, Transformers
from service.bench.subject import load_subject
from service.config import load_settings


def headcount() -> Contender:
    return Headcount(load_subject(load_settings(flags={}, environment=os.environ).settings).engine.core)


if __name__ == "__main__":
    serve(headcount if sys.argv[1] == "headcount" else lambda: Transformers(Path(sys.argv[2]), torch.bfloat16))
