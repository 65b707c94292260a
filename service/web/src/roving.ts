import { useRef, useState } from "preact/hooks";

/**
 * A group of buttons of which one is in the tab order; arrow keys move among them. `span` is how many steps the keys
 * across the reading direction take: 1 for a line, the width for a grid. A grid that is filled column by column says so
 * in its style, and its keys are the other way round.
 */
export function useRoving(count: number, span = 1) {
  const group = useRef<HTMLDivElement>(null);
  const [current, setCurrent] = useState(0);
  const inTabOrder = Math.min(current, count - 1);

  function onKeyDown(event: KeyboardEvent): void {
    const byColumn = group.current !== null && getComputedStyle(group.current).gridAutoFlow.startsWith("column");
    const [along, across] = byColumn ? [span, 1] : [1, span];
    const steps: Record<string, number> = {
      ArrowRight: along,
      ArrowLeft: -along,
      ArrowDown: across,
      ArrowUp: -across,
      Home: -inTabOrder,
      End: count - 1 - inTabOrder,
    };
    const next = inTabOrder + (steps[event.key] ?? 0);
    if (!(event.key in steps) || next < 0 || next >= count) return;
    event.preventDefault();
    setCurrent(next);
    group.current?.querySelectorAll<HTMLElement>("button")[next]?.focus();
  }

  const item = (index: number) => ({ tabIndex: index === inTabOrder ? 0 : -1, onFocus: () => setCurrent(index) });
  return { group, item, onKeyDown };
}
