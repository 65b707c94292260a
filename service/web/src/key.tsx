import { useEffect, useState } from "preact/hooks";

const NAME = "headcount.key";
const changes = new EventTarget();
/** Why the service wants a key, or another one; empty while it does not. */
let refusal = "";

/** The header that says who asks. The key stays in this tab, and is forgotten with it. */
export function authorization(): Record<string, string> {
  const key = sessionStorage.getItem(NAME);
  return key === null ? {} : { authorization: `Bearer ${key}` };
}

/** The service has refused: ask for a key. */
export function refuse(message: string): void {
  refusal = message;
  changes.dispatchEvent(new Event("change"));
}

/** Resolves once there is a point in asking: at once, or when another key has been given. */
export async function admitted(): Promise<void> {
  while (refusal) await new Promise((resolve) => changes.addEventListener("change", resolve, { once: true }));
}

function give(key: string): void {
  sessionStorage.setItem(NAME, key);
  refuse("");
}

/** There is nothing to see of it unless the service has refused. */
export function KeyForm() {
  const [shown, setShown] = useState(refusal);
  const [key, setKey] = useState("");
  useEffect(() => {
    const follow = () => setShown(refusal);
    follow();
    changes.addEventListener("change", follow);
    return () => changes.removeEventListener("change", follow);
  }, []);
  if (!shown) return null;
  const submit = (event: Event) => {
    event.preventDefault();
    give(key.trim());
    setKey("");
  };
  return (
    <form class="key-form" onSubmit={submit}>
      <p class="quiet" role="alert">
        {shown}
      </p>
      <label>
        API key
        <input type="password" autocomplete="off" value={key} onInput={(event) => setKey(event.currentTarget.value)} />
      </label>
      <button type="submit" class="primary" disabled={!key.trim()}>
        Use it
      </button>
    </form>
  );
}
