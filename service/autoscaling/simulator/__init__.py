"""A fleet in virtual time, under the law or its rivals.

Read in this order: `workload`, `replica` (one engine), `fleet` (routing, starts, drains, faults), `measures`; then the
controllers (`headcount`, `baselines`, by name in `policies`), the demand (`trace_files`, `made_traces`), and what comes
out (`html`, `regret`).
"""
