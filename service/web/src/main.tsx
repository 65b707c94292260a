import { render } from "preact";
import { useEffect, useState } from "preact/hooks";
import { Chat } from "./chat";
import { Fleet } from "./fleet";
import { useFleet } from "./follow";
import { Heads } from "./heads";
import { KeyForm } from "./key";

const VIEWS = ["Chat", "Fleet", "Heads"] as const;
type View = (typeof VIEWS)[number];

function viewOf(hash: string): View {
  return VIEWS.find((view) => hash === `#${view.toLowerCase()}`) ?? "Chat";
}

function Page() {
  const [view, setView] = useState(viewOf(location.hash));
  const fleet = useFleet();
  useEffect(() => {
    const follow = () => setView(viewOf(location.hash));
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);
  useEffect(() => {
    document.title = `${view} · Headcount`;
  }, [view]);
  return (
    <>
      <header>
        <span class="name">Headcount</span>
        <nav aria-label="Views">
          {VIEWS.map((each) => (
            <a key={each} href={`#${each.toLowerCase()}`} aria-current={each === view ? "page" : undefined}>
              {each}
            </a>
          ))}
        </nav>
        <span class="model" title="The model that is served">
          {fleet.status?.model}
        </span>
        <a class="docs" href="docs">
          API
        </a>
      </header>
      <KeyForm />
      <main>
        {/* All three stay: what was said or looked at is there when one comes back. */}
        <section hidden={view !== "Chat"} aria-label="Chat">
          <Chat />
        </section>
        <section hidden={view !== "Fleet"} aria-label="Fleet">
          <Fleet fleet={fleet} />
        </section>
        <section hidden={view !== "Heads"} aria-label="Heads">
          <Heads isShown={view === "Heads"} numReady={fleet.status ? (fleet.status.replica_states.RUNNING ?? 0) : undefined} />
        </section>
      </main>
    </>
  );
}

render(<Page />, document.body);
