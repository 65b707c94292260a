import { authorization, refuse } from "./key";

/** Everything is asked relative to the page, so that the service may stand behind a path prefix. */
async function ask(path: string, body?: object, signal?: AbortSignal): Promise<Response> {
  const headers = authorization();
  const init: RequestInit =
    body === undefined
      ? { headers }
      : { method: "POST", headers: { ...headers, "content-type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(new URL(path, document.baseURI), { ...init, signal: signal ?? null });
  if (response.ok) return response;
  const message = await complaint(response);
  if (response.status === 401) refuse(message);
  throw new Error(message);
}

/** What the service says is wrong, or what whoever stands before it says. */
async function complaint(response: Response): Promise<string> {
  const text = await response.text();
  try {
    return JSON.parse(text).error.message;
  } catch {
    return `The server answered ${response.status} ${response.statusText}`.trim() + ".";
  }
}

export async function json<T>(path: string, body?: object, signal?: AbortSignal): Promise<T> {
  return (await (await ask(path, body, signal)).json()) as T;
}

/** The data of each server-sent event, as it comes; the `[DONE]` that ends a generation is the end. */
export async function* events<T>(path: string, body?: object, signal?: AbortSignal): AsyncGenerator<T> {
  const response = await ask(path, body, signal);
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  while (true) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop() ?? "";
    for (const block of blocks) {
      if (!block.startsWith("data: ")) continue; // a comment that keeps the line up
      const data = block.slice("data: ".length);
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event as T;
    }
  }
}

export function messageOf(error: unknown): string {
  if (error instanceof TypeError) return "The server cannot be reached.";
  return error instanceof Error ? error.message : String(error);
}

export function isAbort(error: unknown): boolean {
  return error instanceof DOMException && error.name === "AbortError";
}
