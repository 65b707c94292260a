"""`headcount bench`: what the engine does per second, against the machine's roof and against peers in the same run."""
