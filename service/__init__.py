"""Headcount: an autoscaling LLM inference service. `headcount serve` starts it; see README.md."""

__version__ = "0.1.0"
