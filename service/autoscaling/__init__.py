"""How many replicas there should be: a pure law, and a simulator that runs it against any demand.

Read in this order: `signals` (what the law is told), `policy` (the law), then its parts: `ledger` (what happened since
the last snapshot), `cost_model` (what a step costs and a replica carries), `forecast` (what the demand needs),
`backlog` (what a queue deserves), `holds` (what idle replicas are worth), `reason` (a decision in words), `memory`
(kept over restarts). `simulator` plays traces. Standard library and numpy: no Ray, torch, HTTP or Prometheus.
"""
