"""Write the configuration that Serve would give HAProxy, by Serve's own template and the variables in the environment.

    python -m tests.fleet.render_haproxy PORT REPLICA_PORT…

A process of its own: Ray reads its variables once, when it is imported.
"""

from __future__ import annotations

import sys

from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions

if __name__ == "__main__":
    port, *replicas = map(int, sys.argv[1:])
    servers = [ServerConfig(name=f"replica-{each}", host="127.0.0.1", port=each) for each in replicas]
    backend = BackendConfig(name="headcount", path_prefix="/", app_name="headcount", servers=servers)
    config = HAProxyConfig(http_options=HTTPOptions(host="127.0.0.1", port=port), is_head=True)
    HAProxyApi(config, {backend.name: backend})._generate_config_file_internal()
