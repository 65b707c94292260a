"""Other engines on the same weights, each in an environment and a process of its own.

    python -m service.bench.peers

`worker` and the files named for a peer run in that peer's environment: they import nothing of ours but each other.
"""
