import { events, isAbort, messageOf } from "./api";

export interface Token {
  text: string;
  probability: number;
  others: { text: string; probability: number }[];
}

export interface Turn {
  role: "user" | "assistant";
  text: string;
  tokens: Token[];
  /** What there is to say of it when it has ended, or the error that ended it. */
  note: string;
  state: "waiting" | "running" | "done" | "failed";
}

export interface Parameters {
  system: string;
  temperature: number;
  top_p: number;
  max_tokens: number;
  seed: string;
}

interface Scored {
  token: string;
  logprob: number;
}

interface Chunk {
  choices: {
    delta: { content?: string };
    logprobs: { content: (Scored & { top_logprobs: Scored[] })[] } | null;
    finish_reason: string | null;
  }[];
}

const NUM_ALTERNATIVES = 5;
const ENDINGS: Record<string, string> = { stop: "finished", length: "cut at the most tokens allowed" };

export function turnOf(role: Turn["role"], text: string): Turn {
  return { role, text, tokens: [], note: "", state: role === "user" ? "done" : "waiting" };
}

/** The assistant's next turn as it grows, until it has ended, well or badly. */
export async function* generate(turns: Turn[], parameters: Parameters, signal: AbortSignal): AsyncGenerator<Turn> {
  const askedAt = performance.now();
  let firstAt = askedAt;
  let turn = turnOf("assistant", "");
  let ending = "";
  try {
    for await (const { choices } of events<Chunk>("v1/chat/completions", bodyOf(turns, parameters), signal)) {
      const choice = choices[0];
      if (!choice) continue;
      const tokens = (choice.logprobs?.content ?? []).map(tokenOf);
      if (tokens.length > 0 && turn.tokens.length === 0) firstAt = performance.now();
      ending = ENDINGS[choice.finish_reason ?? ""] ?? ending;
      turn = {
        ...turn,
        text: turn.text + (choice.delta.content ?? ""),
        tokens: [...turn.tokens, ...tokens],
        state: turn.tokens.length + tokens.length > 0 ? "running" : "waiting",
        note: rate(turn.tokens.length + tokens.length, firstAt - askedAt, performance.now() - firstAt),
      };
      yield turn;
    }
    yield { ...turn, state: "done", note: joined(turn.note, ending) };
  } catch (error) {
    if (isAbort(error)) yield { ...turn, state: "done", note: joined(turn.note, "stopped by you") };
    else yield { ...turn, state: "failed", note: messageOf(error) };
  }
}

function bodyOf(turns: Turn[], { system, seed, ...sampling }: Parameters): object {
  const said = turns.filter((turn) => turn.state !== "failed" && turn.text !== "");
  const messages = said.map(({ role, text }) => ({ role, content: text }));
  return {
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    ...sampling,
    ...(seed ? { seed: Number(seed) } : {}),
    stream: true,
    logprobs: true,
    top_logprobs: NUM_ALTERNATIVES,
  };
}

function tokenOf({ token, logprob, top_logprobs }: Scored & { top_logprobs: Scored[] }): Token {
  return {
    text: token,
    probability: Math.exp(logprob),
    others: top_logprobs
      .filter((other) => other.token !== token)
      .map((other) => ({ text: other.token, probability: Math.exp(other.logprob) })),
  };
}

function rate(numTokens: number, firstMs: number, restMs: number): string {
  if (numTokens === 0) return "";
  const each = numTokens > 1 && restMs > 0 ? `${(((numTokens - 1) / restMs) * 1000).toFixed(1)} tokens/s` : "";
  const count = numTokens === 1 ? "1 token" : `${numTokens} tokens`;
  return joined(count, each, `first after ${(firstMs / 1000).toFixed(2)} s`);
}

function joined(...parts: string[]): string {
  return parts.filter(Boolean).join(" · ");
}
