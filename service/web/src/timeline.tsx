import { useLayoutEffect, useRef, useState } from "preact/hooks";
import type { Decision } from "./follow";
import { clock } from "./format";

const HEIGHT = 150;
const MARGIN = { top: 10, right: 8, bottom: 22, left: 24 };
const SHORTEST_S = 120;

/** How many replicas there were and were asked for, over the last minutes; a need beyond that is cut at the top. */
export function Timeline({ decisions }: { decisions: Decision[] }) {
  const [box, width] = useWidth();
  const last = decisions.at(-1)!;
  const start = Math.min(decisions[0]!.at, last.at - SHORTEST_S);
  const most = 1.25 * Math.max(1, ...decisions.map(({ current, desired }) => Math.max(current, desired)));
  const x = (at: number) => MARGIN.left + ((at - start) / (last.at - start)) * (width - MARGIN.left - MARGIN.right);
  const y = (value: number) => HEIGHT - MARGIN.bottom - (value / most) * (HEIGHT - MARGIN.top - MARGIN.bottom);
  const steps = (value: (decision: Decision) => number) =>
    decisions.map((each, index) => `${index ? `H${x(each.at)}` : `M${x(each.at)},${y(value(each))}`}V${y(value(each))}`).join("");
  const need = decisions.map((each) => `L${x(each.at)},${y(Math.min(most, each.terms.need ?? 0))}`).join("");
  const label = `From ${clock(start)} to ${clock(last.at)}: now ${last.current} replicas, ${last.desired} asked for.`;
  return (
    <div ref={box} class="timeline">
      <svg width={width} height={HEIGHT} role="img" aria-label={label}>
        {levels(most).map((level) => (
          <g key={level}>
            <line class="level" x1={MARGIN.left} x2={width - MARGIN.right} y1={y(level)} y2={y(level)} />
            <text x={MARGIN.left - 8} y={y(level) + 4} text-anchor="end">
              {level}
            </text>
          </g>
        ))}
        <path class="need" d={`M${x(decisions[0]!.at)},${y(0)}${need}V${y(0)}Z`} />
        <path class="current" d={steps(({ current }) => current)} />
        <path class="desired" d={steps(({ desired }) => desired)} />
        {decisions
          .filter(({ current, desired }) => current !== desired)
          .map(({ number, at, desired }) => (
            <circle key={number} class="change" cx={x(at)} cy={y(desired)} r={3.5} />
          ))}
        <text x={MARGIN.left} y={HEIGHT - 4}>
          {clock(start)}
        </text>
        <text x={width - MARGIN.right} y={HEIGHT - 4} text-anchor="end">
          {clock(last.at)}
        </text>
      </svg>
    </div>
  );
}

function levels(most: number): number[] {
  const step = Math.max(1, Math.ceil(most / 4));
  return Array.from({ length: Math.floor(most / step) + 1 }, (_, index) => index * step);
}

function useWidth() {
  const box = useRef<HTMLDivElement>(null);
  const [width, setWidth] = useState(600);
  useLayoutEffect(() => {
    const observer = new ResizeObserver(([entry]) => setWidth(Math.max(200, entry!.contentRect.width)));
    observer.observe(box.current!);
    return () => observer.disconnect();
  }, []);
  return [box, width] as const;
}
