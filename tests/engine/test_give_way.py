"""Who has more places than another tenant would get makes room for it."""

from __future__ import annotations

from dataclasses import replace

from service.engine.scheduler import MAX_WAYS_GIVEN
from service.types import Claim, GenerateRequest
from tests.engine.fakes import HistoryRunner, engine, expected_output, output, request, run, steps


def of_tenant(name: str, asked: GenerateRequest) -> GenerateRequest:
    return replace(asked, claim=Claim(tenant=name))


class TestTenants:
    def test_a_newcomer_takes_a_place_of_who_has_all_of_them(self) -> None:
        """In the very next step; the youngest gives way, and comes back first of its own."""
        runner = HistoryRunner()
        core = engine(runner, max_num_seqs=3)
        for name in "abcd":
            core.add(request(*range(5), request_id=name, max_tokens=20))
        events = [event for _ in range(2) for event in core.step().events]
        core.add(of_tenant("quiet", request(9, request_id="q", max_tokens=2)))

        events += [event for events, _ in steps(core) for event in events]

        batches = ["".join(name for name, _, _ in batch) for batch in runner.batches]
        assert batches[1:6] == ["abc", "abq", "abq", "abc", "abc"]
        assert output(events, "q") == expected_output((9,), 2)
        assert output(events, "c") == expected_output(tuple(range(5)), 20)

    def test_equal_shares_are_left_alone(self) -> None:
        """Who has as many places as the newcomer would get keeps them."""
        core = engine(HistoryRunner(), max_num_seqs=2)
        for tenant in ("a", "b", "a", "b"):
            core.add(of_tenant(tenant, request(max_tokens=6)))

        assert sum(stats.num_preemptions for _, stats in steps(core)) == 0

    def test_a_long_prompt_gives_way_to_a_short_one_of_another(self) -> None:
        """What it has computed so far is found again."""
        runner = HistoryRunner(max_model_len=64)
        core = engine(runner, max_num_seqs=4, max_num_batched_tokens=8)
        core.add(request(1, request_id="running", max_tokens=9))
        core.add(request(*range(40), request_id="long", max_tokens=1))
        core.step()
        core.step()
        core.add(of_tenant("quiet", request(9, request_id="q", max_tokens=1)))
        core.step()
        core.step()

        assert [name for name, _, _ in runner.batches[2]] == ["running", "q", "long"]
        assert sum(num for batch in runner.batches for name, _, num in batch if name == "long") <= 7 + 7 + 6 + 7 + 4

    def test_a_higher_priority_takes_a_place_of_a_lower_one(self) -> None:
        """Even of its own tenant."""
        runner = HistoryRunner()
        core = engine(runner, max_num_seqs=1)
        core.add(request(1, request_id="low", max_tokens=5))
        core.step()
        core.add(replace(request(2, request_id="high", max_tokens=1), claim=Claim(priority=1)))

        run(core)

        assert [name for [(name, _, _)] in runner.batches] == ["low", "high", *["low"] * 4]

    def test_it_gives_way_a_few_times_and_no_more(self) -> None:
        """However many of a higher priority come, it runs on after that."""
        runner = HistoryRunner()
        core = engine(runner, max_num_seqs=1)
        core.add(request(1, request_id="low", max_tokens=20))
        for _ in range(MAX_WAYS_GIVEN + 1):
            while not runner.batches or runner.batches[-1][0][0] != "low":
                core.step()
            core.add(replace(request(2, max_tokens=1), claim=Claim(priority=1)))
            core.step()

        assert [batch[0][0] for batch in runner.batches[-2:]] == ["low", "low"]
