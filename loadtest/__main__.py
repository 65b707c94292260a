"""`python -m loadtest`."""

if __name__ == "__main__":
    # Inside the guard: a spawned worker imports this module too, and has no use for the command line.
    from loadtest.cli import main

    main()
