"""A load tester for OpenAI-compatible servers: `python -m loadtest --help`, or docs/loadtest.md.

A stranger to the server: it knows only HTTP. A request's life here:

    spec       a scenario in YAML becomes a validated, frozen `Scenario`
    schedule   the scenario becomes a seeded list of planned requests before anything is sent (arrivals, traces)
    workers    processes that each send their share of that list (runner, client, sse, transport) and spool records
    experiment scrapes the server before, during and after, then turns the records into one `RunResult`
    report     the result as a page; `compare` puts two beside each other; `sweep` searches for the highest rate
"""
