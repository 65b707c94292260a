"""Ray Serve: the only package that imports ray. `environment` comes before the first import of ray."""
