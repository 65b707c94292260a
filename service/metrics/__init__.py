"""What the service tells Prometheus: the catalog declares each metric once, the recorder fills them, exposition
renders them.
"""
