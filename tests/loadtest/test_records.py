"""Records survive the way through their file."""

from __future__ import annotations

import csv
from pathlib import Path

from hypothesis import HealthCheck, given, settings

from loadtest.records import DERIVED, Record, RecordWriter, read_records, write_csv
from tests.loadtest.strategies import records


@given(records(index=7))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_record_survives_its_file(tmp_path: Path, record: Record) -> None:
    """What is read is what was written, unknown values included."""
    writer = RecordWriter(tmp_path / "records.csv")
    writer.write(record)
    writer.close()

    assert read_records([tmp_path / "records.csv"]) == [record]


def test_files_are_merged_in_order(tmp_path: Path) -> None:
    """Workers' files come together by index."""
    for name, indices in (("a", (0, 3)), ("b", (1, 2))):
        writer = RecordWriter(tmp_path / name)
        for index in indices:
            writer.write(
                Record(index=index, tenant="t", conversation=index, turn=0, intended_s=0.5, planned_output_tokens=1)
            )
        writer.close()

    assert [record.index for record in read_records([tmp_path / "a", tmp_path / "b"])] == [0, 1, 2, 3]


def test_the_table_for_people_has_the_latencies(tmp_path: Path) -> None:
    """TTFT and the others are columns; unknown ones are empty."""
    record = Record(
        index=0, tenant="t", conversation=0, turn=0, intended_s=1, sent_s=1, first_s=1.5, planned_output_tokens=1
    )
    write_csv([record], tmp_path / "table.csv")

    with (tmp_path / "table.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    assert {name: row[name] for name in DERIVED} == {
        "lateness_s": "0",
        "ttft_s": "0.5",
        "ttft_from_send_s": "0.5",
        "tpot_s": "",
        "e2e_s": "",
        "e2e_from_send_s": "",
    }
