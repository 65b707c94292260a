import { useLayoutEffect, useState } from "preact/hooks";
import { percent, shown } from "./format";
import { useRoving } from "./roving";

interface Props {
  tokens: string[];
  /** Row i: the weights of token i on tokens 0 to i, in the head that is looked at. */
  rows: number[][];
  from: number;
  to: number;
  onFrom: (position: number) => void;
}

interface Point {
  x: number;
  y: number;
}

const FAINTEST = 0.02;

/** The tokens, and the lines from one of them to those it looks at: the one that is pointed at, else the chosen one. */
export function Sentence({ tokens, rows, from, to, onFrom }: Props) {
  const [pointed, setPointed] = useState<number | null>(null);
  const { group, item, onKeyDown } = useRoving(tokens.length);
  const points = usePoints(group, tokens);
  const source = pointed ?? from;
  const row = rows[source] ?? [];
  return (
    <div class="sentence" onMouseLeave={() => setPointed(null)}>
      <svg aria-hidden="true">
        {row.map((weight, position) => {
          const [start, end] = [points[source], points[position]];
          if (!start || !end || position === source || weight < FAINTEST) return null;
          return <path key={position} d={arc(start, end)} stroke-width={1 + 3 * weight} stroke-opacity={0.15 + 0.85 * weight} />;
        })}
      </svg>
      <div class="words" role="group" aria-label="Tokens" ref={group} onKeyDown={onKeyDown}>
        {tokens.map((text, position) => {
          const { tabIndex, onFocus } = item(position);
          const weight = row[position] ?? 0;
          const isEarlier = position < source;
          return (
            <button
              key={position}
              type="button"
              class={["word", position === source && "source", position === to && "target"].filter(Boolean).join(" ")}
              style={{ "--weight": isEarlier ? weight : 0 }}
              tabIndex={tabIndex}
              aria-label={`${shown(text.trim()) || "space"}${isEarlier ? `, ${percent(weight)}` : ""}`}
              aria-pressed={position === from}
              onFocus={() => {
                onFocus();
                setPointed(position);
              }}
              onBlur={() => setPointed(null)}
              onMouseEnter={() => setPointed(position)}
              onClick={() => onFrom(position)}
            >
              {shown(text.replace(/^ /, "")) || "␣"}
            </button>
          );
        })}
      </div>
    </div>
  );
}

/** An arc over the tokens of a line, the higher the farther; from line to line a curve. */
function arc(start: Point, end: Point): string {
  const height = Math.min(64, 14 + Math.abs(start.x - end.x) * 0.22);
  const top = Math.min(start.y, end.y) - height;
  return `M${start.x},${start.y}C${start.x},${top} ${end.x},${top} ${end.x},${end.y}`;
}

/** The top of each button of the group, kept up to date as the lines break anew. */
function usePoints(group: { current: HTMLElement | null }, tokens: string[]): Point[] {
  const [points, setPoints] = useState<Point[]>([]);
  useLayoutEffect(() => {
    const element = group.current!;
    const measure = () =>
      setPoints(
        [...element.querySelectorAll<HTMLElement>("button")].map((button) => ({
          x: button.offsetLeft + button.offsetWidth / 2,
          y: button.offsetTop,
        })),
      );
    const observer = new ResizeObserver(measure);
    observer.observe(element);
    measure();
    return () => observer.disconnect();
  }, [tokens.join("\0")]);
  return points;
}
