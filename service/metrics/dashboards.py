"""Write the Grafana dashboards: `python -m service.metrics.dashboards deploy/grafana/dashboards`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from service.metrics.grafana.boards import dashboards


def texts() -> dict[str, str]:
    """Each dashboard's file name and content."""
    return {
        f"{board.name}.json": json.dumps(board.to_json(), indent=2, ensure_ascii=False) + "\n" for board in dashboards()
    }


def main(folder: Path) -> None:
    for name, text in texts().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
