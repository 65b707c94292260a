import { json } from "./api";

export interface Summary {
  entropy: number;
  distance: number;
  previous: number | null;
  first: number | null;
  induction: number | null;
}

export interface Link {
  layer: number;
  head: number;
  position: number;
  weight: number;
}

export interface Attention {
  num_layers: number;
  num_heads: number;
  tokens: { id: number; text: string }[];
  summaries: Summary[][];
  weights: { layer: number; head: number; rows: number[][] }[];
  links: Link[];
  row: number[][][];
}

export interface Head {
  layer: number;
  head: number;
}

const PATH = "v1/attention";
const NUM_LINKS = 8;

/** The tokens of a text. */
export async function tokensOf(prompt: string, signal: AbortSignal): Promise<string[]> {
  return (await json<Attention>(PATH, { prompt }, signal)).tokens.map(({ text }) => text);
}

/** How every head looks back from one token. */
export function lookFrom(prompt: string, position: number, signal: AbortSignal): Promise<Attention> {
  return json<Attention>(PATH, { prompt, position, num_links: NUM_LINKS, all_heads: true }, signal);
}

/** How one head looks back from every token: row i on tokens 0 to i. */
export async function rowsOf(prompt: string, { layer, head }: Head, signal: AbortSignal): Promise<number[][]> {
  const found = await json<Attention>(PATH, { prompt, layers: [layer], heads: [head] }, signal);
  return found.weights[0]!.rows;
}

/** The head that looks hardest from the row's token to `position`. */
export function strongest(row: number[][][], position: number): Head {
  let best = { layer: 0, head: 0 };
  let most = -1;
  row.forEach((heads, layer) =>
    heads.forEach((weights, head) => {
      if (weights[position]! > most) [best, most] = [{ layer, head }, weights[position]!];
    }),
  );
  return best;
}
