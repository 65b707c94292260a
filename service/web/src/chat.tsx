import { useEffect, useRef, useState } from "preact/hooks";
import { generate, turnOf, type Parameters, type Turn } from "./generation";
import { Markdown } from "./markdown";
import { Probabilities } from "./probabilities";

const EXAMPLES = ["What is attention in a language model?", "Write a haiku about a queue.", "List three uses of a paperclip."];
const PARAMETERS: Parameters = { system: "", temperature: 0.7, top_p: 0.95, max_tokens: 400, seed: "" };

export function Chat() {
  const [turns, setTurns] = useState<Turn[]>([]);
  const [draft, setDraft] = useState("");
  const [parameters, setParameters] = useState(PARAMETERS);
  const running = useRef<AbortController | null>(null);
  const box = useRef<HTMLTextAreaElement>(null);
  const isRunning = turns.some((turn) => turn.state === "waiting" || turn.state === "running");

  async function send(text: string): Promise<void> {
    if (!text.trim() || running.current) return;
    const before = [...turns, turnOf("user", text.trim())];
    setDraft("");
    setTurns([...before, turnOf("assistant", "")]);
    running.current = new AbortController();
    for await (const turn of generate(before, parameters, running.current.signal)) setTurns([...before, turn]);
    running.current = null;
    box.current?.focus();
  }

  function onKeyDown(event: KeyboardEvent): void {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      void send(draft);
    }
  }

  return (
    <div class="chat">
      <h1 class="visually-hidden">Chat</h1>
      {turns.length === 0 ? <Opening onPick={(text) => void send(text)} /> : <Turns turns={turns} />}
      <form
        class="composer"
        onSubmit={(event) => {
          event.preventDefault();
          void send(draft);
        }}
      >
        <textarea
          ref={box}
          rows={2}
          aria-label="Your message"
          placeholder="Say something. Enter sends, Shift + Enter breaks the line."
          value={draft}
          onInput={(event) => setDraft(event.currentTarget.value)}
          onKeyDown={onKeyDown}
        />
        <div class="actions">
          {isRunning ? (
            <button type="button" class="primary" onClick={() => running.current?.abort()}>
              Stop
            </button>
          ) : (
            <button type="submit" class="primary" disabled={!draft.trim()}>
              Send
            </button>
          )}
          {turns.length > 0 && !isRunning && (
            <button type="button" onClick={() => setTurns([])}>
              New
            </button>
          )}
        </div>
        <ParameterFields parameters={parameters} onChange={setParameters} />
      </form>
    </div>
  );
}

function Opening({ onPick }: { onPick: (text: string) => void }) {
  return (
    <div class="opening">
      <p class="lead">Ask the model something.</p>
      <p>Every token it says comes with its probability, and with what it might have said instead.</p>
      <ul class="examples">
        {EXAMPLES.map((text) => (
          <li key={text}>
            <button type="button" onClick={() => onPick(text)}>
              {text}
            </button>
          </li>
        ))}
      </ul>
    </div>
  );
}

function Turns({ turns }: { turns: Turn[] }) {
  const end = useRef<HTMLDivElement>(null);
  const last = turns.at(-1);
  useEffect(() => {
    const isNearEnd = document.body.scrollHeight - scrollY - innerHeight < 200;
    if (isNearEnd || last?.state === "waiting") end.current?.scrollIntoView({ block: "end" });
  }, [turns.length, last?.text]);
  return (
    <div class="turns" role="log" aria-label="Conversation">
      {turns.map((turn, index) => (turn.role === "user" ? <p key={index} class="said">{turn.text}</p> : <Answer key={index} turn={turn} />))}
      <div ref={end} class="end" />
    </div>
  );
}

function Answer({ turn }: { turn: Turn }) {
  const [asTokens, setAsTokens] = useState(false);
  return (
    <article class={`answer ${turn.state}`} aria-busy={turn.state === "running"}>
      {asTokens ? <Probabilities tokens={turn.tokens} /> : <Markdown text={turn.text} />}
      {turn.state === "waiting" && <p class="quiet">Waiting for the first token …</p>}
      <footer>
        <span class={turn.state === "failed" ? "failure" : "quiet"} role={turn.state === "failed" ? "alert" : undefined}>
          {turn.note}
        </span>
        {turn.tokens.length > 0 && (
          <button type="button" class="link" aria-pressed={asTokens} onClick={() => setAsTokens(!asTokens)}>
            Token probabilities
          </button>
        )}
      </footer>
    </article>
  );
}

interface Field {
  name: "temperature" | "top_p" | "max_tokens" | "seed";
  label: string;
  min?: number;
  max?: number;
  step: number;
}

const FIELDS: Field[] = [
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.1 },
  { name: "top_p", label: "Top p", min: 0.05, max: 1, step: 0.05 },
  { name: "max_tokens", label: "Most tokens", min: 1, max: 100000, step: 1 },
  { name: "seed", label: "Seed", step: 1 },
];

/** What is being typed stands until the field is left, whatever else on the page changes; what makes sense of it counts. */
function NumberField({ field, value, onChange }: { field: Field; value: number | string; onChange: (next: number | string) => void }) {
  const [draft, setDraft] = useState<string | null>(null);
  const { name, label, ...limits } = field;
  return (
    <label>
      {label}
      <input
        type="number"
        {...limits}
        placeholder={name === "seed" ? "any" : undefined}
        value={draft ?? value}
        onInput={({ currentTarget }) => {
          setDraft(currentTarget.value);
          if (name === "seed") onChange(currentTarget.value);
          else if (currentTarget.validity.valid && currentTarget.value) onChange(currentTarget.valueAsNumber);
        }}
        onBlur={() => setDraft(null)}
      />
    </label>
  );
}

function ParameterFields({ parameters, onChange }: { parameters: Parameters; onChange: (next: Parameters) => void }) {
  return (
    <details class="parameters">
      <summary>Parameters</summary>
      <div class="fields">
        {FIELDS.map((field) => (
          <NumberField
            key={field.name}
            field={field}
            value={parameters[field.name]}
            onChange={(value) => onChange({ ...parameters, [field.name]: value })}
          />
        ))}
        <label class="wide">
          System message
          <textarea
            rows={2}
            value={parameters.system}
            onInput={(event) => onChange({ ...parameters, system: event.currentTarget.value })}
          />
        </label>
      </div>
    </details>
  );
}
