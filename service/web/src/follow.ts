import { useEffect, useState } from "preact/hooks";
import { events, json, messageOf } from "./api";
import { admitted } from "./key";

export interface Stats {
  num_running: number;
  num_waiting: number;
  kv_usage: number;
  num_finished: number;
  num_slo_misses: number;
  steps: { num_steps: number; num_sequences: number; duration_s: number };
}

export interface Replica {
  replica_id: string;
  state: "starting" | "ready" | "draining";
  since: number;
  stats: Stats | null;
}

export interface Status {
  model: string;
  min_replicas: number;
  max_replicas: number;
  slo: { ttft_s: number; tpot_s: number };
  price_per_replica_hour: number;
  replica_states: Record<string, number>;
  replicas: Replica[];
  num_held: number;
  cost: { watched_s: number; replica_s: number; saved_replica_s: number; peak: number };
}

export interface Decision {
  number: number;
  at: number;
  current: number;
  desired: number;
  reason: string;
  source: "brain" | "serve";
  terms: Record<string, number | null>;
}

export interface Followed {
  status: Status | null;
  /** The status a moment ago, for what happened in between. */
  before: Status | null;
  /** The last quarter of an hour, oldest first. */
  decisions: Decision[];
  /** Those that asked for another number of replicas, as far back as the service remembers. */
  changes: Decision[];
  failure: string;
}

const PERIOD_MS = 1000;
const NUM_DECISIONS = 900;
const NUM_CHANGES = 50;

/** The fleet, live. A service that is away is asked again and again. */
export function useFleet(): Followed {
  const [followed, setFollowed] = useState<Followed>({ status: null, before: null, decisions: [], changes: [], failure: "" });
  useEffect(() => {
    const stop = new AbortController();
    void repeat(stop.signal, setFollowed, async () => {
      const status = await json<Status>("fleet", undefined, stop.signal);
      setFollowed((last) => ({ ...last, status, before: last.status, failure: "" }));
    });
    let since = 0;
    void repeat(stop.signal, setFollowed, async () => {
      const { decisions: changes } = await json<{ decisions: Decision[] }>(`fleet/decisions?changes=true&limit=${NUM_CHANGES}`);
      setFollowed((last) => ({ ...last, changes: merged(last.changes, changes, NUM_CHANGES) }));
      const path = `fleet/decisions?stream=true&since=${since}&limit=${NUM_DECISIONS}`;
      for await (const decision of events<Decision>(path, undefined, stop.signal)) {
        since = decision.number;
        setFollowed((last) => ({
          ...last,
          decisions: merged(last.decisions, [decision], NUM_DECISIONS),
          changes: decision.desired === decision.current ? last.changes : merged(last.changes, [decision], NUM_CHANGES),
        }));
      }
    });
    return () => stop.abort();
  }, []);
  return followed;
}

async function repeat(
  signal: AbortSignal,
  set: (change: (last: Followed) => Followed) => void,
  work: () => Promise<void>,
): Promise<void> {
  while (!signal.aborted) {
    try {
      await admitted();
      await work();
    } catch (error) {
      if (!signal.aborted) set((last) => ({ ...last, failure: messageOf(error) }));
    }
    await new Promise((resolve) => setTimeout(resolve, PERIOD_MS));
  }
}

function merged(known: Decision[], found: Decision[], most: number): Decision[] {
  const last = known.at(-1)?.number ?? 0;
  return [...known, ...found.filter(({ number }) => number > last)].slice(-most);
}
