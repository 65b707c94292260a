import { useState } from "preact/hooks";
import type { Attention, Head, Summary } from "./attention";
import { percent } from "./format";
import { useRoving } from "./roving";

interface Measure {
  name: string;
  meaning: string;
  /** A head's value, and where it lies between 0 and 1. */
  value: (summary: Summary, link: number) => number | null;
  share: (value: number, numTokens: number) => number;
  text: (value: number) => string;
}

const asShare = (value: number) => value;
const MEASURES: [Measure, ...Measure[]] = [
  { name: "This link", meaning: "attention from the one token to the other", value: (_, link) => link, share: asShare, text: percent },
  { name: "Previous", meaning: "attention on the token before", value: ({ previous }) => previous, share: asShare, text: percent },
  { name: "First", meaning: "attention on the first token, where heads rest", value: ({ first }) => first, share: asShare, text: percent },
  {
    name: "Induction",
    meaning: "attention on what followed the same token before",
    value: ({ induction }) => induction,
    share: asShare,
    text: percent,
  },
  {
    name: "Entropy",
    meaning: "how many tokens it looks at, in bits",
    value: ({ entropy }) => entropy,
    share: (value, numTokens) => value / Math.log2(Math.max(2, numTokens)),
    text: (value) => `${value.toFixed(2)} bits`,
  },
  {
    name: "Distance",
    meaning: "how far back it looks, in tokens",
    value: ({ distance }) => distance,
    share: (value, numTokens) => (2 * value) / numTokens,
    text: (value) => `${value.toFixed(1)} tokens`,
  },
];

interface Props {
  found: Attention;
  to: number;
  selected: Head;
  onSelect: (head: Head) => void;
}

/** Every head of every layer as a cell: layers from left to right, on a narrow screen from top to bottom. */
export function HeadMap({ found, to, selected, onSelect }: Props) {
  const [measure, setMeasure] = useState(MEASURES[0]);
  const [pointed, setPointed] = useState<Head | null>(null);
  const { num_layers: numLayers, num_heads: numHeads, summaries, row, tokens } = found;
  const { group, item, onKeyDown } = useRoving(numLayers * numHeads, numHeads);
  const valueOf = ({ layer, head }: Head) => measure.value(summaries[layer]![head]!, row[layer]![head]![to] ?? 0);
  const labelOf = (each: Head) => {
    const value = valueOf(each);
    return `Layer ${each.layer}, head ${each.head}: ${value === null ? "no token comes twice" : measure.text(value)}`;
  };
  return (
    <section class="map" aria-labelledby="all-heads">
      <h2 id="all-heads">
        {numLayers} layers of {numHeads} heads
      </h2>
      <div class="measures" role="group" aria-label="Colour by">
        {MEASURES.map((each) => (
          <button key={each.name} type="button" class="choice" aria-pressed={each === measure} onClick={() => setMeasure(each)}>
            {each.name}
          </button>
        ))}
      </div>
      <p class="quiet">
        {labelOf(pointed ?? selected)} <span class="meaning">({measure.meaning})</span>
      </p>
      <div
        class="grid"
        ref={group}
        role="group"
        aria-labelledby="all-heads"
        style={{ "--heads": numHeads, "--layers": numLayers }}
        onKeyDown={onKeyDown}
        onMouseLeave={() => setPointed(null)}
      >
        {Array.from({ length: numLayers * numHeads }, (_, index) => {
          const each = { layer: Math.floor(index / numHeads), head: index % numHeads };
          const value = valueOf(each);
          const { tabIndex, onFocus } = item(index);
          return (
            <button
              key={index}
              type="button"
              class="cell"
              tabIndex={tabIndex}
              aria-label={labelOf(each)}
              aria-pressed={each.layer === selected.layer && each.head === selected.head}
              style={{ "--weight": value === null ? 0 : Math.min(1, measure.share(value, tokens.length)) }}
              onFocus={() => {
                onFocus();
                setPointed(each);
              }}
              onMouseEnter={() => setPointed(each)}
              onClick={() => onSelect(each)}
            />
          );
        })}
      </div>
      <p class="axes" aria-hidden="true">
        <span>Layer 0</span>
        <span>Layer {numLayers - 1}</span>
      </p>
    </section>
  );
}
