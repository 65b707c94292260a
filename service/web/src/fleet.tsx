import type { ComponentChildren } from "preact";
import type { Decision, Followed, Replica, Status } from "./follow";
import { clock, duration, percent } from "./format";
import { Timeline } from "./timeline";

const SECONDS_PER_HOUR = 3600;

export function Fleet({ fleet }: { fleet: Followed }) {
  const { status, before, decisions, changes, failure } = fleet;
  const last = decisions.at(-1);
  return (
    <div class="fleet">
      <h1>Fleet</h1>
      {failure && (
        <p class="failure" role="alert">
          {failure} Asking again …
        </p>
      )}
      {status && (
        <p class="quiet">
          Meant to give the first token within {duration(status.slo.ttft_s)} and each later one within {duration(status.slo.tpot_s)}, for
          the least money.
        </p>
      )}
      {status && <Figures status={status} last={last} />}
      {last && (
        <figure>
          <Timeline decisions={decisions} />
          <figcaption>
            <span class="key current">replicas</span>
            <span class="key desired">asked for</span>
            <span class="key need">needed for the work, bursts included</span>
          </figcaption>
        </figure>
      )}
      {status && <Replicas status={status} before={before} />}
      <h2>Decisions</h2>
      {last && (
        <p class="now">
          <time>{clock(last.at)}</time> {last.reason}
        </p>
      )}
      <Changes changes={changes} />
    </div>
  );
}

function Figures({ status, last }: { status: Status; last: Decision | undefined }) {
  const { cost, price_per_replica_hour: price, num_held } = status;
  const ready = status.replica_states.RUNNING ?? 0;
  const waiting = num_held + status.replicas.reduce((sum, { stats }) => sum + (stats?.num_waiting ?? 0), 0);
  const limits = `of ${status.min_replicas} to ${status.max_replicas}`;
  return (
    <dl class="figures">
      <Figure name="Replicas ready" value={String(ready)} note={last ? `${last.desired} asked for, ${limits}` : limits} />
      <Figure name="Requests waiting" value={String(waiting)} note={num_held > 0 ? `${num_held} for a replica` : "in all queues"} />
      <Figure name="Cost now" value={`${(ready * price).toFixed(2)} / h`} note={`${price.toFixed(2)} for a replica`} />
      <Figure
        name="Spent"
        value={((cost.replica_s / SECONDS_PER_HOUR) * price).toFixed(2)}
        note={`${((cost.saved_replica_s / SECONDS_PER_HOUR) * price).toFixed(2)} saved against ${cost.peak} always on`}
      />
    </dl>
  );
}

function Figure({ name, value, note }: { name: string; value: string; note: string }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>
        {value}
        <small>{note}</small>
      </dd>
    </div>
  );
}

function Replicas({ status, before }: { status: Status; before: Status | null }) {
  const stopping = status.replica_states.STOPPING ?? 0;
  return (
    <>
      <h2>Replicas</h2>
      {status.replicas.length === 0 && (
        <p class="quiet">
          None{status.min_replicas === 0 ? ", and nothing to pay, while nobody asks. The next request starts one." : " yet."}
        </p>
      )}
      <ul class="replicas">
        {status.replicas.map((replica) => (
          <ReplicaCard
            key={replica.replica_id}
            replica={replica}
            before={before?.replicas.find(({ replica_id }) => replica_id === replica.replica_id)}
          />
        ))}
      </ul>
      {stopping > 0 && <p class="quiet">{stopping} more finishing what they have.</p>}
    </>
  );
}

function ReplicaCard({ replica, before }: { replica: Replica; before: Replica | undefined }) {
  const { stats } = replica;
  return (
    <li class={replica.state}>
      <h3>
        <span class="dot" aria-hidden="true" /> {stats ? replica.replica_id.split("#").at(-1) : "New"} <small>{replica.state}</small>
      </h3>
      {stats ? (
        <dl>
          <Row name="Running">{stats.num_running}</Row>
          <Row name="Waiting">{stats.num_waiting}</Row>
          <Row name="KV cache">
            <meter min={0} max={1} value={stats.kv_usage} aria-label="KV cache in use" /> {percent(stats.kv_usage)}
          </Row>
          <Row name="Step">{stepTime(replica, before)}</Row>
          <Row name="Too late">
            {stats.num_slo_misses} of {stats.num_finished} requests
          </Row>
        </dl>
      ) : (
        <p class="quiet">{replica.state === "starting" ? `for ${duration(Date.now() / 1000 - replica.since)}` : "no report yet"}</p>
      )}
    </li>
  );
}

function Row({ name, children }: { name: string; children: ComponentChildren }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{children}</dd>
    </div>
  );
}

/** How long a step has lately taken: about what each token of a stream waits for. */
function stepTime({ stats }: Replica, before: Replica | undefined): string {
  if (!stats || !before?.stats) return "–";
  const numSteps = stats.steps.num_steps - before.stats.steps.num_steps;
  return numSteps > 0 ? duration((stats.steps.duration_s - before.stats.steps.duration_s) / numSteps) : "idle";
}

function Changes({ changes }: { changes: Decision[] }) {
  if (changes.length === 0) return <p class="quiet">The number of replicas has not changed yet.</p>;
  return (
    <ol class="changes" aria-label="Decisions that changed the fleet" aria-live="polite">
      {changes.toReversed().map((decision) => (
        <li key={decision.number} class={decision.desired > decision.current ? "up" : "down"}>
          <time dateTime={new Date(decision.at * 1000).toISOString()}>{clock(decision.at)}</time>
          <span>{decision.reason}</span>
        </li>
      ))}
    </ol>
  );
}
