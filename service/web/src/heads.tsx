import { useEffect, useRef, useState } from "preact/hooks";
import { isAbort, messageOf } from "./api";
import { lookFrom, rowsOf, strongest, tokensOf, type Attention, type Head } from "./attention";
import { percent, shown } from "./format";
import { HeadMap } from "./head_map";
import { Sentence } from "./sentence";

const EXAMPLE = { text: "The cat sat on the mat because it was tired.", from: " it", to: " cat" };

/** What is looked at: a text, one of its tokens and one that comes before it, and how all heads look from the one. */
interface View {
  text: string;
  from: number;
  to: number;
  found: Attention;
}

/** `numReady` replicas are there, undefined while that is not known: a fleet of none is not woken without being asked. */
export function Heads({ isShown, numReady }: { isShown: boolean; numReady: number | undefined }) {
  const [text, setText] = useState(EXAMPLE.text);
  const [view, setView] = useState<View | null>(null);
  const [head, setHead] = useState<Head | null>(null);
  const [rows, setRows] = useState<number[][]>([]);
  const [state, setState] = useState<{ isBusy: boolean; failure: string }>({ isBusy: false, failure: "" });
  const running = useRef<AbortController | null>(null);

  /** One question at a time: the latest. */
  async function look(work: (signal: AbortSignal) => Promise<void>): Promise<void> {
    running.current?.abort();
    const own = (running.current = new AbortController());
    setState({ isBusy: true, failure: "" });
    try {
      await work(own.signal);
      setState({ isBusy: false, failure: "" });
    } catch (error) {
      if (!isAbort(error)) setState({ isBusy: false, failure: messageOf(error) });
    }
  }

  async function showHead(view: View, next: Head, signal: AbortSignal): Promise<void> {
    const nextRows = await rowsOf(view.text, next, signal);
    setView(view);
    setHead(next);
    setRows(nextRows);
  }

  const begin = () =>
    look(async (signal) => {
      const tokens = await tokensOf(text, signal);
      const isExample = text === EXAMPLE.text && tokens.includes(EXAMPLE.from) && tokens.includes(EXAMPLE.to);
      const from = isExample ? tokens.indexOf(EXAMPLE.from) : tokens.length - 1;
      const found = await lookFrom(text, from, signal);
      const to = isExample ? tokens.indexOf(EXAMPLE.to) : firstChoice(found);
      await showHead({ text, from, to, found }, strongest(found.row, to), signal);
    });
  const chooseFrom = (view: View, from: number) =>
    look(async (signal) => {
      const found = await lookFrom(view.text, from, signal);
      const to = firstChoice(found);
      await showHead({ ...view, from, to, found }, strongest(found.row, to), signal);
    });
  const chooseHead = (view: View, next: Head) => look((signal) => showHead(view, next, signal));

  useEffect(() => {
    if (isShown && numReady && !view && !state.isBusy && !state.failure) void begin();
  }, [isShown, numReady]);

  return (
    <div class="heads" aria-busy={state.isBusy}>
      <h1>Heads</h1>
      <p class="quiet">
        How each head of the model looks back over a text. Point at a token to see where the chosen head looks from it; choose it to
        see where all heads do.
      </p>
      <form
        class="line"
        onSubmit={(event) => {
          event.preventDefault();
          void begin();
        }}
      >
        <input aria-label="A sentence" maxLength={1000} value={text} onInput={(event) => setText(event.currentTarget.value)} />
        <button class="primary" type="submit" disabled={!text.trim()}>
          Look
        </button>
      </form>
      {numReady === 0 && !view && <p class="quiet">No replica is running: looking starts one.</p>}
      {state.failure && (
        <p class="failure" role="alert">
          {state.failure}
        </p>
      )}
      {view && head && (
        <>
          <Reading view={view} head={head} rows={rows} />
          <Sentence
            tokens={view.found.tokens.map((token) => token.text)}
            rows={rows}
            from={view.from}
            to={view.to}
            onFrom={(position) => void chooseFrom(view, position)}
          />
          <div class="columns">
            <HeadMap found={view.found} to={view.to} selected={head} onSelect={(next) => void chooseHead(view, next)} />
            <Links view={view} onSelect={(next, to) => void chooseHead({ ...view, to }, next)} />
          </div>
        </>
      )}
    </div>
  );
}

function firstChoice({ links }: Attention): number {
  return links[0]?.position ?? 0;
}

/** What is to be seen, in words. */
function Reading({ view, head, rows }: { view: View; head: Head; rows: number[][] }) {
  const token = (position: number) => shown(view.found.tokens[position]!.text.trim());
  return (
    <p class="reading" aria-live="polite">
      Layer {head.layer}, head {head.head} gives <strong>{percent(rows[view.from]?.[view.to] ?? 0)}</strong> of its attention from{" "}
      <q>{token(view.from)}</q> to <q>{token(view.to)}</q>.
    </p>
  );
}

function Links({ view, onSelect }: { view: View; onSelect: (head: Head, to: number) => void }) {
  const { links, tokens } = view.found;
  const from = shown(tokens[view.from]!.text.trim());
  return (
    <section class="links" aria-label="Strongest links">
      <h2>
        Where <q>{from}</q> looks
      </h2>
      {links.length === 0 && <p class="quiet">Nothing stands between it and the first token.</p>}
      <ol>
        {links.map(({ layer, head, position, weight }) => (
          <li key={`${layer}/${head}/${position}`}>
            <button type="button" class="link" onClick={() => onSelect({ layer, head }, position)}>
              <q>{shown(tokens[position]!.text.trim())}</q> {percent(weight)}{" "}
              <small>
                layer {layer}, head {head}
              </small>
            </button>
          </li>
        ))}
      </ol>
      <p class="quiet">The first token is left out: heads rest there when they have nothing to say.</p>
    </section>
  );
}
